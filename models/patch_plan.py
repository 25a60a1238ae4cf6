"""RealUHR's patch cascade as a plan: which patches, which noise levels, what the backbone is told of them.

No code of RealUHR was ever published; what the paper leaves open is marked so in `PatchCascadeOptions`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field

from uhr.base.errors import UserError
from uhr.models import schedules
from uhr.models.patches import Box, grid
from uhr.models.planning import SamplerOptions
from uhr.models.sizes import Size
from uhr.models.stages import Ask, Stage

USUAL_SCALE = 4.0
"""Of a picture, where neither scale nor size is named (figure 7)."""


class PatchCascadeOptions(SamplerOptions):
    """What `--set` can change of patch-cascade, or keyword arguments of a call.

    gamma:          noise level at which patches begin, the creativity: 0.3 stays faithful, 0.8 reinvents
                    (figure 7). The paper gives no default for text to image; 0.4 is ours, nearer to the
                    faithful end. 1 starts from pure noise, the ablation "w/o Patch Init" (table 3)
    schedule:       of the patches (`schedules.patch_schedule`): warped-labels is Algorithm 1, warped-grid the
                    paper's prose; uniform, logarithmic, cosine are its ablation (table 2)
    alpha, p:       of the time warp (eq. 6); the paper's best
    overlap:        of neighbouring patches, at least this share of a patch's side. Not given in the paper;
                    its times of 38 s at 2K and 108 s at 4K (table 1), as one share and one of each patch,
                    allow 37 to 50 %; 0.375, ours, is the cheaper end: 9 and 36 patches, where 0.5 makes 9
                    and 49. It is also the width of the feather
    patch:          side of a patch in px; None is the native size
    batch:          patches in one pass of the backbone; it changes no more than rounding
    shared_noise:   patches are cut from one noise, so that neighbours agree where they overlap. Not in the
                    paper; without it every patch draws its own
    true_cfg_scale: w of the patches: above 1 it wants a negative prompt ("" is the null condition) and
                    doubles their calls. The paper leaves open whether inference is guided; 1 is one pass
    patch_guidance: what a backbone with embedded guidance is told on the patches: 1.0 is no guidance, what
                    we train the adaptation with: the paper only says that theta does not depend on it.
                    With a picture a call's own guidance is that of the patches
    base_adapters:  adapters that act on the base pass as well: names, or "all". By default it is made by the
                    original model, and adapters are for the patches
    base_steps:     of the base pass; None is what the model's card says
    """

    gamma: float = Field(default=0.4, gt=0, le=1)
    schedule: str = "warped-labels"
    alpha: float = 0.15
    p: float = 2.0
    overlap: float = Field(default=0.375, ge=0, lt=1)
    patch: int | None = Field(default=None, gt=0)
    batch: int = Field(default=1, gt=0)
    shared_noise: bool = True
    patch_guidance: float = 1.0
    base_adapters: tuple[str, ...] | Literal["all"] = ()
    base_steps: int | None = Field(default=None, gt=0)


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
