"""The options of windowed attention's mask; `rules.py` explains them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import pydantic

from uhr.base.config import Config

if TYPE_CHECKING:
    from uhr.models.attention.layout import WindowLayout

FULL_GUIDE = 16384
"""Guide tokens (those of an 8K image) up to which "auto" lets all of them see each other."""


class WindowRules(Config):
    """The options of the mask; see `rules.py`.

    neighbourhood:  which windows an image token sees besides its own
    reach:          how far, in windows (cross and box; None is 1) or tokens (sliding; None is 8)
    image_to_guide: image tokens see the guide tokens of their own window, or all of them
    guide_to_text:  whether guide tokens see the text
    guide_to_guide: auto is full up to 16,384 guide tokens (8K), and local above it
    guide_reach:    how far local guide tokens see, in blocks
    """

    neighbourhood: Literal["own", "cross", "box", "sliding"] = "box"
    reach: int | None = pydantic.Field(default=None, ge=1)
    image_to_guide: Literal["own", "all"] = "own"
    guide_to_text: bool = True
    guide_to_guide: Literal["auto", "full", "local"] = "auto"
    guide_reach: int = pydantic.Field(default=2, ge=0)

    @pydantic.model_validator(mode="after")
    def _own_has_no_reach(self) -> WindowRules:
        if self.neighbourhood == "own" and self.reach is not None:
            raise ValueError("neighbourhood 'own' takes no reach")
        return self

    @property
    def distance(self) -> int:
        """`reach` with its default: windows for own (0), cross and box (1), tokens for sliding (8)."""
        if self.reach is not None:
            return self.reach
        return {"own": 0, "cross": 1, "box": 1, "sliding": 8}[self.neighbourhood]

    def guide_is_local(self, layout: WindowLayout) -> bool:
        """Whether guide tokens see only the blocks within `guide_reach`."""
        if self.guide_to_guide == "auto":
            return layout.guide_tokens > FULL_GUIDE
        return self.guide_to_guide == "local"
