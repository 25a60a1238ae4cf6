"""Low-rank updates of a weight as values: summed, fused and split exactly, without a model.

An update is (alpha / rank) B A with A [rank, in] and B [out, rank], added to a weight W [out, in].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class LowRank:
    """The update (alpha / rank) B A: `a` is [rank, in], `b` is [out, rank], `alpha` any real number."""

    a: torch.Tensor
    b: torch.Tensor
    alpha: float

    def __post_init__(self) -> None:
        shapes = f"A {tuple(self.a.shape)}, B {tuple(self.b.shape)}"
        assert self.a.ndim == self.b.ndim == 2, shapes
        assert self.a.shape[0] == self.b.shape[1], shapes

    @property
    def rank(self) -> int:
        return self.a.shape[0]

    @property
    def scale(self) -> float:
        """The factor alpha / rank on B A."""
        return self.alpha / self.rank

    @property
    def features(self) -> tuple[int, int]:
        """The shape (out, in) of the updated weight."""
        return self.b.shape[0], self.a.shape[1]

    def delta(self) -> torch.Tensor:
        """Return the dense update [out, in], float32 at least."""
        dtype = torch.promote_types(torch.promote_types(self.a.dtype, self.b.dtype), torch.float32)
        return self.scale * (self.b.to(dtype) @ self.a.to(dtype))

    def applied(self, x: torch.Tensor) -> torch.Tensor:
        """Return the update's product with `x` [..., in] in float64, without the dense update."""
        return self.scale * (x.double() @ self.a.double().T @ self.b.double().T)

    def scaled(self, factor: float) -> LowRank:
        """Return the update times `factor`; the tensors are shared."""
        return LowRank(self.a, self.b, self.alpha * factor)


Lora = Mapping[str, LowRank]
"""An adapter's updates by diffusers' path of the module ("transformer_blocks.0.attn.to_q")."""


def total(parts: Sequence[LowRank]) -> LowRank:
    """Sum updates of one weight: ranks add up, the As are stacked, the Bs are concatenated.

    It is exact: if all scales are equal nothing is computed; otherwise each scale goes into its B, in float32
    at least, and alpha becomes the rank.
    """
    assert parts
    alpha, bs = _common_scale(parts)
    return LowRank(torch.cat([part.a for part in parts]), torch.cat(bs, dim=1), alpha)


def fuse(parts: Sequence[LowRank | None], outs: Sequence[int]) -> LowRank:
    """Return one update of a fused weight [sum(outs), in] from updates of its parts, which read one input.

    A is stacked and B is block-diagonal, so the rank is the sum of the ranks; a part that is None has no
    update, and its `out` rows of B are zero. It is exact, as `total` is.
    """
    present = [part for part in parts if part is not None]
    assert present
    alpha, bs = _common_scale(present)
    rank = sum(part.rank for part in present)
    fused = bs[0].new_zeros(sum(outs), rank)
    row = column = 0
    blocks = iter(bs)
    for part, out in zip(parts, outs, strict=True):
        if part is not None:
            assert part.b.shape[0] == out, f"{part.b.shape[0]} rows where the fused weight has {out}"
            fused[row : row + out, column : column + part.rank] = next(blocks)
            column += part.rank
        row += out
    return LowRank(torch.cat([part.a for part in present]), fused, alpha)


def split(whole: LowRank, outs: Sequence[int]) -> list[LowRank | None]:
    """Return the updates of the parts of a fused weight, whose rows are `outs` in this order.

    It is exact for any update: a part keeps the ranks whose columns of B are not zero in its rows, so that it
    inverts `fuse`, and a dense update is copied to each part. A part without any column is None.
    """
    assert sum(outs) == whole.b.shape[0], f"{list(outs)} rows are not {whole.b.shape[0]}"
    parts: list[LowRank | None] = []
    for rows in whole.b.split(list(outs)):
        kept = rows.any(dim=0).nonzero().flatten()
        if len(kept) == 0:
            parts.append(None)
            continue
        a, b = whole.a[kept], rows[:, kept].contiguous()
        parts.append(LowRank(a, b, whole.scale * len(kept)))
    return parts


def _common_scale(parts: Sequence[LowRank]) -> tuple[float, list[torch.Tensor]]:
    """Return the alpha of the whole and every B; the Bs are unchanged if all scales are equal."""
    rank = sum(part.rank for part in parts)
    if len({part.scale for part in parts}) == 1:
        return parts[0].scale * rank, [part.b for part in parts]
    return float(rank), [_folded(part) for part in parts]


def _folded(part: LowRank) -> torch.Tensor:
    return part.b.to(torch.promote_types(part.b.dtype, torch.float32)) * part.scale
