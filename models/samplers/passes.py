"""The passes that staged samplers are put together from: a base picture, an enlargement, a guided path above
the native size."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from pydantic import ByteSize

from uhr.base.errors import UserError
from uhr.models import flow, surgery, swin
from uhr.models.conditions import Conditions
from uhr.models.filters import ENLARGEMENTS, sharpen
from uhr.models.hr_toolkit import Native, Toolkit
from uhr.models.offload import clear
from uhr.models.pipelines import SamplerPipeline, StepEnd
from uhr.models.sizes import Size
from uhr.models.stages import Ask, Stage
from uhr.models.text import notes_of
from uhr.models.vae.room import room_of
from uhr.models.vae.tiled import ExactTiling

Guided = Callable[[torch.Tensor, float, int, Conditions], torch.Tensor]
"""`velocity(z, sigma, step, said)` at z [B, C, H, W] of noise level sigma: of z's shape."""


@dataclass
class Job:
    """One call on its way through the stages of its plan. `steps_done` counts on from stage to stage."""

    options: Any
    ask: Ask
    target: Size
    plan: list[Stage]
    told: Sequence[Conditions]
    """What the backbone is told in each stage of the plan."""

    text: int
    """Text tokens that the backbone was trained with."""

    generator: Any
    step_end: StepEnd
    picture: torch.Tensor | None
    """Pixels in place of the base pass, [B, 3, h, w] in [-1, 1]."""

    latents: torch.Tensor | None
    """Noise of the first stage, packed [B, N, 4C]; None once it is used."""

    preview: Callable[[torch.Tensor], None] | None
    steps_done: int = 0

    @property
    def native(self) -> Native:
        return Native(self.ask.native_side, self.text)

    @property
    def batch(self) -> int:
        return self.told[0].positive.text.shape[0]


class Passes(SamplerPipeline):
    """Operations on z [B, C, H, W] of any size. After a run, `stages` are those that were run, `surgeries`
    what was on the models meanwhile, `settings` the options with every preset's value filled in."""

    stages: Sequence[Stage] = ()
    told_guidance: Sequence[float | None] = ()
    """Of each stage of the last call's plan."""

    surgeries: Sequence[dict[str, Any]] = ()
    settings: Any = None
    notes: Sequence[str] = ()
    """What a reader of the last run's picture must know of it, besides what was cut off its prompts and what
    of the scheduler's settings did not act."""

    schedule_notes: Sequence[str] = ()

    _bar: Any = None

    def details(self) -> dict[str, Any]:
        """JSON for the picture's record: what was run, on which models."""
        told = {} if self.settings is None else {"settings": self.settings.model_dump(mode="json")}
        return {
            "stages": [
                {**stage.describe(), "guidance": guidance}
                for stage, guidance in zip(self.stages, self.told_guidance, strict=False)
            ],
            "surgeries": list(self.surgeries),
            "text_tokens": [count.describe() for count in self.token_counts],
            "notes": [*self.notes, *self.schedule_notes, *notes_of(self.token_counts)],
            **told,
        }

    def base(self, job: Job, keep: Callable[[torch.Tensor], None] | None = None) -> torch.Tensor:
        """z of the base pass: the plan's first stage, from pure noise. `keep` is shown the clean estimate of
        each step."""
        stage = job.plan[0]

        def velocity(z: torch.Tensor, sigma: float, step: int, said: Conditions) -> torch.Tensor:
            v = self.field(z, sigma, said)
            if keep is not None:
                keep(flow.data_estimate(z, v, sigma))
            return v

        return self.follow(job, stage, self.fresh(job, stage), velocity)

    def fresh(self, job: Job, stage: Stage) -> torch.Tensor:
        """Standard normal z of a stage: the call's own for the first that asks for it, drawn for others."""
        given, job.latents = job.latents, None
        if given is None:
            return self.noise(job.batch, *stage.size, job.generator)
        grid = self.grid(*stage.size)
        if given.ndim != 3 or given.shape[:2] != (job.batch, grid[0] * grid[1]):
            shape = f"[{job.batch}, {grid[0] * grid[1]}, 4C]"
            raise UserError(f"latents of shape {list(given.shape)}", f"give packed noise of shape {shape}")
        return self.unpack(given.to(self._execution_device, torch.float32), grid)

    def enlarge(
        self,
        pixels: torch.Tensor,
        stage: Stage,
        sharpening: float | None = None,
        generator: Any = None,
        by: str = "bicubic",
    ) -> torch.Tensor:
        """z of a picture brought to the stage's size (`filters.ENLARGEMENTS`), and sharpened with a Gaussian
        of this sigma if one is given: the posterior's mean, or with a generator a sample of it."""
        large = ENLARGEMENTS[by](pixels, *stage.size)
        return self.encode(large if sharpening is None else sharpen(large, sharpening), generator)

    def follow(
        self,
        job: Job,
        stage: Stage,
        z: torch.Tensor,
        velocity: Guided | None = None,
        toolkit: Toolkit | None = None,
    ) -> torch.Tensor:
        """Euler over a stage of the plan from z, which is at its first noise level, along `velocity` (`field`
        if None), with `toolkit` on meanwhile."""
        grid = self.grid(*stage.size)
        said, kit = job.told[job.plan.index(stage)], contextlib.nullcontext([])
        if toolkit is not None:
            said = toolkit.told(said, grid, job.native)
            kit = toolkit.on(self, grid[0] * grid[1], job.native)

        def along(packed: torch.Tensor, sigma: float, step: int, said: Conditions) -> torch.Tensor:
            at = self.unpack(packed, grid)
            return self.pack(
                self.field(at, sigma, said) if velocity is None else velocity(at, sigma, step, said)
            )

        self.stages = (*self.stages, stage)
        with kit as surgeries:
            self._note(surgeries)
            found = self.integrate(self.pack(z), stage.sigmas, said, self._numbered(job), along)
        flow.check_finite(found, f"stage {stage.name}: its latents")
        job.steps_done += stage.steps
        return self.unpack(found, grid)

    def field(self, z: torch.Tensor, sigma: float, said: Conditions) -> torch.Tensor:
        """The guided velocity at z of any even size, whose positions count from 0."""
        grid = z.shape[-2] // 2, z.shape[-1] // 2
        tokens = self.guided_velocity(self.pack(z), sigma, said.at(self.image_ids(grid)))
        return self.unpack(tokens, grid)

    def ringed(
        self, job: Job, z: torch.Tensor, sigma: float, ring: swin.Ring, width: int = 1
    ) -> torch.Tensor:
        """z with a ring of `width` positions around it (`swin.pad`), its noise from the call's generator."""
        height, across = (self.vae_scale_factor * (side + 2 * width) for side in z.shape[-2:])
        return swin.pad(z, sigma, ring, lambda: self.noise(z.shape[0], height, across, job.generator), width)

    def swung(self, job: Job, z: torch.Tensor, sigma: float, step: int, said: Conditions) -> torch.Tensor:
        """`field` with swin patchify, whose ring the job's options name."""
        if not swin.shifts(step):
            return self.field(z, sigma, said)
        return swin.crop(self.field(self.ringed(job, z, sigma, job.options.ring), sigma, said))

    def _numbered(self, job: Job) -> StepEnd:
        """The user's callback, its step counted on from the stages before."""
        callback, done = job.step_end.callback, job.steps_done
        if callback is None:
            return job.step_end
        return replace(job.step_end, callback=lambda p, step, time, kw: callback(p, done + step, time, kw))

    def _note(self, surgeries: Sequence[surgery.Surgery]) -> None:
        for described in (each.describe() for each in surgeries):
            if described not in self.surgeries:
                self.surgeries = (*self.surgeries, described)

    @contextlib.contextmanager
    def exact_vae(self) -> Generator[None]:
        """Exact tiling for the length of a call, in the memory that the device has for it, unless something
        else splits the VAE already, or there is none."""
        clear(self)
        taken = self.vae is None or any("vae._encode" in each.seats for each in surgery.applied(self.vae))
        if taken or getattr(self.vae, "use_tiling", False):
            yield
            return
        tiling = ExactTiling(memory=ByteSize(room_of(self)))
        with surgery.temporarily(self.vae, tiling):
            self._note([tiling])
            yield

    @contextlib.contextmanager
    def one_bar(self, total: int) -> Generator[None]:
        """One bar over all calls of the backbone, whatever their stage."""
        with self.progress_bar(total=total) as bar:
            self._bar = bar
            try:
                yield
            finally:
                self._bar = None

    def begin(self, step_end: StepEnd, attention: dict[str, Any] | None) -> None:
        super().begin(step_end, attention)
        self.stages, self.surgeries, self.told_guidance = (), (), ()
        self.notes, self.schedule_notes = (), ()

    def velocity(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        found = super().velocity(*args, **kwargs)
        if self._bar is not None:
            self._bar.update()
        return found
