"""The smallest or largest singular components of a weight, cached on disk by the weight's hash.

W [out, in] = U diag(S) V^T, S falling. The minor components are the last `rank` triplets, the major ones the
first; b = U sqrt(S) [out, rank] and a = sqrt(S) V^T [rank, in], so that b a is that part of W (URAE, section
2.3, eq. 5 and 6; official `train_4k.py`).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from uhr.base.console import warn
from uhr.base.errors import UserError, one_line
from uhr.models.files.write import save_tensors

Which = Literal["minor", "major"]

METHOD = "gram64-1"
"""The version of the arithmetic in a cached file's name; change it with any change of the digits."""


@dataclass(frozen=True)
class Factors:
    """Two factors of a weight's components: a [rank, in] and b [out, rank]."""

    a: torch.Tensor
    b: torch.Tensor


def decompose(weight: torch.Tensor, rank: int, which: Which) -> Factors:
    """Return the `rank` smallest or largest components of a weight [out, in] of any shape and float dtype.

    They are computed from the eigenvectors of the smaller Gram matrix in float64. That costs as much as an
    SVD in float32 (8 s of one CPU core at 3072 x 3072, half an hour for URAE's 190 linears of FLUX.1) and is
    more accurate than the official code's float32: it resolves singular values down to 1e-8 of the largest.
    Randomised SVD is faster but does not find small ones. The factors are float32, or float64 for a float64
    weight; components of value zero are zero in both.
    """
    assert weight.ndim == 2, tuple(weight.shape)
    out, width = weight.shape
    if not 1 <= rank <= min(out, width):
        raise UserError(
            f"rank {rank} on a weight of {out} x {width}", f"use 1 to {min(out, width)}, or drop the target"
        )
    exact = weight.double()
    tall = out >= width
    _, vectors = torch.linalg.eigh(exact.T @ exact if tall else exact @ exact.T)  # eigenvalues rise
    one_side = vectors[:, :rank].flip(1) if which == "minor" else vectors[:, -rank:].flip(1)
    other = exact @ one_side if tall else exact.T @ one_side  # the other side's vectors, times S
    root = other.norm(dim=0).sqrt()
    other = torch.where(root > 0, other / root, 0)
    one_side = one_side * root
    b, a = (other, one_side.T) if tall else (one_side, other.T)
    dtype = torch.promote_types(weight.dtype, torch.float32)
    return Factors(a.to(dtype).contiguous(), b.to(dtype).contiguous())


def cached(weight: torch.Tensor, rank: int, which: Which, folder: Path | None) -> tuple[Factors, bool]:
    """Return the factors on the weight's device, and whether they were found in `folder`.

    Equal weights share a file, whatever model or dtype they come from; it is written atomically. Without a
    folder nothing is cached.
    """
    if folder is None:
        return decompose(weight, rank, which), False
    path = folder / f"{weight_hash(weight)}-{which}-{rank}-{METHOD}.safetensors"
    if path.exists():
        return _read(path, weight, rank), True
    factors = decompose(weight, rank, which)
    try:
        save_tensors({"a": factors.a.cpu(), "b": factors.b.cpu()}, path)
    except OSError as error:
        warn(f"{path} cannot be written ({error.strerror}): these components will be computed again")
    return factors, False


def weight_hash(weight: torch.Tensor) -> str:
    """Return the SHA-256 (64 hex digits) of a weight's shape and values in float32 (float64 if it has
    that)."""
    values = weight.detach().to(torch.promote_types(weight.dtype, torch.float32)).cpu().contiguous()
    total = hashlib.sha256(f"{values.dtype} {tuple(values.shape)} ".encode())
    total.update(values.numpy().data)
    return total.hexdigest()


def _read(path: Path, weight: torch.Tensor, rank: int) -> Factors:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"cached components {path} cannot be read ({one_line(error)})", "delete the file"
        ) from error
    shapes = {key: tuple(tensor.shape) for key, tensor in state.items()}
    if shapes != {"a": (rank, weight.shape[1]), "b": (weight.shape[0], rank)}:
        raise UserError(f"cached components {path} have shapes {shapes}", "delete the file")
    return Factors(state["a"].to(weight.device), state["b"].to(weight.device))
