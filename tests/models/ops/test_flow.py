import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from uhr.models.ops import flow

LEVEL = st.floats(0.01, 1)


def pair(seed=0):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(2, 5, dtype=torch.float64, generator=draw), torch.randn(
        2, 5, dtype=torch.float64, generator=draw
    )


@given(LEVEL)
def test_the_data_estimate_undoes_the_interpolation(sigma):
    data, noise = pair()
    x, v = flow.interpolate(data, noise, sigma), noise - data
    torch.testing.assert_close(flow.data_estimate(x, v, sigma), data)


def test_the_ends_of_the_line_are_data_and_noise():
    data, noise = pair()
    assert torch.equal(flow.interpolate(data, noise, 0.0), data)
    assert torch.equal(flow.interpolate(data, noise, 1.0), noise)


@given(st.lists(LEVEL, min_size=1, max_size=12, unique=True))
def test_euler_returns_the_target_of_a_straight_field_on_any_grid(levels):
    sigmas = [*sorted(levels, reverse=True), 0.0]
    target, start = (t.float() for t in pair())
    calls = []

    def velocity(x, sigma, step):
        calls.append(step)
        return (x - target) / sigma

    found = flow.euler(velocity, start, sigmas)
    torch.testing.assert_close(found, target, atol=1e-5, rtol=1e-5)
    assert calls == list(range(len(sigmas) - 1))


def test_euler_stays_in_float32_when_the_velocity_is_half():
    start = torch.full((4,), 1.0, dtype=torch.bfloat16)
    sigmas = [1 - i / 512 for i in range(513)]
    found = flow.euler(lambda x, sigma, step: torch.ones(4, dtype=torch.bfloat16), start, sigmas)
    assert found.dtype == torch.float32
    # in bfloat16 the sum of 512 small steps would stall
    torch.testing.assert_close(found, torch.zeros(4), atol=1e-5, rtol=0)


def test_after_replaces_the_latents_and_stop_ends_the_path():
    seen = []

    def after(step, x):
        seen.append(step)
        return x * 0 + step

    found = flow.euler(
        lambda x, sigma, step: x, torch.ones(1), [1, 0.5, 0.2, 0], after, lambda: len(seen) == 2
    )
    assert seen == [0, 1]
    assert found.item() == 1


@pytest.mark.parametrize("sigma", [0.25, 1.0])
def test_one_step_goes_by_the_difference_of_levels_times_the_velocity(sigma):
    x = torch.tensor([2.0])
    assert flow.euler_step(x, torch.tensor([4.0]), sigma, 0.0).item() == 2 - 4 * sigma
