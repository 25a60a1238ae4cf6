import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import special, stats

from uhr.train.objectives.draws import Draws, normal_quantile


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


def raw(k):
    """Integers whose upper 53 bits are k."""
    return np.asarray(k, dtype=np.uint64) << np.uint64(11)


def test_the_quantile_is_scipys_in_the_lower_half_where_its_argument_is_exact():
    spread = np.random.Philox(key=5).random_raw(200_000) >> np.uint64(12)  # below 2^52
    tail = np.concatenate([np.arange(300), 2 ** np.arange(52)]).astype(np.uint64)
    for k in (spread, tail):
        expected = special.ndtri((k.astype(np.float64) + 0.5) * 2.0**-53)
        np.testing.assert_allclose(normal_quantile(raw(k)), expected, rtol=2e-13, atol=1e-16)


def test_the_quantile_is_an_odd_function_to_the_bit_and_ignores_the_lowest_bits():
    bits = np.random.Philox(key=6).random_raw(50_000)
    assert np.array_equal(normal_quantile(bits), -normal_quantile(~bits))
    assert np.array_equal(normal_quantile(bits), normal_quantile(bits | np.uint64(2047)))


def test_normal_draws_pass_a_test_of_their_distribution_with_its_tails():
    found = Draws(11, 0, range(8)).normal("noise", (40_000,)).numpy().ravel()
    assert stats.kstest(found, "norm").pvalue > 1e-3
    beyond = (abs(found) > 3).mean()
    assert abs(beyond - 0.0027) < 4 * np.sqrt(0.0027 / found.size)


EXPECTED = [
    "0x1.4a022c0000000p+1",
    "-0x1.5507240000000p-2",
    "-0x1.f8baa20000000p-1",
    "0x1.e688b60000000p+0",
    "-0x1.7d8b0c0000000p-2",
    "0x1.b993740000000p-3",
    "-0x1.20dd7a0000000p-1",
    "0x1.0a0cc20000000p+1",
]


def test_normal_draws_are_these_numbers_on_every_machine_and_with_every_version():
    """The first eight of a known stream, to the bit."""
    found = Draws(0, 0, [0]).normal("noise", (8,)).numpy()[0]
    assert [value.hex() for value in found.astype(float)] == EXPECTED


def test_a_block_border_changes_nothing():
    long = Draws(0, 0, [0]).normal("noise", (70_000,))
    assert torch.equal(Draws(0, 0, [0]).normal("noise", (40_000,))[0], long[0, :40_000])
