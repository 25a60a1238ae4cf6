"""Surgeries that replace the position embedding; named in recipes, listed in checkpoints and cards."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

from pydantic import Field

from uhr.base.errors import UserError
from uhr.models.surgery.base import Surgery


class RopeSurgery(Surgery):
    """Replace a FLUX transformer's `pos_embed`, with the same theta and axes."""

    edits: ClassVar[frozenset[str]] = frozenset({"transformer.pos_embed"})

    def perform(self, model: Any) -> Any:
        former = getattr(model, "pos_embed", None)
        if not (hasattr(former, "theta") and hasattr(former, "axes_dim")):
            what = f"a {type(model).__name__} has no rotary position embedding over axes"
            raise UserError(what, "apply it to a FLUX transformer")
        model.pos_embed = self.embedding(former.theta, tuple(former.axes_dim))
        return former

    def undo(self, model: Any, kept: Any) -> None:
        model.pos_embed = kept

    @abstractmethod
    def embedding(self, theta: float, axes: tuple[int, ...]) -> Any:
        """Return the new embedding."""


class RopeNtk(RopeSurgery):
    """Use `rope.NtkPosEmbed`; all methods that use it have factor 10."""

    name: ClassVar[str] = "rope-ntk"
    factor: float = Field(default=10.0, gt=0)
    floor: float | None = Field(default=None, gt=0)

    def embedding(self, theta: float, axes: tuple[int, ...]) -> Any:
        from uhr.models.ops.rope import NtkPosEmbed

        return NtkPosEmbed(theta, axes, self.factor, self.floor)


class RopeYarn(RopeSurgery):
    """Use `rope.YarnPosEmbed`; `window` is a spec's native side in tokens, 64 for FLUX."""

    name: ClassVar[str] = "rope-yarn"
    window: int = Field(gt=0)

    def embedding(self, theta: float, axes: tuple[int, ...]) -> Any:
        from uhr.models.ops.rope import YarnPosEmbed

        return YarnPosEmbed(theta, axes, self.window)


class RopeResonance(RopeSurgery):
    """Use UltraFlux's `rope.ResonancePosEmbed`; `window` as for YaRN."""

    name: ClassVar[str] = "rope-resonance"
    window: int = Field(gt=0)

    def embedding(self, theta: float, axes: tuple[int, ...]) -> Any:
        from uhr.models.ops.rope import ResonancePosEmbed

        return ResonancePosEmbed(theta, axes, self.window)
