"""The base class of the samplers' diffusers pipelines; `families.py` makes one per sampler and
family.

`from_pretrained`, `from_pipe`, offloading, callbacks, generators and `output_type` are diffusers' own.
Differences to the stock pipelines: latents between steps and position ids are float32, whatever the
backbone's dtype is; noise levels come from `ops/schedules.py`; the default guidance is the model card's;
every call of the backbone is counted.
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
from uhr.models.loading.offload import clear, tiling_memory
from uhr.models.ops import latents as latent
from uhr.models.ops.fitting import target_size
from uhr.models.ops.patches.strips import AssembledImage
from uhr.models.ops.sizes import Size, check_sides
from uhr.models.samplers.core.conditioning import PromptInputs, encode
from uhr.models.samplers.core.engine import Engine, Models, Noise, Strip
from uhr.models.samplers.core.facts import ModelFacts
from uhr.models.samplers.core.options import SamplerOptions
from uhr.models.samplers.core.pipelines.images import check_aspect, pixels
from uhr.models.samplers.core.plan import SamplingPlan, SamplingRequest
from uhr.models.samplers.core.progress import OnStepEnd, Progress, Steps
from uhr.models.samplers.core.run_record import RunRecord
from uhr.models.samplers.core.sampler import Sampler, make_plan
from uhr.models.samplers.core.size_rule import SizeRule
from uhr.models.specs import registry
from uhr.models.specs.spec import GuidanceKind, ModelSpec

logger = logging.getLogger(__name__)


@dataclass
class StagedOutput(BaseOutput):
    """The output of a call. `images` have the form of `output_type`; `stages`, if requested, has the images
    of every stage before the last."""

    images: Any
    stages: list[Any] | None = None


@dataclass(frozen=True)
class NamedSize:
    """The size that a call asks for: nothing, height and width in px, or a scale of its input image."""

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
    """The record of the last call."""

    watch: Advance | None = None
    """Called with progress instead of diffusers' bar: first `total`, then each call with its stage's name."""

    logs: bool = True
    """Whether a call logs prompts that were cut; `generate.session` has them in the record instead."""

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

        image:               an image (or one for each prompt) that replaces the base pass, of any size and
                             the target's aspect ratio: PIL, an array, or a tensor in [0, 1]. Transparency is
                             rejected; the command, `uhr sample --image`, supports it
        height, width:       default to the sampler's size
        scale:               side of the result over that of the image, instead of height and width; defaults
                             to the sampler's scale
        num_inference_steps: None is the sampler's published number, or the model's own if that is below 12
        guidance_scale:      the guidance that the backbone embeds, or the scale of its two passes; an error
                             if it takes none. It applies to the base pass, and with an image to every stage.
                             None is the published number, or that of the model's card (3.5 for FLUX.1-dev).
                             It is required if no spec describes the backbone
        latents:             packed noise [B, N, 4C] for the first stage, instead of drawn noise
        max_sequence_length: None is what the backbone was trained with. Prompts that are cut are logged in
                             one warning, and `token_counts` has the numbers
        callback_on_step_end: its step number continues from stage to stage
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
        rule = self.sampler.sizes(facts, chosen)
        size, cut = self._sizes(facts, rule, given, NamedSize(height, width, scale))
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
        """Facts of the loaded model, including the sampler's changes to it."""
        return ModelFacts.of_pipeline(self, self.sampler.vae_factor)

    @property
    def spec(self) -> ModelSpec | None:
        """The spec that describes the loaded backbone, or None."""
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
        """Calls of the backbone in the last call."""
        return 0 if self.last_run is None else self.last_run.model_calls

    @property
    def sigmas(self) -> tuple[float, ...]:
        """Noise levels of the last call's last stage."""
        return () if self.last_run is None else self.last_run.sigmas

    @property
    def token_counts(self) -> tuple[TokenCount, ...]:
        """How many tokens of the last call's prompts were read; empty for embeddings."""
        return () if self.last_run is None else self.last_run.token_counts

    def log_cuts(self, counts: Sequence[TokenCount]) -> None:
        """Log prompts that were cut, in one line."""
        self.log(notes_of(counts))

    def log(self, notes: Sequence[str]) -> None:
        """Log notes in one line, if there are any."""
        if notes and self.logs:
            logger.warning("; ".join(notes))

    def details(self) -> dict[str, Any]:
        """Return the last call as JSON for the image's record."""
        assert self.last_run is not None, "no call has been made"
        return self.last_run.details()

    @classmethod
    def stock(cls) -> type:
        """Return diffusers' own pipeline class of the family."""
        return next(each for each in cls.__mro__ if each.__module__.startswith("diffusers."))

    def to_json_string(self) -> str:
        """Return the content of `model_index.json`. It names the stock pipeline, so that diffusers alone can
        open the folder, as can every sampler of the family."""
        index = {**json.loads(super().to_json_string()), "_class_name": self.stock().__name__}
        return json.dumps(index, indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        """Load like diffusers, from safetensors files unless `use_safetensors` is set. Raises UserError if a
        component's files lack weights, or contain others than its configuration has."""
        with checked_loading():
            return super().from_pretrained(
                pretrained_model_name_or_path, **{"use_safetensors": True, **kwargs}
            )

    @classmethod
    def load_config(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Read the configuration like diffusers, before anything is loaded. Raises UserError for a checkpoint
        of another family."""
        found = super().load_config(pretrained_model_name_or_path, *args, **kwargs)
        name = (found[0] if isinstance(found, tuple) else found).get("_class_name")
        others = {spec.pipeline_class: spec.family for spec in registry.SPECS.values()}
        others.pop(cls.stock().__name__, None)
        if name in others:
            what = f"{pretrained_model_name_or_path} is a {name}, and {cls.__name__} is for {cls.family.name}"
            raise UserError(what, f"take the sampler's pipeline of {others[name]}")
        return found

    def _sizes(
        self, facts: ModelFacts, rule: SizeRule, image: torch.Tensor | None, named: NamedSize
    ) -> tuple[Size, Size | None]:
        """The generated size, and the size that it is cut to, or None if it is not cut."""
        if image is None:
            if named.scale is not None:
                what = f"scale {named.scale:g} is given without an image"
                raise UserError(what, "give image, or height and width")
            if named.height is not None and named.width is not None:
                return (named.height, named.width), None
            height, width = self.sampler.default_size(facts)
            height = height if named.height is None else named.height
            return (height, width if named.width is None else named.width), None
        if (named.height is None) != (named.width is None):
            raise UserError("only one of height and width is given", "give both, or a scale")
        size = None if named.height is None or named.width is None else (named.height, named.width)
        given, default_scale = (image.shape[-2], image.shape[-1]), self.sampler.default_scale()
        if self.sampler.fits_images:
            target = target_size(given, named.scale, size, default_scale)
            return rule.whole_units(target), target
        if size is None or named.scale is not None:
            return target_size(given, named.scale, size, default_scale), None
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
        """The engine of one call; also resets diffusers' properties of the last call."""
        steps.check(self._callback_tensor_inputs)
        # the attribute has different names in FLUX.1's and FLUX.2's pipelines
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
        result: torch.Tensor | AssembledImage | None = None
        clear(self)
        with (
            engine.exact_vae(tiling_memory(self, engine.models.device)),
            self._progress(engine),
            contextlib.closing(self.sampler.run(engine, plan)) as run,
        ):
            for index, part in enumerate(run):
                if isinstance(part, Strip):
                    if not isinstance(result, AssembledImage):
                        result = AssembledImage(engine.batch, plan.request.target, exact=output_type != "pil")
                    result.write(part.top, part.rows)
                    continue
                result = part
                if previews and index < len(plan.stages) - 1:
                    shown.append(self._shown(engine, part, output_type))
                if engine.interrupted and not self.sampler.runs_on_when_interrupted:
                    break
            assert result is not None, "a sampler yields at least one stage"
            return self._shown(engine, result, output_type), shown if previews else None

    def _shown(self, engine: Engine, result: torch.Tensor | AssembledImage, output_type: str) -> Any:
        """Convert z or finished pixels to `output_type`: pil, np, pt, or latent (tokens)."""
        if isinstance(result, AssembledImage):
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
        """Show one bar over the calls of all stages, or call `watch` instead."""
        calls = engine.plan.model_calls
        if self.watch is not None:
            self.watch(0, total=calls)
            yield
            return
        with self.progress_bar(total=calls) as bar:
            engine.progress.bar = bar
            yield
