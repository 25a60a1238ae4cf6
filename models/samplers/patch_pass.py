"""The patches of a patch cascade: what they are told, where they begin, how they come together."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Sequence
from dataclasses import replace
from typing import Any

import torch

from uhr.base.errors import UserError
from uhr.models import flow
from uhr.models.adapters import peft_layers
from uhr.models.adapters.silence import only
from uhr.models.conditions import Condition, Conditions, Words
from uhr.models.enlarge import bicubic_at, reflected
from uhr.models.patch_plan import PatchCascadeOptions, PatchStage
from uhr.models.patches import Box, feather
from uhr.models.pipelines import StepEnd
from uhr.models.samplers.passes import Job
from uhr.models.samplers.staged import Staged
from uhr.models.sizes import Size
from uhr.models.stages import Stage
from uhr.models.strips import Gathered, StripCanvas

UNADAPTED = (
    "unadapted: no adapter acts on the patches, which the checkpoint paints as it stands. RealUHR's weights "
    "were never published; an adapter that was trained for patches goes in with --adapter"
)


class PatchPass(Staged):
    """Operations of PatchCascade."""

    _together: int = 1
    """Patches in each pass of the backbone."""

    def begin(self, step_end: StepEnd, attention: dict[str, Any] | None) -> None:
        super().begin(step_end, attention)
        self._together = 1
        self.notes = () if peft_layers.active(self.transformer) else (UNADAPTED,)

    def velocity(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """As ever; every patch in it counts as a call."""
        found = super().velocity(*args, **kwargs)
        more = self._together - 1
        self.model_calls += more
        if more and self._bar is not None:
            self._bar.update(more)
        return found

    def say(self, words: Words, plan: Sequence[Stage], options: PatchCascadeOptions) -> list[Conditions]:
        """What the backbone is told in the base pass and of a patch: the same words, another guidance."""
        patches = plan[-1]
        assert isinstance(patches, PatchStage)
        kind, *base, of_patches = self.guidance_kind, *self.told_guidance
        grid, scale = self.grid(*patches.patch), 1.0 if kind == "cfg" else options.true_cfg_scale
        said = self.conditions(words, grid, scale, self.told_guidance)
        told = said.guided(kind, of_patches)
        if not base:
            return [told]
        if self._text_changes(options):
            with self.original(options):
                said = self.conditions(words, grid, scale, self.told_guidance)
        if kind != "cfg":
            said = Conditions(said.positive)
        return [said.guided(kind, base[0]).at(self.image_ids(self.grid(*plan[0].size))), told]

    @contextlib.contextmanager
    def original(self, options: PatchCascadeOptions) -> Generator[None]:
        """Without the adapters that are for the patches alone."""
        if options.base_adapters == "all":
            yield
            return
        encoder = getattr(self, "text_encoder", None)
        models = [self.transformer] if encoder is None else [self.transformer, encoder]
        with only(models, options.base_adapters):
            yield

    def _text_changes(self, options: PatchCascadeOptions) -> bool:
        """Whether the words read otherwise without those adapters."""
        encoder = getattr(self, "text_encoder", None)
        if encoder is None or options.base_adapters == "all":
            return False
        return not set(peft_layers.active(encoder)) <= set(options.base_adapters)

    def run(self, job: Job) -> Generator[torch.Tensor]:
        """The base pass, by the original model: the only stage that has a z of its own. Patches come together
        in pixels, see `painted`."""
        if job.picture is None:
            with self.original(job.options):
                z = self.base(job)
            yield z

    def painted(self, job: Job, base: torch.Tensor, output_type: str) -> Any:
        """The base picture [B, 3, h, w] in [-1, 1] brought to the job's target, as `output_type` says."""
        stage = job.plan[-1]
        assert isinstance(stage, PatchStage)
        if job.latents is not None and not job.options.shared_noise:
            raise UserError("latents are given, and every patch draws its own noise", "set shared_noise=True")
        self.stages, self.pieces = (*self.stages, stage), stage.boxes
        shared = self.fresh(job, stage) if job.options.shared_noise else None
        whole = Gathered(job.batch, job.target, exact=output_type != "pil")
        canvas = StripCanvas(job.batch, 3, stage.width, whole.write)
        for first in range(0, len(stage.boxes), job.options.batch):
            boxes = stage.boxes[first : first + job.options.batch]
            anchors = torch.cat([_anchor(base, job.target, stage.size, box) for box in boxes])
            patches = anchors if self.interrupt else self._paint(job, stage, boxes, anchors, shared)
            for box, patch in zip(boxes, patches.chunk(len(boxes)), strict=True):
                canvas.add(box, patch, feather(box, *stage.size, stage.overlap))
        canvas.finish()
        if output_type == "pil":
            return whole.pil()
        if output_type == "latent":
            return self.pack(self.encode(whole.values))
        return self.image_processor.postprocess(whole.values, output_type=output_type)

    def _paint(
        self,
        job: Job,
        stage: PatchStage,
        boxes: Sequence[Box],
        anchors: torch.Tensor,
        shared: torch.Tensor | None,
    ) -> torch.Tensor:
        """Patches [patches * B, 3, h, w] from the enlarged picture's; those themselves if interrupted."""
        noise = torch.cat([self._noise_of(job, box, shared) for box in boxes])
        z = flow.interpolate(self.encode(anchors), noise, stage.sigmas[0])
        steps = 0

        def along(tokens: torch.Tensor, sigma: float, step: int, said: Conditions) -> torch.Tensor:
            nonlocal steps
            steps += 1
            return self.guided_velocity(tokens, stage.labels[step], said)

        self._together = len(boxes)
        said = job.told[-1].map(lambda condition: _repeated(condition, len(boxes)))
        tokens = self.integrate(self.pack(z), stage.sigmas, said, self._numbered(job), along)
        flow.check_finite(tokens, f"stage {stage.name}: its latents")
        job.steps_done += stage.steps
        if steps < stage.steps:
            return anchors
        return self.decode(self.unpack(tokens, self.grid(*stage.patch)))

    def _noise_of(self, job: Job, box: Box, shared: torch.Tensor | None) -> torch.Tensor:
        if shared is None:
            return self.noise(job.batch, box.height, box.width, job.generator)
        factor = self.vae_scale_factor
        return Box(*(side // factor for side in (box.top, box.left, box.height, box.width))).crop(shared)


def _anchor(picture: torch.Tensor, target: Size, padded: Size, box: Box) -> torch.Tensor:
    """The box of a picture [B, 3, h, w] that is enlarged to `target` and continued to `padded`."""
    rows = reflected(target[0], padded[0])[box.top : box.bottom]
    columns = reflected(target[1], padded[1])[box.left : box.right]
    return bicubic_at(picture, target, rows, columns)


def _repeated(condition: Condition, times: int) -> Condition:
    """For so many patches of each picture, patch by patch."""

    def rows(x: torch.Tensor | None) -> torch.Tensor | None:
        return None if x is None else torch.cat([x] * times)

    text = torch.cat([condition.text] * times)
    return replace(condition, text=text, pooled=rows(condition.pooled), guidance=rows(condition.guidance))
