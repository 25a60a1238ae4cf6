"""Position embeddings as surgeries: named in recipes, listed in checkpoints and cards, reversible."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

from pydantic import Field

from uhr.base.errors import UserError
from uhr.models.surgery.base import Surgery


class RopeSurgery(Surgery):
    """Replaces a FLUX transformer's `pos_embed`; theta and axes are taken from the one that was there."""

    seats: ClassVar[frozenset[str]] = frozenset({"transformer.pos_embed"})

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
        """The embedding to put in."""


class RopeNtk(RopeSurgery):
    """`rope.NtkPosEmbed`; factor 10 is what every method that uses it has."""

    name: ClassVar[str] = "rope-ntk"
    factor: float = Field(default=10.0, gt=0)
    floor: float | None = Field(default=None, gt=0)

    def embedding(self, theta: float, axes: tuple[int, ...]) -> Any:
        from uhr.models.ops.rope import NtkPosEmbed

        return NtkPosEmbed(theta, axes, self.factor, self.floor)


class RopeYarn(RopeSurgery):
    """`rope.YarnPosEmbed`; `window` is in tokens a side, 64 for FLUX, a spec's native side in tokens."""

    name: ClassVar[str] = "rope-yarn"
    window: int = Field(gt=0)

    def embedding(self, theta: float, axes: tuple[int, ...]) -> Any:
        from uhr.models.ops.rope import YarnPosEmbed

        return YarnPosEmbed(theta, axes, self.window)


class RopeResonance(RopeSurgery):
    """`rope.ResonancePosEmbed`, UltraFlux's; `window` as for YaRN."""

    name: ClassVar[str] = "rope-resonance"
    window: int = Field(gt=0)

    def embedding(self, theta: float, axes: tuple[int, ...]) -> Any:
        from uhr.models.ops.rope import ResonancePosEmbed

        return ResonancePosEmbed(theta, axes, self.window)
