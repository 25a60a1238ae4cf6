"""Attention other than the backbone's own, as a setting of a recipe."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from pydantic import Field

from uhr.base.config import Config
from uhr.base.errors import UserError
from uhr.models.attention.window_rules import WindowRules
from uhr.models.specs.spec import ModelSpec

if TYPE_CHECKING:
    import torch

    from uhr.models.families.conditions import Condition


class CallAttention(Protocol):
    """The attention of the calls in training."""

    def attended(self, condition: Condition, noisy: torch.Tensor, guide: torch.Tensor | None) -> Condition:
        """Add the attention to a call's conditioning.

        noisy: the image's latents [B, C, h, w]. guide: the guide's model latents [B, C, h/ratio, w/ratio], or
        None.
        """
        ...


class ProportionalAttention:
    """Attention to all tokens, sharpened by their number, as samplers do at sizes above the native one."""

    def attended(self, condition: Condition, noisy: torch.Tensor, guide: torch.Tensor | None) -> Condition:
        from uhr.models.attention.proportional import Proportional

        return replace(condition, attention=Proportional())


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

    def check_sizes(
        self, spec: ModelSpec, name: str, sizes: Iterable[tuple[int, int]], guide: int | None
    ) -> None:
        """Raise UserError for data sets without the guide, or with sizes that do not consist of windows.

        name: of the data in errors. sizes: (height, width) in px. guide: the side of an image over that of
        its stored guide; None without one.
        """
        from uhr.models.attention.layout import WindowLayout

        if guide != self.ratio:
            has = "no guide" if guide is None else f"a guide of 1/{guide} of the side"
            fix = f"encode with `uhr train encode --set guide={self.ratio}`"
            raise UserError(f"{name} has {has}, and the recipe's windows read one of 1/{self.ratio}", fix)
        window = self.for_model(spec).window
        assert window is not None
        # raises UserError for a window that the ratio does not divide
        WindowLayout(window, window, window, self.ratio)
        unit = spec.pixel_multiple * window
        for height, width in sizes:
            if height % unit or width % unit:
                what = f"{name} has images of {width}x{height} px, and windows of {window} tokens need"
                fix = "encode with `uhr train encode --set buckets=[...]`, or set windows.window"
                raise UserError(f"{what} multiples of {unit} px", fix)

    def attended(self, condition: Condition, noisy: torch.Tensor, guide: torch.Tensor | None) -> Condition:
        from uhr.models.attention.call import Windows
        from uhr.models.attention.guide import Guide
        from uhr.models.attention.layout import WindowLayout
        from uhr.models.ops.latents import pack

        assert self.window is not None
        height, width = noisy.shape[-2:]
        layout = WindowLayout(height // 2, width // 2, self.window, self.ratio)
        of_image = None if guide is None else Guide(pack(guide))
        return replace(condition, attention=Windows(layout, self.rules, of_image))
