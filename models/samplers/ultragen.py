"""UltraGen: a low-resolution picture guides a large one that is painted in local windows of attention."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from uhr.base.errors import UserError
from uhr.models import flow, surgery
from uhr.models.adapters.guide_only import guide_only
from uhr.models.attention.call import AttentionCalls, Windows
from uhr.models.attention.flex import BlockMasks
from uhr.models.attention.guide import Guide
from uhr.models.attention.layout import WindowLayout
from uhr.models.conditions import Condition, Conditions
from uhr.models.costs.work import Calls, Coding, Guided, Windowed
from uhr.models.filters import bicubic
from uhr.models.hr_toolkit import POSITIONS
from uhr.models.patches import grid
from uhr.models.pipelines import StepEnd
from uhr.models.projection import cosine_weight, project, velocity_towards
from uhr.models.rope_surgeries import RopeNtk
from uhr.models.samplers.families import OnFlux1, OnFlux2
from uhr.models.samplers.passes import Job
from uhr.models.samplers.staged import Staged
from uhr.models.samplers.ultragen_plan import (
    UltraGenOptions,
    code_weight,
    coded_stages,
    filled,
    layout_of,
    stage_sizes,
    window_of,
)
from uhr.models.spec import GuidanceKind
from uhr.models.stages import Ask, Stage, sized

UNADAPTED = (
    "unadapted: no adapter on this model acts on guide tokens, which it was not trained to read. Fetch "
    "UltraGen's LoRA for this backbone (github.com/PeterYYZhang/Scale-DiT links it) and give it with "
    "--adapter, or train one: a LoRA of rank 16 on to_q, to_k, to_v, masked to guide tokens "
    "(surgery token-masked-lora)"
)

Pixels = Callable[[], Any]
"""The picture below a stage, [B, 3, h, w], decoded when it is first asked for."""


@dataclass
class Attending:
    """What a stage's calls attend by: `Windows` of its own for each branch of guidance, since a cached guide
    belongs to one text."""

    layout: WindowLayout
    guide: torch.Tensor | None
    """The guide's tokens [B, M, 4C]."""

    options: UltraGenOptions
    masks: BlockMasks
    branches: dict[str, Windows] = field(default_factory=dict)

    def of(self, branch: str) -> Windows:
        if branch not in self.branches:
            guide = None if self.guide is None else Guide(self.guide, cached=self.options.cached)
            windows = Windows(self.layout, self.options.rules, guide, self.options.backend, self.masks)
            self.branches[branch] = windows
        return self.branches[branch]


class UltraGen(Staged):
    """UltraGen (Scale-DiT, 2510.16325, section 3): a base picture at the native size, enlarged, noised to
    the level after 10 of 28 steps (0.84375 under static shift 3), and painted on by the last 18 with
    hierarchical local attention. Every window sees itself, its neighbours, the text, and the part of the
    guide that covers the same area: the picture below at a quarter of the side, clean, at timestep 0.

    Calls on FLUX.1-dev at 4K: 28 + 18. At 8K the guide is of 2048 px, which is painted first, in the same way
    (28 + 18 + 18). Sides are multiples of the window, 256 px on FLUX.

    Where the picture below has the guide's size, its latents are the guide; otherwise it is resized in pixels
    and encoded. Ids are float32, where the code's collide above 4096 px. `attention/rules.py` has the masks
    to choose from; none is dilated to a kernel's tiles as the code's is.
    """

    Options = UltraGenOptions
    guided = True
    above_native = True
    native_times = 4
    published_steps = 28
    published_guidance = 4.5
    published_cfg = 8.0
    """`guidance_high` where guidance takes two passes."""

    _attending: Attending | None = None
    _block_masks: BlockMasks | None = None

    @classmethod
    def guidance_above(cls, kind: GuidanceKind, options: Any, index: int) -> float | None:
        return cls.published_cfg if kind == "cfg" else super().guidance_above(kind, options, index)

    @classmethod
    def unit(cls, ask: Ask, options: Any) -> int:
        return ask.multiple * window_of(options, ask.native_side)

    @classmethod
    def calls(cls, ask: Ask, options: Any, stage: Stage, text: int) -> tuple[Calls, ...]:
        if stage.name == "base":
            return super().calls(ask, options, stage, text)
        layout = layout_of(stage.size, ask.multiple, ask.native_side, options)
        guide: Guided = "none" if not options.guide else "kept" if options.cached else "in every call"
        return (Calls(stage.steps, layout.tokens, text, Windowed(layout, options.rules, guide)),)

    @classmethod
    def codings(cls, ask: Ask, options: Any, plan: Sequence[Stage]) -> list[tuple[Coding, ...]]:
        return coded_stages(ask, filled(ask, options), plan)

    @classmethod
    def plan(cls, ask: Ask, options: Any) -> list[Stage]:
        options = filled(ask, options)
        levels = ask.levels(options.shift, options.shift_factor)[options.skip :]
        stages = [sized(*size, levels) for size in stage_sizes(ask, options)]
        return stages if ask.picture else [ask.published_base(options.base_steps), *stages]

    def run(self, job: Job) -> Generator[torch.Tensor]:
        options = filled(job.ask, job.options)
        with guide_only(self.transformer, job.options.guide_adapters) as kept:
            job.options = options.model_copy(update={"guide_adapters": tuple(kept)})
            self.settings = job.options
            self.notes = () if kept else (UNADAPTED,)
            stages, z = job.plan, None
            if job.picture is None:
                with self._on(self._positions(job.options.base_ntk)):
                    z = self.base(job)
                yield z
                stages = stages[1:]
            for stage in stages:
                z = self._stage(job, stage, z)
                yield z

    def _stage(self, job: Job, stage: Stage, below: torch.Tensor | None) -> torch.Tensor:
        """z of a windowed stage; `below` is that of the one below it, None for the job's picture."""
        options, first = job.options, stage.sigmas[0]
        pixels = functools.cache(lambda: job.picture if below is None else self.decode(below))
        guide = self._reduced(stage, options.ratio, below, pixels) if options.guide else None
        start = data = self.fresh(job, stage)
        if first < 1 or options.projection != "off":
            data = self._enlarged(stage, options, below, pixels, guide)
            start = flow.interpolate(data, start, first)

        def projected(z: torch.Tensor, sigma: float, step: int, said: Conditions) -> torch.Tensor:
            v = self.field(z, sigma, said)
            if options.projection == "code":
                weight = code_weight(step, stage.steps, stage.steps + options.skip)
            else:
                weight = cosine_weight(step, stage.steps)
            return project(v, velocity_towards(z, data, sigma), weight)

        velocity = None if options.projection == "off" else projected
        wanted = [AttentionCalls(), *self._positions(options.ntk)]
        layout = layout_of(stage.size, self.pixel_multiple, job.native.side, options)
        self.pieces = grid(*stage.size, layout.window * self.pixel_multiple, overlap=0)
        with self._on(wanted), self._attend(layout, guide, options):
            return self.follow(job, stage, start, velocity)

    def _reduced(self, stage: Stage, ratio: int, below: torch.Tensor | None, pixels: Pixels) -> torch.Tensor:
        """z of the picture below at 1/ratio of the stage's size; as it is where it has that size."""
        size = stage.height // ratio, stage.width // ratio
        latents = tuple(side // self.vae_scale_factor for side in size)
        if below is not None and tuple(below.shape[-2:]) == latents:
            return below
        return self.encode(bicubic(pixels(), *size))

    def _enlarged(
        self,
        stage: Stage,
        options: UltraGenOptions,
        below: torch.Tensor | None,
        pixels: Pixels,
        guide: torch.Tensor | None,
    ) -> torch.Tensor:
        """z of the picture below at the stage's size; of a given picture's latents, those of the guide."""
        if options.warm_start == "pixels":
            return self.enlarge(pixels(), stage, options.sharpening)
        latents = guide if below is None else below
        if latents is None:
            latents = self._reduced(stage, options.ratio, below, pixels)
        return bicubic(latents, *(side // self.vae_scale_factor for side in stage.size))

    def velocity(
        self, tokens: torch.Tensor, sigma: float, condition: Condition, branch: str = "cond"
    ) -> torch.Tensor:
        """One call, in windows while a stage attends by them."""
        if self._attending is None:
            return super().velocity(tokens, sigma, condition, branch)
        before = self._joint_attention_kwargs
        self._joint_attention_kwargs = {**(before or {}), "attention": self._attending.of(branch)}
        try:
            return super().velocity(tokens, sigma, condition, branch)
        finally:
            self._joint_attention_kwargs = before

    def begin(self, step_end: StepEnd, attention: dict[str, Any] | None) -> None:
        super().begin(step_end, attention)
        self.notes = ()

    @contextlib.contextmanager
    def _attend(
        self, layout: WindowLayout, guide: torch.Tensor | None, options: UltraGenOptions
    ) -> Generator[None]:
        """Windows for the length of a block; the guide's cache ends with it, block masks are kept."""
        self._block_masks = self._block_masks or BlockMasks()
        tokens = None if guide is None else self.pack(guide)
        self._attending = Attending(layout, tokens, options, self._block_masks)
        try:
            yield
        finally:
            self._attending = None

    @contextlib.contextmanager
    def _on(self, wanted: Sequence[surgery.Surgery]) -> Generator[None]:
        """Surgeries of the transformer for the length of a block, where they are not on it already."""
        there = surgery.applied(self.transformer)
        with surgery.temporarily(self.transformer, *(each for each in wanted if each not in there)):
            self._note(wanted)
            yield

    def _positions(self, ntk: float) -> list[surgery.Surgery]:
        if ntk == 1:
            return []
        wanted = RopeNtk(factor=ntk)
        scaled = [each for each in surgery.applied(self.transformer) if POSITIONS in each.seats]
        if scaled and scaled[0] != wanted:
            what = f"the positions are already scaled by '{scaled[0].key}'"
            raise UserError(what, "keep it and set ntk=1 and base_ntk=1, or revert it")
        return [wanted]


class UltraGenPipeline(UltraGen, OnFlux1):
    """UltraGen on FLUX.1."""


class Flux2UltraGenPipeline(UltraGen, OnFlux2):
    """UltraGen on FLUX.2 [klein], the family of its newest code."""
