import pytest
import torch

from uhr.models.ops import latents, swin


def ones(shape):
    return lambda: torch.ones(shape)


@pytest.mark.parametrize("ring", swin.Ring)
def test_the_ring_comes_off_as_it_was_put_on(ring):
    x = torch.randn(2, 4, 6, 8)
    padded = swin.pad(x, 0.7, ring, ones((2, 4, 8, 10)))
    assert padded.shape == (2, 4, 8, 10)
    assert torch.equal(swin.crop(padded), x)


def test_the_ring_holds_noise_of_the_steps_level_or_zeros():
    x = torch.zeros(1, 1, 2, 2)
    around = swin.pad(x, 0.25, swin.Ring.NOISE, ones((1, 1, 4, 4)))
    assert around.sum() == 0.25 * 12
    assert not swin.pad(x, 0.25, swin.Ring.ZEROS, ones((1, 1, 4, 4))).any()


def test_a_ring_of_zeros_draws_no_noise():
    def never():
        raise AssertionError

    swin.pad(torch.zeros(1, 1, 2, 2), 1.0, swin.Ring.ZEROS, never)


def test_what_was_a_border_between_tokens_is_inside_one():
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    middle = {5.0, 6.0, 9.0, 10.0}
    straight = [set(token.tolist()) for token in latents.pack(x)[0]]
    shifted = [set(token.tolist()) for token in latents.pack(swin.pad(x, 0, swin.Ring.ZEROS, ones(())))[0]]
    assert middle not in straight
    assert middle in shifted


def test_every_other_step_shifts_beginning_with_the_first():
    assert [swin.shifts(i) for i in range(4)] == [True, False, True, False]
