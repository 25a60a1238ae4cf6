"""The toolkit by which the dense methods make a backbone work above its native size, without training.

I-Max, HiFlow, URAE and CLEAR share it in their official code, and so does the baseline that URAE's tables
call "FLUX-1.dev*": NTK positions, proportional attention, repeated text, a static shift, swin patchify. The
first three change what the backbone computes and stand here, as surgeries put on for a call and taken off
after it; the static shift belongs to the schedule, swin patchify (`swin.py`) to the step. Windowed attention
must not take the proportional scale.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pydantic import Field

from uhr.base.config import Config
from uhr.base.errors import UserError
from uhr.models.surgery import Surgery, applied, temporarily

if TYPE_CHECKING:
    from uhr.models.conditions import Condition, Conditions


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


POSITIONS = "transformer.pos_embed"
"""The seat of every surgery that scales positions."""


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
        from uhr.models.attention.call import AttentionCalls
        from uhr.models.rope_surgeries import RopeNtk

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
        from uhr.models.attention.proportional import Proportional

        if not self.proportional or tokens <= native.side**2:
            return {}
        return {"attention": Proportional(native.keys)}

    def told(self, said: Conditions, grid: tuple[int, int], native: Native) -> Conditions:
        """The words over a grid of (rows, columns) tokens: the text is repeated if so set."""
        from uhr.models.attention.proportional import duplicate_text

        if not self.text_duplication:
            return said

        def repeat(condition: Condition) -> Condition:
            text, ids = duplicate_text(condition.text, condition.text_ids, *grid, native.side)
            return replace(condition, text=text, text_ids=ids)

        return said.map(repeat)

    @contextlib.contextmanager
    def on(self, pipeline: Any, tokens: int, native: Native) -> Generator[list[Surgery]]:
        """The toolkit on a sampler's pipeline, for its calls with so many image tokens.

        Attention calls that are on its transformer already (a sampler's or an adapter's) stay and serve;
        positions that another surgery has scaled are a UserError, since the two would not add up.
        """
        wanted, there = self.surgeries(tokens, native), applied(pipeline.transformer)
        scaled = [surgery.key for surgery in there if POSITIONS in surgery.seats]
        if scaled and any(POSITIONS in surgery.seats for surgery in wanted):
            what = f"the positions are already scaled by '{scaled[0]}'"
            raise UserError(what, "keep it and set toolkit.ntk=1, or revert it")
        before = pipeline._joint_attention_kwargs
        with temporarily(pipeline.transformer, *(each for each in wanted if each not in there)):
            pipeline._joint_attention_kwargs = {**(before or {}), **self.attention(tokens, native)}
            try:
                yield wanted
            finally:
                pipeline._joint_attention_kwargs = before
