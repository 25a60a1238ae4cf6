"""UltraGen's windowed attention with a guide, as a setting of a recipe."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pydantic import Field

from uhr.base.config import Config
from uhr.models.attention.window_rules import WindowRules
from uhr.models.specs.spec import ModelSpec

if TYPE_CHECKING:
    import torch

    from uhr.models.families.conditions import Condition


class GuideWindows(Config):
    """Image tokens attend within windows, and to the tokens of a clean guide at a lower resolution.

    ratio: side of the image over that of the guide (UltraGen 2510.16325: 4).
    window: side of a window in image tokens; None is a quarter of the native grid (16 on FLUX).
    rules: which tokens attend to which; the default is the paper's mask.
    """

    ratio: int = Field(default=4, ge=1)
    window: int | None = Field(default=None, ge=1)
    rules: WindowRules = WindowRules()

    def for_model(self, spec: ModelSpec) -> GuideWindows:
        """The same with the side of a window as a number."""
        from uhr.models.attention.layout import window_side

        side = spec.native_size // spec.pixel_multiple
        return self.model_copy(update={"window": self.window or window_side(side, self.ratio)})

    def attended(self, condition: Condition, noisy: torch.Tensor, guide: torch.Tensor | None) -> Condition:
        """Add the attention to a call's conditioning.

        noisy: the image's latents [B, C, h, w]. guide: the guide's model latents [B, C, h/ratio, w/ratio].
        """
        from uhr.models.attention.call import Windows
        from uhr.models.attention.guide import Guide
        from uhr.models.attention.layout import WindowLayout
        from uhr.models.ops.latents import pack

        assert self.window is not None
        height, width = noisy.shape[-2:]
        layout = WindowLayout(height // 2, width // 2, self.window, self.ratio)
        of_image = None if guide is None else Guide(pack(guide))
        return replace(condition, attention=Windows(layout, self.rules, of_image))
