import torch
from hypothesis import given
from hypothesis import strategies as st

from uhr.models.adapters.low_rank import LowRank, fuse, split, total


def draw(out, width, rank, alpha, seed):
    stream = torch.Generator().manual_seed(seed)
    a = torch.randn(rank, width, generator=stream, dtype=torch.float64)
    return LowRank(a, torch.randn(out, rank, generator=stream, dtype=torch.float64), alpha)


alphas = st.sampled_from([1.0, 3.0, 4.0, 10.0, -2.0])
ranks = st.integers(1, 5)


@given(st.lists(st.tuples(ranks, alphas), min_size=1, max_size=4))
def test_the_sum_of_updates_is_the_update_of_the_summed_ranks(shapes):
    parts = [draw(7, 6, rank, alpha, seed) for seed, (rank, alpha) in enumerate(shapes)]
    whole = total(parts)
    assert whole.rank == sum(rank for rank, _ in shapes)
    torch.testing.assert_close(whole.delta(), sum(part.delta() for part in parts), rtol=1e-12, atol=1e-12)


@given(st.integers(1, 4), st.integers(1, 4))
def test_a_sum_at_one_scale_copies_bits_and_computes_nothing(first, second):
    parts = [draw(7, 6, first, 2.0 * first, 0), draw(7, 6, second, 2.0 * second, 1)]
    whole = total(parts)
    assert whole.scale == 2.0
    assert torch.equal(whole.b, torch.cat([part.b for part in parts], dim=1))


@given(st.lists(st.tuples(st.integers(1, 5), ranks, alphas, st.booleans()), min_size=2, max_size=4))
def test_fused_parts_are_the_parts_stacked_and_splitting_takes_them_apart_again(shapes):
    outs = [out for out, *_ in shapes]
    parts = [
        draw(out, 6, rank, alpha, seed) if there else None
        for seed, (out, rank, alpha, there) in enumerate(shapes)
    ]
    parts[0] = parts[0] or draw(outs[0], 6, 2, 1.0, 99)
    dense = torch.cat(
        [
            torch.zeros(out, 6, dtype=torch.float64) if part is None else part.delta()
            for part, out in zip(parts, outs, strict=True)
        ]
    )
    whole = fuse(parts, outs)
    torch.testing.assert_close(whole.delta(), dense, rtol=1e-12, atol=1e-12)
    for part, again in zip(parts, split(whole, outs), strict=True):
        assert (part is None) == (again is None)
        if part is not None:
            assert again.rank == part.rank
            assert torch.equal(again.a, part.a)
            torch.testing.assert_close(again.delta(), part.delta(), rtol=1e-12, atol=1e-12)


@given(ranks, alphas)
def test_splitting_a_dense_update_is_exact_too(rank, alpha):
    whole = draw(9, 6, rank, alpha, 0)
    parts = split(whole, [2, 3, 4])
    torch.testing.assert_close(
        torch.cat([part.delta() for part in parts]), whole.delta(), rtol=1e-12, atol=1e-12
    )


def test_a_factor_on_the_strength_shares_the_tensors():
    part = draw(7, 6, 2, 3.0, 0)
    twice = part.scaled(2.0)
    assert twice.a is part.a
    torch.testing.assert_close(twice.delta(), 2 * part.delta())
