"""RealUHR's patch cascade as a plan: which patches, which noise levels, what the backbone is told of them.

No code of RealUHR was ever published; what the paper leaves open is marked so in `PatchCascadeOptions`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from uhr.base.errors import UserError
from uhr.models import schedules
from uhr.models.patches import Box, grid
from uhr.models.samplers.options import PatchCascadeOptions
from uhr.models.sizes import Size
from uhr.models.stages import Ask, Stage

USUAL_SCALE = 4.0
"""Of a picture, where neither scale nor size is named (figure 7)."""


@dataclass(frozen=True)
class PatchStage(Stage):
    """Every patch through the same steps: `sigmas` are the true noise levels, `labels` [steps] those that the
    backbone is told. `boxes` in px, ordered by their top, all of one size, neighbours at least `overlap` px
    over each other. `calls` is the number of patches, however many (`batch`) share a pass."""

    boxes: tuple[Box, ...] = ()
    labels: tuple[float, ...] = ()
    overlap: int = 0
    batch: int = 1

    @property
    def rounds(self) -> int:
        return -(-len(self.boxes) // self.batch)

    @property
    def patch(self) -> Size:
        return self.boxes[0].height, self.boxes[0].width

    def describe(self) -> dict[str, Any]:
        more = {"labels": list(self.labels), "patch": list(self.patch), "overlap": self.overlap}
        return {**super().describe(), **more}


def patch_stage(ask: Ask, options: PatchCascadeOptions) -> PatchStage:
    """The patches of a picture of `ask.size` px. A side shorter than a patch makes patches that short."""
    patch, multiple = options.patch or ask.native, ask.multiple
    if patch % multiple:
        near = max(multiple, patch // multiple * multiple)
        raise UserError(f"patches of {patch} px", f"give a multiple of {multiple}: {near}, say")
    if max(ask.size) < patch:
        wide = f"{ask.width}x{ask.height}"
        fix = f"ask for a larger picture, or set patch={max(ask.size)}"
        raise UserError(f"a picture of {wide} is smaller than one patch of {patch} px", fix)
    overlap = round(options.overlap * patch / multiple) * multiple
    boxes = grid(ask.height, ask.width, patch, overlap, multiple)
    levels = schedules.patch_schedule(options.schedule, ask.steps, options.gamma, options.alpha, options.p)
    return PatchStage(
        "patches",
        ask.height,
        ask.width,
        tuple(levels.sigmas.tolist()),
        calls=len(boxes),
        boxes=tuple(boxes),
        labels=tuple(levels.labels.tolist()),
        overlap=overlap,
        batch=options.batch,
    )
