import torch
from hypothesis import given
from hypothesis import strategies as st

from uhr.train.objectives.draws import Draws


@given(st.integers(0, 2**40), st.integers(0, 10**6), st.integers(1, 6), st.data())
def test_a_sample_draws_the_same_however_the_batch_is_cut(seed, step, size, data):
    cut = data.draw(st.integers(0, size))
    whole = Draws(seed, step, range(size))
    parts = [part for part in (whole.slice(0, cut), whole.slice(cut, size)) if part.places]
    for name in ("noise", "sigma"):
        together = torch.cat([part.normal(name, (3, 2)) for part in parts])
        assert torch.equal(whole.normal(name, (3, 2)), together)
        assert torch.equal(whole.uniform(name), torch.cat([part.uniform(name) for part in parts]))


def test_streams_steps_places_and_seeds_share_no_numbers():
    draws = [
        Draws(seed, step, [place]).normal(stream, (50,))
        for seed in (0, 1) for step in (0, 1) for place in (0, 1) for stream in ("noise", "latent")
    ]  # fmt: skip
    values = torch.cat(draws).flatten().tolist()
    assert len(set(values)) == len(values)


def test_normal_is_standard_normal_and_uniform_never_hits_its_ends():
    normal = Draws(3, 0, range(8)).normal("noise", (16, 50, 50))
    assert normal.dtype == torch.float32
    assert abs(normal.mean().item()) < 0.01
    assert abs(normal.std().item() - 1) < 0.01
    uniform = Draws(3, 0, range(2000)).uniform("sigma")
    assert 0 < uniform.min() < 0.01
    assert 0.99 < uniform.max() < 1


def test_the_process_wide_generator_is_neither_read_nor_moved():
    before = torch.random.get_rng_state()
    Draws(0, 0, range(3)).normal("noise", (4,))
    assert torch.equal(before, torch.random.get_rng_state())
