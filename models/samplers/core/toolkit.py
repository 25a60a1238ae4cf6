"""The training-free toolkit: changes with which dense methods use a backbone above its native size.

I-Max, HiFlow, URAE and CLEAR share it in their official code, as does the baseline "FLUX-1.dev*" of URAE's
tables: NTK positions, proportional attention, repeated text, a static shift, swin patchify. The first three
change the backbone's computation and are here; the static shift belongs to the schedule, swin patchify
(`velocities.py`) to the step. Windowed attention must not use the proportional scale.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import Field

from uhr.base.config import Config

if TYPE_CHECKING:
    from uhr.models.surgery.base import Surgery


@dataclass(frozen=True)
class Native:
    """The training size of a backbone: the side of its square grid in tokens, and its number of text
    tokens."""

    side: int
    text: int = 512

    @property
    def keys(self) -> int:
        """Number of keys of its attention: 4608 for FLUX, which are 64 x 64 image tokens and 512 text
        tokens."""
        return self.side**2 + self.text


class Toolkit(Config):
    """The parts of the toolkit. They apply above the native size only.

    ntk:              theta of every position axis is multiplied by this; 1 does not change positions
    ntk_floor:        I-Max's clip: no frequency below the unscaled one over sqrt(tokens / native tokens)
    proportional:     softmax scale sqrt(log_trained(keys) / head_dim)
    text_duplication: one copy of the text for each whole native tile
    """

    ntk: float = Field(default=10.0, ge=1)
    ntk_floor: bool = False
    proportional: bool = True
    text_duplication: bool = False

    @classmethod
    def off(cls) -> Toolkit:
        """Return a toolkit without any of the parts."""
        return cls(ntk=1, proportional=False)

    def surgeries(self, tokens: int, native: Native) -> tuple[Surgery, ...]:
        """Return the surgeries on the transformer for a grid of `tokens` image tokens."""
        from uhr.models.attention.call import AttentionCalls
        from uhr.models.surgery.rope import RopeNtk

        if tokens <= native.side**2:
            return ()
        found: list[Surgery] = []
        if self.ntk != 1:
            floor = (tokens / native.side**2) ** 0.5 if self.ntk_floor else None
            found.append(RopeNtk(factor=self.ntk, floor=floor))
        if self.proportional:
            found.append(AttentionCalls())
        return tuple(found)

    def attention(self, tokens: int, native: Native) -> Any:
        """Return `Condition.attention` of the backbone's calls; None is its own attention."""
        from uhr.models.attention.proportional import Proportional

        if not self.proportional or tokens <= native.side**2:
            return None
        return Proportional(native.keys)
