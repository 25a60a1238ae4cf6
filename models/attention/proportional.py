"""Dense attention over more tokens than the backbone was trained on: sharpen the softmax (official code of
I-Max, URAE, HiFlow and CLEAR), and repeat the text (I-Max, HiFlow).

Windowed attention uses neither: its queries have about the same number of keys at any size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from uhr.models.attention.call import Attention, AttentionCall, Inputs
from uhr.models.attention.processors import Rotary

TRAINED_KEYS = 4608
"""Keys of FLUX at its native size: 512 text tokens and 64 x 64 image tokens."""

TEXT_TILE = 64
"""Side in tokens of FLUX's native grid: each tile of this size in a larger grid gets a copy of the text."""


def proportional_scale(keys: int, head_dim: int, trained: int = TRAINED_KEYS) -> float:
    """Return the softmax scale sqrt(log_trained(keys) / head_dim): 1/sqrt(head_dim) at `trained` keys.

    Attention's entropy grows with the number of keys; this keeps it near what the backbone was trained with.
    `keys` counts text and image. Official code of I-Max and its followers, which also applies it below
    `trained`.
    """
    assert keys > 1, keys
    return math.sqrt(math.log(keys) / math.log(trained) / head_dim)


@dataclass(frozen=True)
class Proportional(Attention):
    """Dense attention at `proportional_scale`, through diffusers' dispatcher: any backend and parallelism."""

    trained: int = TRAINED_KEYS

    def begin(self, transformer: Any, inputs: Inputs) -> tuple[Inputs, AttentionCall]:
        keys = inputs["hidden_states"].shape[1] + inputs["encoder_hidden_states"].shape[1]
        return inputs, _ProportionalCall(keys, self.trained)


class _ProportionalCall(AttentionCall):
    """keys: of the whole sequence; a rank of context parallelism sees only its part."""

    def __init__(self, keys: int, trained: int) -> None:
        self.keys, self.trained = keys, trained

    def attend(
        self, layer: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, rotary: Rotary
    ) -> torch.Tensor:
        from diffusers.models.attention_dispatch import dispatch_attention_fn

        return dispatch_attention_fn(
            query,
            key,
            value,
            scale=proportional_scale(self.keys, query.shape[-1], self.trained),
            backend=layer._attention_backend,
            parallel_config=layer._parallel_config,
        )


def text_copies(height: int, width: int, tile: int = TEXT_TILE) -> int:
    """Return how many copies `duplicate_text` makes."""
    return math.prod(_tiles(height, width, tile))


def _tiles(height: int, width: int, tile: int) -> tuple[int, int]:
    return max(1, height // tile), max(1, width // tile)


def duplicate_text(
    embeds: torch.Tensor, ids: torch.Tensor, height: int, width: int, tile: int = TEXT_TILE
) -> tuple[torch.Tensor, torch.Tensor]:
    """Repeat text embeddings [B, T, D] and ids [T, axes] for each whole tile of a height x width token grid.

    Copy (i, j) is at the tile's corner: its row and column ids (axes 1 and 2) are offset by tile * (i, j).
    This keeps the share of text among the keys (I-Max; off by default in HiFlow). A grid smaller than two
    tiles a side gets one copy: the arguments themselves.
    """
    down, across = _tiles(height, width, tile)
    corners = [(i * tile, j * tile) for i in range(down) for j in range(across)]
    offsets = torch.zeros(len(corners), 1, ids.shape[-1], dtype=ids.dtype, device=ids.device)
    offsets[:, 0, 1:3] = torch.tensor(corners, dtype=ids.dtype, device=ids.device)
    return embeds.repeat(1, len(corners), 1), (ids + offsets).flatten(0, 1)
