"""Diffusers pipelines of the samplers: one thin class for each sampler and family, made from the sampler.

`from_pretrained`, `from_pipe`, offloading, callbacks, generators and `output_type` are diffusers' own.
Differences to the stock pipelines: latents stay in float32 between steps and position ids in float32 always,
whatever the backbone's dtype; noise levels come from `schedules.py`; guidance that a call leaves out is the
model card's; every call of the backbone is counted.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.utils import BaseOutput

from uhr.base.config import build
from uhr.base.console import Advance
from uhr.base.errors import UserError
from uhr.models.families.base import Backbone
from uhr.models.families.conditions import Prompt
from uhr.models.families.text import TokenCount, notes_of
from uhr.models.loading.checks import checked_loading
from uhr.models.loading.offload import clear, room_of
from uhr.models.ops import latents as latent
from uhr.models.ops.fitting import target_size
from uhr.models.ops.sizes import Size, check_sides, up_to
from uhr.models.ops.strips import Gathered
from uhr.models.samplers.core.conditioning import PromptInputs, encode
from uhr.models.samplers.core.engine import Engine, Models, Noise, Strip
from uhr.models.samplers.core.facts import ModelFacts
from uhr.models.samplers.core.images import check_aspect, pixels
from uhr.models.samplers.core.options import SamplerOptions
from uhr.models.samplers.core.plan import SamplingPlan, SamplingRequest
from uhr.models.samplers.core.progress import OnStepEnd, Progress, Steps
from uhr.models.samplers.core.run_record import RunRecord
from uhr.models.samplers.core.sampler import Sampler, make_plan
from uhr.models.specs import registry
from uhr.models.specs.spec import GuidanceKind, ModelSpec

logger = logging.getLogger(__name__)


@dataclass
class StagedOutput(BaseOutput):
    """`images` as `output_type` says; `stages`, where they are returned, holds those of every stage before
    the last."""

    images: Any
    stages: list[Any] | None = None


@dataclass(frozen=True)
class Sizes:
    """Which size a call names: nothing, height and width in px, or how many times the sides of its image."""

    height: int | None = None
    width: int | None = None
    scale: float | None = None


class SamplerPipeline(DiffusionPipeline):
    """Base of the samplers' pipelines, whatever the family."""

    sampler: ClassVar[Sampler]
    family: ClassVar[Backbone]
    Options: ClassVar[type[SamplerOptions]]
    """`sampler.Options`: the keyword arguments of a call besides diffusers' own."""

    last_run: RunRecord | None = None
    """What was run by the last call."""

    watch: Advance | None = None
    """Hears of progress in place of diffusers' bar: first `total`, then each call and its stage's name."""

    logs: bool = True
    """Whether a call logs what was cut off its prompts; `sampling.session` has it in the record instead."""

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        prompt_2: str | list[str] | None = None,
        negative_prompt: str | list[str] | None = None,
        negative_prompt_2: str | list[str] | None = None,
        image: Any = None,
        height: int | None = None,
        width: int | None = None,
        scale: float | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        prompt_embeds: torch.Tensor | None = None,
        pooled_prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        negative_pooled_prompt_embeds: torch.Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        joint_attention_kwargs: dict[str, Any] | None = None,
        callback_on_step_end: OnStepEnd | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        max_sequence_length: int | None = None,
        return_stages: bool = False,
        **options: Any,
    ) -> Any:
        """Arguments as in diffusers' FluxPipeline, on every family, and the sampler's own options by name
        (the class's documentation lists them). A family with a single text encoder takes no second prompt
        and no pooled embeddings. Differences:

        image:               an image (or one for each prompt) in place of the base pass, of any size and the
                             target's aspect ratio: PIL, an array, or a tensor in [0, 1]. Transparency is
                             refused; the command, `uhr sample --image`, takes it
        height, width:       the sampler's usual size if not given
        scale:               how many times the image's sides the result has, in place of height and width;
                             the sampler's usual one if neither is given
        num_inference_steps: None is the sampler's published number, or the model's own if that is below 12
        guidance_scale:      what the backbone embeds, or the scale of its two passes; must not be given where
                             it takes none. It is the base pass's, and with an image every stage's. None is
                             the published number, or that of the model's card: 3.5 of FLUX.1-dev. Where no
                             spec describes the backbone it must be given
        latents:             noise of the first stage [B, N, 4C], packed, in place of what is drawn
        max_sequence_length: None is what the backbone was trained with. What is cut off a prompt is logged in
                             one warning, and `token_counts` has the numbers
        callback_on_step_end: its step counts on through the stages
        return_stages:       the output's `stages` holds the images of every stage before the last
        """
        chosen = build(self.Options, options, f"sampler {type(self).__name__}")
        given = None if image is None else pixels(image).to(self._execution_device)
        inputs = PromptInputs(
            Prompt(prompt, prompt_2, prompt_embeds, pooled_prompt_embeds),
            Prompt(negative_prompt, negative_prompt_2, negative_prompt_embeds, negative_pooled_prompt_embeds),
            num_images_per_prompt,
            max_sequence_length,
        )
        facts = self.facts.with_native(chosen.native_size)
        steps = self.sampler.default_steps(facts) if num_inference_steps is None else num_inference_steps
        size, cut = self._sizes(facts, given, Sizes(height, width, scale))
        request = SamplingRequest(
            *size,
            steps,
            image=given is not None,
            guidance=guidance_scale,
            negative=inputs.negative.given,
            text_length=max_sequence_length,
            cut=cut,
        )
        plan = make_plan(self.sampler, facts, request, chosen)
        if output_type == "latent":
            check_sides(facts.multiple, *request.target)
        callback = Steps(self, callback_on_step_end, callback_on_step_end_tensor_inputs)
        engine = self._engine(plan, inputs, given, joint_attention_kwargs, generator, latents, callback)
        self.log_cuts(self.token_counts)
        images, stages = self._generate(engine, output_type, return_stages)
        self.maybe_free_model_hooks()
        if return_dict:
            return StagedOutput(images=images, stages=stages)
        return (images,) if stages is None else (images, stages)

    @property
    def facts(self) -> ModelFacts:
        """Of the loaded model, as the sampler works with it."""
        return ModelFacts.of_pipeline(self, self.sampler.vae_factor)

    @property
    def spec(self) -> ModelSpec | None:
        """The spec that describes the loaded backbone; None where there is none."""
        index = {**self.config, "_class_name": self.stock().__name__}
        return registry.find(index, self.transformer.config)

    @property
    def pixel_multiple(self) -> int:
        """Heights and widths are multiples of this many px."""
        return self.facts.multiple

    @property
    def guidance_kind(self) -> GuidanceKind:
        """How this checkpoint is guided: embedded, none, or cfg."""
        return self.family.guidance_kind(self.transformer, self.config)

    @property
    def model_calls(self) -> int:
        """How often the last call called the backbone."""
        return 0 if self.last_run is None else self.last_run.model_calls

    @property
    def sigmas(self) -> tuple[float, ...]:
        """Noise levels of the last call's last stage."""
        return () if self.last_run is None else self.last_run.sigmas

    @property
    def token_counts(self) -> tuple[TokenCount, ...]:
        """How much of the last call's prompts was read; empty for embeddings that were given."""
        return () if self.last_run is None else self.last_run.token_counts

    def log_cuts(self, counts: Sequence[TokenCount]) -> None:
        """Log what was cut off texts, in one line; nothing where nothing was."""
        self.log(notes_of(counts))

    def log(self, notes: Sequence[str]) -> None:
        """Log them in one line; nothing where there are none."""
        if notes and self.logs:
            logger.warning("; ".join(notes))

    def details(self) -> dict[str, Any]:
        """JSON for the image's record: what the last call ran, on which models."""
        assert self.last_run is not None, "no call has been made"
        return self.last_run.details()

    @classmethod
    def stock(cls) -> type:
        """diffusers' own pipeline of the family."""
        return next(each for each in cls.__mro__ if each.__module__.startswith("diffusers."))

    def to_json_string(self) -> str:
        """As `save_pretrained` writes it into `model_index.json`: the stock pipeline's, which opens the
        folder wherever diffusers is; so does every sampler of the family."""
        index = {**json.loads(super().to_json_string()), "_class_name": self.stock().__name__}
        return json.dumps(index, indent=2, sort_keys=True) + "\n"

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
            what = f"{pretrained_model_name_or_path} is a {name}, and {cls.__name__} is for {cls.family.name}"
            raise UserError(what, f"take the sampler's pipeline of {others[name]}")
        return found

    def _sizes(self, facts: ModelFacts, image: torch.Tensor | None, named: Sizes) -> tuple[Size, Size | None]:
        """The size that is generated, and the one that it is cut to where that is another."""
        if image is None:
            if named.scale is not None:
                what = f"scale {named.scale:g} is given without an image"
                raise UserError(what, "give image, or height and width")
            if named.height and named.width:
                return (named.height, named.width), None
            usual = self.sampler.default_size(facts)
            return (named.height or usual[0], named.width or usual[1]), None
        if (named.height is None) != (named.width is None):
            raise UserError("only one of height and width is given", "give both, or a scale")
        size = None if named.height is None or named.width is None else (named.height, named.width)
        given, usual_scale = (image.shape[-2], image.shape[-1]), self.sampler.default_scale()
        if self.sampler.fits_images:
            target = target_size(given, named.scale, size, usual_scale)
            return (up_to(target[0], facts.multiple), up_to(target[1], facts.multiple)), target
        if size is None or named.scale is not None:
            return target_size(given, named.scale, size, usual_scale), None
        check_aspect(given, size, facts.multiple)
        return size, None

    def _engine(
        self,
        plan: SamplingPlan,
        inputs: PromptInputs,
        image: torch.Tensor | None,
        attention: dict[str, Any] | None,
        generator: Any,
        latents: torch.Tensor | None,
        steps: Steps,
    ) -> Engine:
        """The engine of one call; resets what diffusers' properties show of the last one."""
        steps.check(self._callback_tensor_inputs)
        # FLUX.1's name of it and FLUX.2's
        self._joint_attention_kwargs = self._attention_kwargs = attention
        self._current_timestep, self._interrupt, self._guidance_scale = None, False, plan.guidance
        self.last_run = RunRecord.of(plan)
        self.log(self.last_run.schedule_notes)
        device = self._execution_device
        models = Models(
            self.family,
            self.transformer,
            self.vae,
            getattr(self, "text_encoder", None),
            device,
            lambda: encode(self, inputs, plan, device),
            attention,
            self.__dict__.setdefault("_kept", {}),
        )
        noise = Noise(models, plan.facts, generator, latents)
        return Engine(models, plan, noise, Progress(self.last_run, watch=self.watch), steps, image)

    def _generate(self, engine: Engine, output_type: str, previews: bool) -> tuple[Any, list[Any] | None]:
        """Run the engine's plan: the result, and with `previews` the images of the stages before the last."""
        plan, shown = engine.plan, []
        result: torch.Tensor | Gathered | None = None
        clear(self)
        with (
            engine.exact_vae(room_of(self)),
            self._progress(engine),
            contextlib.closing(self.sampler.run(engine, plan)) as run,
        ):
            for index, part in enumerate(run):
                if isinstance(part, Strip):
                    if not isinstance(result, Gathered):
                        result = Gathered(engine.batch, plan.request.target, exact=output_type != "pil")
                    result.write(part.top, part.rows)
                    continue
                result = part
                if previews and index < len(plan.stages) - 1:
                    shown.append(self._shown(engine, part, output_type))
                if engine.interrupted and not self.sampler.runs_on_when_interrupted:
                    break
            assert result is not None, "a sampler yields at least one stage"
            return self._shown(engine, result, output_type), shown if previews else None

    def _shown(self, engine: Engine, result: torch.Tensor | Gathered, output_type: str) -> Any:
        """z, or finished pixels, as `output_type` says: pil, np, pt, or "latent" (tokens)."""
        if isinstance(result, Gathered):
            if output_type == "pil":
                return result.pil()
            if output_type == "latent":
                return latent.pack(engine.encode(result.values))
            return self.image_processor.postprocess(result.values, output_type=output_type)
        if output_type == "latent":
            return latent.pack(result)
        return self.image_processor.postprocess(engine.decode(result), output_type=output_type)

    @contextlib.contextmanager
    def _progress(self, engine: Engine) -> Generator[None]:
        """One bar over all calls of the backbone, whatever their stage, or `watch` in its place."""
        calls = engine.plan.model_calls
        if self.watch is not None:
            self.watch(0, total=calls)
            yield
            return
        with self.progress_bar(total=calls) as bar:
            engine.progress.bar = bar
            yield
