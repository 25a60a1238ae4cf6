"""The toolkit by which the dense methods make a backbone work above its native size, without training.

I-Max, HiFlow, URAE, CLEAR and the "FLUX*" baseline share it (recipes 0.5): NTK positions, proportional
attention, repeated text, a static shift, swin patchify. The first three change what the backbone computes and
stand here, as surgeries put on for a call and taken off after it; the static shift belongs to the schedule,
swin patchify (`swin.py`) to the step. Windowed attention must not take the proportional scale.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import Field

from uhr.base.config import Config
from uhr.base.errors import UserError
from uhr.models.attention.call import AttentionCalls
from uhr.models.attention.proportional import Proportional, duplicate_text
from uhr.models.rope_surgeries import RopeNtk
from uhr.models.surgery import Surgery, applied, temporarily


@dataclass(frozen=True)
class Native:
    """What a backbone was trained at: the side of its square grid in tokens, and its number of text
    tokens."""

    side: int
    text: int = 512

    @property
    def keys(self) -> int:
        """4608 for FLUX: 64 x 64 image tokens and 512 text tokens."""
        return self.side**2 + self.text


class Toolkit(Config):
    """Which parts are on above the native size; at it none ever is.

    ntk:              theta of every position axis is multiplied by this; 1 leaves the positions alone
    ntk_floor:        I-Max's clip: no frequency below the plain one over sqrt(tokens / native tokens)
    proportional:     softmax scale sqrt(log_trained(keys) / head_dim)
    text_duplication: one copy of the text for each whole native tile
    """

    ntk: float = Field(default=10.0, ge=1)
    ntk_floor: bool = False
    proportional: bool = True
    text_duplication: bool = False

    @classmethod
    def off(cls) -> Toolkit:
        return cls(ntk=1, proportional=False)

    def surgeries(self, tokens: int, native: Native) -> list[Surgery]:
        """What is put on the transformer for a grid of so many image tokens."""
        if tokens <= native.side**2:
            return []
        found: list[Surgery] = []
        if self.ntk != 1:
            floor = (tokens / native.side**2) ** 0.5 if self.ntk_floor else None
            found.append(RopeNtk(factor=self.ntk, floor=floor))
        if self.proportional:
            found.append(AttentionCalls())
        return found

    def attention(self, tokens: int, native: Native) -> dict[str, Any]:
        """What the backbone's calls are given besides, as `joint_attention_kwargs`."""
        if not self.proportional or tokens <= native.side**2:
            return {}
        return {"attention": Proportional(native.keys)}

    def texts(
        self, embeds: torch.Tensor, ids: torch.Tensor, rows: int, columns: int, native: Native
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Text embeddings [B, T, D] and ids [T, axes] for a grid of rows x columns tokens, repeated if so
        set."""
        if not self.text_duplication:
            return embeds, ids
        return duplicate_text(embeds, ids, rows, columns, native.side)

    @contextlib.contextmanager
    def on(self, transformer: Any, tokens: int, native: Native) -> Generator[list[Surgery]]:
        """The surgeries, on `transformer` for the length of a `with` block.

        Attention calls that are there already (a sampler's or an adapter's) stay and serve; positions that
        another surgery has scaled are a UserError, since the two would not add up.
        """
        wanted = self.surgeries(tokens, native)
        there = applied(transformer)
        scaled = [surgery.key for surgery in there if "transformer.pos_embed" in surgery.seats]
        if scaled and any("transformer.pos_embed" in surgery.seats for surgery in wanted):
            raise UserError(
                f"the positions are already scaled by '{scaled[0]}'",
                "keep it and set toolkit.ntk=1, or revert it",
            )
        missing = [surgery for surgery in wanted if surgery not in there]
        with temporarily(transformer, *missing):
            yield wanted
