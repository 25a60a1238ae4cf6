"""The call of every sampler: one signature, one plan, one bar, previews."""

from __future__ import annotations

import contextlib
import functools
import inspect
from abc import abstractmethod
from collections.abc import Callable, Generator, Sequence
from typing import Any, TypeVar, cast

import torch

from uhr.base.config import build
from uhr.base.errors import UserError
from uhr.models.conditions import Conditions, Prompt, Words
from uhr.models.fitting import target_size
from uhr.models.pipelines import OnStepEnd, StepEnd
from uhr.models.samplers.options import SamplerOptions
from uhr.models.samplers.passes import Job, Passes
from uhr.models.scheduler_config import SchedulerConfig
from uhr.models.sizes import Size
from uhr.models.stages import Ask, Stage, StagedOutput, check_aspect, for_each, pixels

C = TypeVar("C", bound=Callable[..., Any])


class Staged(Passes):
    """Base of the samplers: a new one writes `Options`, `plan` and `run`."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "Options" in cls.__dict__:
            cls.__call__ = _showing(getattr(cls.__call__, "plain", cls.__call__), cls.Options)

    @abstractmethod
    def run(self, job: Job) -> Generator[torch.Tensor]:
        """z of each stage of the plan in turn; nothing is asked of it after an interruption."""

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
        """Arguments as in diffusers' FluxPipeline, on every family, and the options below by name. A family
        with a single text encoder takes no second prompt and no pooled embeddings. Differences:

        image:               a picture (or one for each prompt) in place of the base pass, of any size and
                             the target's aspect ratio: PIL, an array, or a tensor in [0, 1]. Transparency is
                             for the command, `uhr sample --image`: here it is refused
        height, width:       the sampler's usual size if not given
        scale:               how many times the picture's sides the result has, in place of height and width;
                             the sampler's usual one if nothing is said of either
        num_inference_steps: None is the sampler's published number, or the model's own if that is below 12
        guidance_scale:      what the backbone embeds, or the scale of its two passes; must not be given where
                             it takes none. It is the base pass's, and with an image every stage's. None is
                             the published number, or that of the model's card: 3.5 of FLUX.1-dev. Where no
                             spec describes the backbone it must be given
        latents:             noise of the first stage [B, N, 4C], packed, in place of what is drawn
        max_sequence_length: None is what the backbone was trained with. What is cut off a prompt is logged in
                             one warning, and `token_counts` has the numbers
        callback_on_step_end: its step counts on through the stages
        return_stages:       the output's `stages` holds the pictures of every stage before the last
        """
        configured = SchedulerConfig.of_scheduler(self.scheduler)
        asked = build(self.Options, options, f"sampler {type(self).__name__}")
        settings = self.resolve(asked)
        picture = None if image is None else pixels(image).to(self._execution_device)
        target, ask = self._asked(settings, picture, scale, height, width, num_inference_steps)
        plan = self.checked_plan(ask, settings)
        if guidance_scale is None and self.spec is not None:
            guidance_scale = self.unsaid_guidance(self.spec, asked, plan)
        step_end = StepEnd(callback_on_step_end, callback_on_step_end_tensor_inputs)
        self.begin(step_end, joint_attention_kwargs)
        self.settings = settings
        self.schedule_notes = configured.notes(self.backbone, plan, self.pixel_multiple)
        self.log(self.schedule_notes)
        words = Words(
            Prompt(prompt, prompt_2, prompt_embeds, pooled_prompt_embeds),
            Prompt(negative_prompt, negative_prompt_2, negative_prompt_embeds, negative_pooled_prompt_embeds),
            guidance_scale,
            num_images_per_prompt,
            max_sequence_length,
        )
        self.told_guidance = self.checked_guidances(words, plan, asked)
        said = self.say(words, plan, settings)
        self.log_cuts(self.token_counts)
        count = said[0].positive.text.shape[0]
        if isinstance(generator, list) and len(generator) != count:
            raise UserError(f"{len(generator)} generators for {count} pictures", "give one, or one for each")
        if picture is not None:
            picture = for_each(picture, count)
        text = self.backbone.text_length(self.transformer)
        shown: list[Any] = []
        keep = (lambda z: shown.append(self.shown(z, output_type))) if return_stages else None
        job = Job(settings, ask, target, plan, said, text, generator, step_end, picture, latents, keep)
        calls = sum(stage.steps * stage.calls * each.branches for stage, each in zip(plan, said, strict=True))
        with self.exact_vae(), self.one_bar(calls):
            images = self.make(job, output_type)
        self.maybe_free_model_hooks()
        if return_dict:
            return StagedOutput(images=images, stages=shown if return_stages else None)
        return (images, shown) if return_stages else (images,)

    def make(self, job: Job, output_type: str) -> Any:
        """The finished pictures."""
        *_, last = self.reached(job)
        return self.shown(last, output_type)

    def reached(self, job: Job) -> Generator[torch.Tensor]:
        """z of each stage that is run, with its preview."""
        with contextlib.closing(self.run(job)) as run:
            for stage, z in zip(job.plan, run, strict=False):
                if job.preview is not None and stage is not job.plan[-1]:
                    job.preview(z)
                yield z
                if self.interrupt:
                    return

    def checked_guidances(self, words: Words, plan: Sequence[Stage], options: Any) -> list[float | None]:
        """Of each stage; UserError for what would be ignored in silence."""
        kind, guidance, negative = self.guidance_kind, words.guidance, words.negative.given
        told = self.guidances(kind, self.resolve(options), guidance, plan)
        self.check_guidance(kind, options, told, guidance, negative, plan[0].name == "base")
        return told

    def say(self, words: Words, plan: Sequence[Stage], options: Any) -> list[Conditions]:
        """What the backbone is told in each stage: the same words, by the stage's guidance."""
        said = self.conditions(words, self.grid(*plan[0].size), options.true_cfg_scale, self.told_guidance)
        return [said.guided(self.guidance_kind, number) for number in self.told_guidance]

    def target(self, given: Size, scale: float | None, size: Size | None) -> Size:
        """What a picture of `given` px is to become: as large as asked for, or the sampler's usual scale."""
        if size is None or scale is not None:
            return target_size(given, scale, size, self.default_scale())
        check_aspect(given, size, self.pixel_multiple)
        return size

    def painted_size(self, target: Size) -> Size:
        """Of the picture that `target` px are cut out of."""
        return target

    def _asked(
        self,
        settings: Any,
        picture: torch.Tensor | None,
        scale: float | None,
        height: int | None,
        width: int | None,
        steps: int | None,
    ) -> tuple[Size, Ask]:
        """The size of the result, and what a plan is made from."""
        spec = self.spec
        if steps is None:
            steps = self.published_steps if spec is None else self.default_steps(spec)
        if steps is None:
            raise UserError("no spec describes this backbone", "give num_inference_steps")
        native = settings.native_size or (None if spec is None else spec.native_size)
        card, multiple, family = None if spec is None else spec.steps, self.pixel_multiple, self.backbone.name
        ask = Ask(0, 0, steps, native, multiple, family, self.schedule, picture is not None, card)
        if picture is not None:
            if (height is None) != (width is None):
                raise UserError("only one of height and width is given", "give both, or a scale")
            size = None if height is None or width is None else (height, width)
            target = self.target((picture.shape[-2], picture.shape[-1]), scale, size)
            return target, ask.at(self.painted_size(target))
        if scale is not None:
            raise UserError(f"scale {scale:g} is given without a picture", "give image, or height and width")
        target = height or self.native_times * ask.native, width or self.native_times * ask.native
        return target, ask.at(target)


def _showing(call: C, options: type[SamplerOptions]) -> C:
    """The call, whose signature and docstring have the options' fields in place of `**options`."""

    @functools.wraps(call)
    def shown(self: Any, *args: Any, **kwargs: Any) -> Any:
        return call(self, *args, **kwargs)

    own = inspect.signature(call)
    named = [each for each in own.parameters.values() if each.kind is not each.VAR_KEYWORD]
    fields = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=field.get_default(call_default_factory=True),
            annotation=field.annotation,
        )
        for name, field in options.model_fields.items()
        if name not in own.parameters
    ]
    told = [inspect.getdoc(cls) for cls in reversed(options.__mro__) if issubclass(cls, SamplerOptions)]
    vars(shown).update(plain=call, __signature__=own.replace(parameters=[*named, *fields]))
    shown.__doc__ = "\n\n".join([inspect.cleandoc(call.__doc__ or ""), *(each for each in told if each)])
    return cast(C, shown)
