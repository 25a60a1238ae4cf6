"""The rules of windowed attention: which tokens attend to which, as options. `mask.py` computes them.

UltraGen's tokens are text (T), image (X) and guide (Y):

    query \\ key   text              X                          Y
    text           yes               yes                        never
    X (window i)   yes               window i and neighbours    the guide window of the same area
    Y              `guide_to_text`   never                      all of Y, or near blocks

That is the paper's mask. The official code has three others, which differ from it and from each other;
where they offer a real choice it is an option here, and its default is the paper's:

- `neighbourhood`: the paper has "adjacent" and its figures suggest all eight neighbours ("box", the
  default). One of the code's builders writes "own" and calls it four neighbours ("cross"); its training mask
  is a "sliding" one, 8 tokens to each side of every query token.
- `image_to_guide`: "own" is the paper's; "all" is the code's training mask.
- `guide_to_text`: True as in the code's training mask; its inference mask leaves the text out.
- `guide_to_guide`: the paper's global attention ("full") is quadratic in M: 8 % of all pairs at 4K, 23 % at
  8K. "auto" is full up to 8K (16,384 guide tokens), so that an 8K image has the global guide of the paper,
  and above that "local": a guide token sees its block of 16 x 16 guide tokens and the blocks within
  `guide_reach`, 2 by default. The code's inference mask allows 2 tokens only, so its guide is not global.

Text never sees the guide and the guide never sees the image; there is no option for it. So the guide depends
on the noisy image only through the text that it sees, and not at all without `guide_to_text` (`guide.py` says
what that means for its cache).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import pydantic

from uhr.base.config import Config

if TYPE_CHECKING:
    from uhr.models.attention.layout import WindowLayout

FULL_GUIDE = 16384
"""Guide tokens (those of an 8K image) up to which "auto" lets all of them see each other."""


class WindowRules(Config):
    """The options of the mask.

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
