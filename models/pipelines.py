"""What every sampler shares as a diffusers pipeline: prompts, guidance, model calls, pictures in and out.

How to write one. Derive from `samplers.staged.Staged`, name its `Options`, and write `plan` and `run` with
the methods below, which mean the same on every family of backbones:

    grid          (rows, columns) of image tokens of a size in px; UserError for one that cannot be made
    schedule      noise levels by a shift policy
    conditions    prompts to what the backbone is told; `said.at(self.image_ids(grid))` for another grid
    noise         standard normal z;  pack, unpack between z [B, C, H, W] and tokens [B, N, 4C]
    encode        pictures to z;  decode: z to pictures;  shown: z to what `output_type` asks for
    velocity      one call of the backbone;  guided_velocity: one, or two with a negative prompt
    integrate     Euler steps with callback and interruption

and those of `samplers.passes.Passes`: base pass, enlargement, a guided path over a stage. What its stages ask
of backbone and VAE, where it is not what `costs.work.Costed` takes for granted, it says there.
Then bind it to families: `class EulerPipeline(Euler, OnFlux1)`, `class Flux2EulerPipeline(Euler, OnFlux2)`,
and name them in `samplers.SAMPLERS`. Differences to the stock pipelines: latents stay in float32 between
steps and position ids in float32 always, whatever the backbone's dtype; sigmas come from `schedules.py`;
guidance that a call leaves out is the model card's; every call of the backbone is counted.
"""

from __future__ import annotations

import contextlib
import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.utils.torch_utils import randn_tensor

from uhr.base.console import Advance
from uhr.base.errors import UserError
from uhr.models import flow, registry
from uhr.models import latents as latent
from uhr.models.conditions import Condition, Conditions, Prompt, Words
from uhr.models.loading_checks import checked_loading
from uhr.models.patches import Box
from uhr.models.planning import Planning
from uhr.models.scheduler_config import SchedulerConfig
from uhr.models.sizes import check_sides
from uhr.models.spec import GuidanceKind, ModelSpec, ShiftPolicy
from uhr.models.text import Embedded, TokenCount, notes_of
from uhr.models.vae.f16 import vae_factor

logger = logging.getLogger(__name__)

OnStepEnd = Callable[[Any, int, torch.Tensor, dict[str, Any]], dict[str, Any]]
"""diffusers' `callback_on_step_end(pipeline, step, timestep, tensors) -> tensors to go on with`."""

StepVelocity = Callable[[torch.Tensor, float, int, Conditions], torch.Tensor]
"""`velocity(x, sigma, step, said)` at x of noise level sigma, of x's shape."""


@dataclass(frozen=True)
class StepEnd:
    """What to call after each step, and the names of the tensors that it is shown."""

    callback: OnStepEnd | None = None
    names: Sequence[str] = ("latents",)


class _Watched:
    """In place of a bar: tells a pipeline's watcher."""

    def __init__(self, pipeline: SamplerPipeline) -> None:
        self.pipeline = pipeline

    def update(self, n: int = 1) -> None:
        stages = getattr(self.pipeline, "stages", ())
        if self.pipeline.watch is not None:
            self.pipeline.watch(n, note=stages[-1].name if stages else None)


class SamplerPipeline(Planning, DiffusionPipeline, ABC):
    """Base of the samplers, whatever the family. After a run, `model_calls` is how often it called the
    backbone, and `sigmas` the noise levels that it went through."""

    pooled: ClassVar[bool]
    """Whether the family takes a second text and a pooled embedding."""

    guided: ClassVar[bool] = False
    """Whether its calls have tokens of a guide, which adapters can be kept to."""

    model_calls: int = 0
    sigmas: tuple[float, ...] = ()

    pieces: Sequence[Box] = ()
    """Patches or windows, in px, that the last run's picture was put together from; none where it was painted
    whole."""

    token_counts: Sequence[TokenCount] = ()
    """How much of the last call's prompts was read; empty for embeddings that were given."""

    logs: bool = True
    """Whether a call logs what was cut off its prompts. `sampling.session` does not let it: there the record
    says it."""

    watch: Advance | None = None
    """Hears of progress in place of diffusers' bar: first `total`, then each call and its stage's name."""

    def details(self) -> dict[str, Any]:
        """JSON for the picture's record, of the last run: what only this sampler knows of it."""
        return {}

    @abstractmethod
    def embed(self, prompt: Prompt, length: int) -> Embedded:
        """What the stock pipeline makes of texts, at most `length` tokens of each, or of embeddings that are
        given."""

    def log_cuts(self, counts: Sequence[TokenCount]) -> None:
        """Log what was cut off texts, in one line; nothing where nothing was."""
        self.log(notes_of(counts))

    def log(self, notes: Sequence[str]) -> None:
        """Log them in one line; nothing where there are none."""
        if notes and self.logs:
            logger.warning("; ".join(notes))

    @property
    def vae_scale_factor(self) -> int:
        """Pixels per latent of the VAE that is loaded, per side: 8, or 16 of an F16 one. What diffusers'
        constructor counts, the VAE's levels, and writes here, is 8 for both."""
        return 8 if self.vae is None else vae_factor(self.vae)

    @vae_scale_factor.setter
    def vae_scale_factor(self, value: int) -> None:
        pass

    @property
    def spec(self) -> ModelSpec | None:
        """The spec that describes the loaded backbone; None where none does."""
        index = {**self.config, "_class_name": self.stock().__name__}
        return registry.find(index, self.transformer.config)

    @classmethod
    def stock(cls) -> type:
        """diffusers' own pipeline of the family."""
        return next(each for each in cls.__mro__ if each.__module__.startswith("diffusers."))

    def to_json_string(self) -> str:
        """As `save_pretrained` writes it into `model_index.json`: the stock pipeline's, which opens the
        folder wherever diffusers is; so does every sampler of the family."""
        told = {**json.loads(super().to_json_string()), "_class_name": self.stock().__name__}
        return json.dumps(told, indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        """As diffusers', from safetensors files unless `use_safetensors` says otherwise. Raises UserError
        where a component's files lack weights or hold others than its configuration has."""
        with checked_loading():
            return super().from_pretrained(
                pretrained_model_name_or_path, **{"use_safetensors": True, **kwargs}
            )

    @classmethod
    def load_config(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """As diffusers', read before anything is loaded; UserError for a checkpoint of another family."""
        found = super().load_config(pretrained_model_name_or_path, *args, **kwargs)
        name = (found[0] if isinstance(found, tuple) else found).get("_class_name")
        others = {spec.pipeline_class: spec.family for spec in registry.SPECS.values()}
        others.pop(cls.stock().__name__, None)
        if name in others:
            what = (
                f"{pretrained_model_name_or_path} is a {name}, and {cls.__name__} is for {cls.backbone.name}"
            )
            raise UserError(what, f"take the sampler's pipeline of {others[name]}")
        return found

    @property
    def pixel_multiple(self) -> int:
        """Height and width are multiples of this many px."""
        return 2 * self.vae_scale_factor

    @property
    def guidance_kind(self) -> GuidanceKind:
        """How this checkpoint is guided: embedded, none, or cfg."""
        return self.backbone.guidance_kind(self.transformer, self.config)

    def progress_bar(self, iterable: Any = None, total: int | None = None) -> Any:
        """diffusers' bar, or none while `watch` listens."""
        if self.watch is None or iterable is not None:
            return super().progress_bar(iterable, total)
        self.watch(0, total=total)
        return contextlib.nullcontext(_Watched(self))

    def begin(self, step_end: StepEnd, attention: dict[str, Any] | None) -> None:
        """Reset what diffusers' properties report, and the count of model calls."""
        wrong = [name for name in step_end.names if name not in self._callback_tensor_inputs]
        if wrong:
            known = ", ".join(self._callback_tensor_inputs)
            raise UserError(f"the step callback asks for {', '.join(wrong)}", f"known: {known}")
        # FLUX.1's name of it and FLUX.2's
        self._joint_attention_kwargs = self._attention_kwargs = attention
        self._current_timestep = None
        self._interrupt = False
        self.model_calls = 0
        self.pieces = ()
        self.token_counts = ()

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of image tokens of height x width px; UserError with the nearest sizes if none."""
        check_sides(self.pixel_multiple, height, width)
        return height // self.pixel_multiple, width // self.pixel_multiple

    def image_ids(self, grid: tuple[int, int]) -> torch.Tensor:
        """Position ids of a token grid: float32 [rows * columns, axes]."""
        return self.backbone.image_ids(*grid, device=self._execution_device)

    def schedule(
        self, steps: int, tokens: int, shift: ShiftPolicy | str | None = None, factor: float = 3.0
    ) -> list[float]:
        """steps + 1 noise levels from 1 to 0, shifted; `shift` None is as the scheduler is configured."""
        config = SchedulerConfig.of_scheduler(self.scheduler)
        return config.schedule(self.backbone, steps, tokens, shift, factor)

    def conditions(
        self,
        words: Words,
        grid: tuple[int, int],
        true_cfg_scale: float,
        guidances: Sequence[float | None],
    ) -> Conditions:
        """Encode both prompts for a grid of (rows, columns) image tokens; what they are `guided` by comes
        after.

        Where the backbone is guided by two passes ("cfg"), the stages' `guidances` are their scales, and the
        negative prompt is "" unless given; elsewhere `true_cfg_scale` is that of a negative prompt.
        """
        self._guidance_scale = words.guidance
        negative = words.negative
        if self.guidance_kind == "cfg" and not negative.given and set(guidances) != {1}:
            negative = Prompt("")
        count = words.positive.check("prompt", self.pooled)
        length = words.length or self.backbone.text_length(self.transformer)
        found = self.embed(words.positive, length)
        self.token_counts = found.counts
        said = self._condition(found, grid, words.pictures)
        if not negative.given:
            return Conditions(said)
        if negative.check("negative prompt", self.pooled) not in (1, count):
            what = f"{negative.count} negative prompts for {count} prompts"
            raise UserError(what, "give one, or one for each")
        other = self.embed(negative, length).called("negative")
        self.token_counts = (*found.counts, *other.counts)
        repeats = words.pictures * count // negative.count
        return Conditions(said, self._condition(other, grid, repeats), true_cfg_scale)

    def _condition(self, found: Embedded, grid: tuple[int, int], repeats: int) -> Condition:
        device, dtype = self._execution_device, self.transformer.dtype
        text = found.text.to(device, dtype).repeat_interleave(repeats, dim=0)
        pooled = found.pooled
        if pooled is not None:
            pooled = pooled.to(device, dtype).repeat_interleave(repeats, dim=0)
        text_ids = self.backbone.text_ids(text.shape[1], device)
        return Condition(text, pooled, text_ids, self.image_ids(grid), guidance=None)

    def noise(self, batch: int, height: int, width: int, generator: Any) -> torch.Tensor:
        """Standard normal z of `batch` pictures of height x width px: float32 [B, C, H/8, W/8].

        Always drawn in float32, in the stock pipeline's order: the same seed starts from the same noise in
        any dtype.
        """
        rows, columns = height // self.vae_scale_factor, width // self.vae_scale_factor
        shape = self.backbone.noise_shape(self.transformer.config.in_channels // 4, rows, columns)
        drawn = randn_tensor(
            (batch, *shape), generator=generator, device=self._execution_device, dtype=torch.float32
        )
        if shape[1:] == (rows, columns):
            return drawn
        return latent.unpack(drawn.flatten(2).transpose(1, 2), rows, columns)

    def pack(self, z: torch.Tensor) -> torch.Tensor:
        """z [B, C, H, W] -> tokens [B, (H/2)(W/2), 4C]."""
        return latent.pack(z)

    def unpack(self, tokens: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        """tokens of a grid of (rows, columns) -> z [B, C, 2 rows, 2 columns]."""
        return latent.unpack(tokens, 2 * grid[0], 2 * grid[1])

    @torch.no_grad()
    def encode(self, pictures: torch.Tensor, generator: Any = None) -> torch.Tensor:
        """Pictures [B, 3, H, W] in [-1, 1] -> z, float32 [B, C, H/8, W/8]: the posterior's mean, or with a
        generator a sample of it. `latents.to_pictures` makes such pictures of uint8."""
        mean, std = latent.moments(self.vae, pictures)
        if generator is not None:
            draw = randn_tensor(mean.shape, generator=generator, device=mean.device, dtype=torch.float32)
            mean = latent.sample_moments(mean, std, draw)
        return latent.normalisation(self.vae).to_model(mean).to(self._execution_device)

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """z -> pictures, float32 [B, 3, 8H, 8W] nominally in [-1, 1]."""
        if self.watch is not None:
            self.watch(0, note="decoding")
        pictures = latent.decode(self.vae, z)
        flow.check_finite(pictures, "decoding: the pixels of the VAE")
        return pictures

    def velocity(
        self, tokens: torch.Tensor, sigma: float, condition: Condition, branch: str = "cond"
    ) -> torch.Tensor:
        """The backbone's velocity (noise - data) at tokens [B, N, 4C] of noise level sigma: float32 [B, N,
        4C]. `branch` names the pass for diffusers' step caches."""
        self.model_calls += 1
        level = torch.full((tokens.shape[0],), sigma, dtype=torch.float32, device=tokens.device)
        with self.transformer.cache_context(branch):
            return self.backbone.call(
                self.transformer, tokens, level, condition, self._joint_attention_kwargs
            )

    def guided_velocity(self, tokens: torch.Tensor, sigma: float, said: Conditions) -> torch.Tensor:
        """One pass, or with a negative prompt two: v_negative + scale * (v_positive - v_negative)."""
        positive = self.velocity(tokens, sigma, said.positive)
        if said.negative is None:
            return positive
        negative = self.velocity(tokens, sigma, said.negative, branch="uncond")
        return negative + said.scale * (positive - negative)

    def integrate(
        self,
        tokens: torch.Tensor,
        sigmas: Sequence[float],
        said: Conditions,
        step_end: StepEnd,
        velocity: StepVelocity | None = None,
    ) -> torch.Tensor:
        """Euler from sigmas[0] to sigmas[-1] with step callback and interruption.

        `velocity(x, sigma, step, said)` is what the steps follow, `guided_velocity` if None: a sampler puts
        in here what it does to the latents before the call, to the velocity after it, and what it keeps of
        each step (`flow.data_estimate`). `said` is handed in since the callback may have changed it.
        """
        self.sigmas = tuple(sigmas)
        self._num_timesteps = len(sigmas) - 1
        now = said

        def follow(x: torch.Tensor, sigma: float, step: int) -> torch.Tensor:
            self._current_timestep = 1000 * sigma
            if velocity is None:
                return self.guided_velocity(x, sigma, now)
            return velocity(x, sigma, step, now)

        def after(step: int, x: torch.Tensor) -> torch.Tensor:
            nonlocal now
            if step_end.callback is not None:
                tensors = {"latents": x, "prompt_embeds": now.positive.text}
                shown = {name: tensors[name] for name in step_end.names}
                timestep = torch.tensor(1000 * sigmas[step], dtype=torch.float32)
                changed = step_end.callback(self, step, timestep, shown) or {}
                x = changed.get("latents", x)
                text = changed.get("prompt_embeds", now.positive.text)
                now = replace(now, positive=replace(now.positive, text=text))
            return x

        tokens = flow.euler(follow, tokens, sigmas, after, stop=lambda: self.interrupt)
        self._current_timestep = None
        return tokens

    def shown(self, z: torch.Tensor, output_type: str) -> Any:
        """z as `output_type` says: pil, np, pt, or "latent" (its tokens)."""
        if output_type == "latent":
            return self.pack(z)
        return self.image_processor.postprocess(self.decode(z), output_type=output_type)
