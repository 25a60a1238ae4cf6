import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from uhr.base.errors import UserError
from uhr.models.adapters import components
from uhr.models.adapters.components import cached, decompose, weight_hash


def weight(out, width, dtype=torch.float64, seed=0):
    return torch.randn(out, width, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def by_svd(w, rank, which):
    u, s, vh = torch.linalg.svd(w.double(), full_matrices=False)
    end = len(s)
    kept = slice(end - rank, end) if which == "minor" else slice(0, rank)
    return (u[:, kept] * s[kept]) @ vh[kept], s[kept]


sides = st.integers(3, 40)


@given(sides, sides, st.sampled_from(["minor", "major"]), st.integers(1, 3))
def test_the_factors_are_the_singular_components_of_a_weight_of_any_shape(out, width, which, rank):
    w = weight(out, width)
    factors = decompose(w, rank, which)
    expected, values = by_svd(w, rank, which)
    torch.testing.assert_close(factors.b @ factors.a, expected, rtol=0, atol=1e-9)
    # the root of each singular value is on either side
    torch.testing.assert_close(factors.a.square().sum(1), values, rtol=0, atol=1e-9)
    torch.testing.assert_close(factors.b.square().sum(0), values, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 3e-6)])
@pytest.mark.parametrize("shape", [(96, 96), (96, 64), (64, 96)])
def test_minor_part_and_residual_are_the_weight(shape, dtype, tolerance):
    """W_res = the other components, by SVD: URAE, eq. 5."""
    w = weight(*shape, dtype=dtype)
    u, s, vh = torch.linalg.svd(w, full_matrices=False)
    residual = (u[:, :-16] * s[:-16]) @ vh[:-16]
    factors = decompose(w, 16, "minor")
    assert (residual + factors.b @ factors.a - w).norm() <= tolerance * w.norm()


def test_they_are_nearer_to_the_truth_than_the_official_float32_svd():
    w = weight(256, 256) / 16
    w32 = w.float()
    expected, _ = by_svd(w32, 16, "minor")
    u, s, vh = torch.linalg.svd(w32)
    official = (u[:, -16:] @ torch.diag(s[-16:].sqrt())) @ (torch.diag(s[-16:].sqrt()) @ vh[-16:])
    ours = decompose(w32, 16, "minor")
    error = (ours.b.double() @ ours.a.double() - expected).norm()
    assert error < 0.5 * (official.double() - expected).norm()


def test_half_precision_weights_are_taken_at_their_values():
    w = weight(48, 48, torch.bfloat16)
    half, full = decompose(w, 4, "minor"), decompose(w.float(), 4, "minor")
    assert half.a.dtype == half.b.dtype == torch.float32
    assert torch.equal(half.a, full.a)


def test_components_of_value_zero_are_zero_and_no_nan():
    w = torch.zeros(8, 8)
    w[0, 0] = 3.0
    factors = decompose(w, 4, "minor")
    assert not factors.a.any()
    assert not factors.b.any()


def test_more_components_than_there_are_is_an_error():
    with pytest.raises(UserError, match="rank 7 on a weight of 6 x 9"):
        decompose(weight(6, 9), 7, "minor")


def test_a_cached_decomposition_is_read_and_not_made_again(tmp_path, monkeypatch):
    w = weight(24, 24, torch.float32)
    first, found = cached(w, 4, "minor", tmp_path)
    assert not found
    monkeypatch.setattr(components, "decompose", None)
    again, found = cached(w.clone(), 4, "minor", tmp_path)
    assert found
    assert torch.equal(again.a, first.a)
    assert torch.equal(again.b, first.b)
    assert not list(tmp_path.glob(".*"))  # nothing half-written stays


def test_the_cache_distinguishes_weights_ranks_and_ends(tmp_path):
    w = weight(24, 24, torch.float32)
    other = w.clone()
    other[3, 4] += 1e-6
    for args in ((w, 4, "minor"), (w, 5, "minor"), (w, 4, "major"), (other, 4, "minor"), (w.T, 4, "minor")):
        assert not cached(*args, tmp_path)[1]
    assert len(list(tmp_path.iterdir())) == 5


def test_equal_values_have_one_hash_in_any_dtype_that_holds_them():
    w = weight(8, 8, torch.bfloat16)
    assert weight_hash(w) == weight_hash(w.float())
    assert weight_hash(w.reshape(4, 16)) != weight_hash(w)


def test_a_broken_cache_file_is_an_error_that_says_to_delete_it(tmp_path):
    w = weight(24, 24, torch.float32)
    cached(w, 4, "minor", tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_bytes(b"torn")
    with pytest.raises(UserError, match="delete the file"):
        cached(w, 4, "minor", tmp_path)


def test_a_cache_that_takes_no_more_costs_a_warning_and_no_factors(tmp_path, monkeypatch, capsys):
    from safetensors import SafetensorError

    def full(*_, **__):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    w = torch.eye(8)
    factors, found = cached(w, 2, "minor", tmp_path)
    assert (factors.a.shape, found) == ((2, 8), False)
    assert "cannot be written (No space left on device)" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
