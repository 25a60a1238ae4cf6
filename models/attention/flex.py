"""Hierarchical local attention by FlexAttention: one fused block-sparse kernel on CUDA.

The result equals that of `gathered.py` to rounding. The kernel works on tiles of 128 queries x 128 keys.
Tokens are ordered window by window, so that with windows of 256 tokens and a text of 512 almost every tile is
either skipped or needs no mask.

Sequences are written [T | X | Y]: text, image and guide tokens, one after the other.

On CUDA it is compiled, forward and backward. On a CPU it runs uncompiled, without a backward pass, and
materialises all scores: enough to compare the back ends on small grids and to test masks, not the kernel.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from uhr.base.errors import UserError
from uhr.models.attention.counts import tile_pairs
from uhr.models.attention.gathered import KeysValues
from uhr.models.attention.layout import WindowLayout
from uhr.models.attention.mask import mask_mod
from uhr.models.attention.window_rules import WindowRules

TILE = 128

SPECIALISATIONS = 64
"""Most combinations of grid, dtype and gradient mode in one process; each gets its own compiled kernel."""


@dataclass
class BlockMasks:
    """A cache of block masks by geometry, shared by all layers and steps."""

    masks: dict[tuple[Any, ...], Any] = field(default_factory=dict)

    def get(
        self, layout: WindowLayout, rules: WindowRules, text: int, guide: bool, device: torch.device
    ) -> Any:
        """Return the mask of queries [T | X] over keys [T | X | Y]; without `guide` over keys [T | X].

        text: number of text tokens.
        """
        key = (layout, rules, text, guide, device)
        if key not in self.masks:
            self.masks[key] = block_mask(layout, rules, text, guide, device, text + layout.tokens)
        return self.masks[key]


def block_mask(
    layout: WindowLayout,
    rules: WindowRules,
    text: int,
    guide: bool,
    device: torch.device,
    queries: int | None = None,
) -> Any:
    """Build a BlockMask over the keys [T | X | Y], or [T | X] without `guide`.

    text: number of text tokens. queries: the number of leading tokens that are queries; all by default.

    It is built from the pairs per tile: a mask of all pairs, which at 4K would be 4.6 GB, is never made.
    """
    from torch.nn.attention.flex_attention import BlockMask

    length = text + layout.tokens + guide * layout.guide_tokens
    queries = length if queries is None else queries
    counted = tile_pairs(layout, rules, text, guide, (TILE, TILE), queries, device)
    full = counted == TILE * TILE
    partial = (counted > 0) & ~full
    return BlockMask.from_kv_blocks(
        *_block_table(partial),
        *_block_table(full),
        BLOCK_SIZE=(TILE, TILE),
        mask_mod=mask_mod(layout, rules, text),
        seq_lengths=(queries, length),
    )


def _block_table(blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return how many key tiles each query tile has, int32 [1, 1, Q], and their indices, which come first in
    int32 [1, 1, Q, K]."""
    order = blocks.int().argsort(dim=-1, descending=True, stable=True)
    return blocks.sum(-1).int()[None, None], order.int()[None, None].contiguous()


@functools.cache
def _compiled() -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False, fullgraph=True)


def _kernel(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any) -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    if query.device.type == "cpu" or torch.compiler.is_compiling():
        return flex_attention(query, key, value, block_mask=mask)
    # each grid is compiled for itself; beyond torch's limit of 8 it would run unfused: 200 GB per layer at 4K
    with torch._dynamo.config.patch(recompile_limit=SPECIALISATIONS):
        return _compiled()(query, key, value, block_mask=mask)


def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, guide: KeysValues | None, mask: Any
) -> torch.Tensor:
    """Attend from text and image, as `gathered.attend` does: [B, T + N, H, D].

    query, key, value: [B, T + N, H, D]. guide: keys and values of the guide, [B, M, H, D] each. mask: of
    `BlockMasks`, for the same tokens. Raises UserError for a backward pass on a CPU.
    """
    requires_gradient = any(x.requires_grad for x in (query, key, value, *(guide or ())))
    if query.device.type == "cpu" and requires_gradient and torch.is_grad_enabled():
        raise UserError("FlexAttention has no backward pass on a CPU", "use the gathered back end")
    if guide is not None:
        key, value = torch.cat([key, guide[0]], dim=1), torch.cat([value, guide[1]], dim=1)
    return _kernel(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), mask).transpose(1, 2)
