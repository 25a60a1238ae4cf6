"""What the samplers that paint in stages share: one call, one plan, one bar, toolkit, previews."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from pydantic import Field

from uhr.base.config import build
from uhr.base.errors import UserError
from uhr.models.conditions import Conditions, Prompt
from uhr.models.hr_toolkit import Toolkit
from uhr.models.pipelines import OnStepEnd, StepEnd
from uhr.models.planning import SamplerOptions
from uhr.models.samplers.native import native_of, spec_of
from uhr.models.samplers.passes import Job, Passes
from uhr.models.stages import Ask, Stage, StagedOutput, StageShift, check_aspect, pixels, total_calls


class StagedOptions(SamplerOptions):
    """What every staged sampler can be told besides.

    guidance_high:   guidance of the stages above the base; None is the sampler's published number where the
                     backbone embeds guidance, and the call's own elsewhere
    shift:           of those stages, static or native; None is static on FLUX.1, native on FLUX.2
    shift_factor:    of the static shift
    """

    guidance_high: float | None = None
    shift: StageShift | None = None
    shift_factor: float = Field(default=3.0, gt=0)


class DenseOptions(StagedOptions):
    """toolkit: what lets the backbone work above its native size (`hr_toolkit.Toolkit`)"""

    toolkit: Toolkit = Toolkit()


class Staged(Passes):
    """Base of the staged samplers: a new one writes `Options`, `plan` and `run`."""

    Options = StagedOptions
    published_steps = 30

    @abstractmethod
    def run(self, job: Job) -> tuple[torch.Tensor, Stage]:
        """z of the last stage that was run, and that stage."""

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
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
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
        """Arguments as in EulerPipeline, and `Options`' fields by name. Differences:

        image:               a picture (or one for each prompt) in place of the base pass, of any size and
                             the target's aspect ratio: PIL, an array, or a tensor in [0, 1]
        height, width:       twice the native size if not given
        num_inference_steps: None is the sampler's published number, or the model's own if that is below 12
        callback_on_step_end: its step counts on through the stages
        return_stages:       the output's `stages` holds the pictures of every stage before the last
        """
        settings = self.resolve(build(self.Options, options, f"sampler {type(self).__name__}"))
        self.check_options(settings, self.guidance_kind)
        ask = self._ask(settings, height, width, num_inference_steps, image is not None)
        plan = self.checked_plan(ask, settings)
        step_end = StepEnd(callback_on_step_end, callback_on_step_end_tensor_inputs)
        self.begin(step_end, joint_attention_kwargs)
        self.settings = settings
        said = self.conditions(
            Prompt(prompt, prompt_2, prompt_embeds, pooled_prompt_embeds),
            Prompt(negative_prompt, negative_prompt_2, negative_prompt_embeds, negative_pooled_prompt_embeds),
            self.grid(*plan[0].size),
            guidance_scale,
            settings.true_cfg_scale,
            num_images_per_prompt,
            max_sequence_length,
        )
        picture = None if image is None else self._picture(image, ask, said)
        shown: list[Any] = []
        native = native_of(self, ask.native)
        keep = (lambda z: shown.append(self._show(z, output_type))) if return_stages else None
        job = Job(settings, plan, said, native, generator, step_end, picture, keep)
        with self.exact_vae(), self.one_bar(total_calls(plan, said.branches)):
            z, last = self.run(job)
            (images,) = self.finish(self.pack(z), *last.size, output_type, return_dict=False)
        if return_dict:
            return StagedOutput(images=images, stages=shown if return_stages else None)
        return (images, shown) if return_stages else (images,)

    def _ask(
        self, settings: Any, height: int | None, width: int | None, steps: int | None, picture: bool
    ) -> Ask:
        spec = spec_of(self, settings.native_size)
        native = settings.native_size or (spec.native_size if spec is not None else 0)
        side = self.native_times * native
        height, width = height or side, width or side
        if steps is None:
            steps = (self.published_steps or 0) if spec is None else self.default_steps(spec)
        card = None if spec is None else spec.steps
        multiple, family = self.pixel_multiple, self.backbone.name
        return Ask(height, width, steps, native, multiple, family, self.schedule, picture, card)

    def _picture(self, image: Any, ask: Ask, said: Conditions) -> torch.Tensor:
        found = pixels(image).to(self._execution_device)
        batch = said.positive.text.shape[0]
        if batch % found.shape[0]:
            raise UserError(f"{found.shape[0]} pictures for {batch} prompts", "give one, or one for each")
        check_aspect((found.shape[-2], found.shape[-1]), ask.size, ask.multiple)
        return found.repeat_interleave(batch // found.shape[0], dim=0)

    def _show(self, z: torch.Tensor, output_type: str) -> Any:
        if output_type == "latent":
            return self.pack(z)
        return self.image_processor.postprocess(self.decode(z), output_type=output_type)
