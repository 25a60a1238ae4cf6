"""RealUHR's patch cascade: a base picture, enlarged, and painted anew patch by patch in a few steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from uhr.base.config import build
from uhr.base.errors import UserError
from uhr.models.conditions import Prompt
from uhr.models.costs.work import Calls, Coding
from uhr.models.patch_plan import USUAL_SCALE, PatchCascadeOptions, PatchStage, enlarged_size, patch_stage
from uhr.models.pipelines import OnStepEnd, StepEnd
from uhr.models.samplers.families import OnFlux1, OnFlux2
from uhr.models.samplers.native import native_of
from uhr.models.samplers.passes import Job
from uhr.models.samplers.patch_pass import PatchPass, Words
from uhr.models.sizes import up_to
from uhr.models.spec import GuidanceKind, ModelSpec
from uhr.models.stages import Ask, Stage, StagedOutput, pixels


class PatchCascade(PatchPass):
    """RealUHR's inference (recipes 1.3, 1.4): text to image, creative up-sampling of any picture by `gamma`,
    and, at scale 1, suppression of artifacts.

    The base is made by the model without its adapters at its native area, enlarged in pixels (bicubic), cut
    into overlapping patches of the native size, and each of them encoded (the posterior's mode), noised to
    level gamma (eq. 5), painted in 4 Euler steps at positions of its own from 0, decoded, and blended into
    its neighbours by a Gaussian ramp. Published for FLUX.1-dev: base at guidance 3.5. Calls: the base's
    (28), and patches x steps (36 x 4 at 4K), twice that where the patches are guided.

    Differences to the paper: the enlarged picture is cut, not each cut enlarged, so that no cut has borders
    of its own; patches share one noise. Memory does not grow with the picture but by the picture itself (1
    byte a value for PIL, else 4), the noise, and one row of patches. A fully fine-tuned patch model would
    make its own base, too: make that by `euler` with the original, and give it as `image`.
    """

    Options = PatchCascadeOptions
    published_steps = 4
    fits_pictures = True

    @classmethod
    def default_scale(cls) -> float:
        return USUAL_SCALE

    @classmethod
    def patch(cls, spec: ModelSpec, options: Any) -> int:
        return options.patch or super().patch(spec, options)

    @classmethod
    def check_options(cls, options: Any, kind: GuidanceKind) -> None:
        if options.patch_guidance != 1 and kind != "embedded":
            what = f"patch_guidance {options.patch_guidance:g} is given, and this backbone embeds no guidance"
            raise UserError(what, "leave it out; true_cfg_scale guides the patches")

    @classmethod
    def calls(cls, ask: Ask, options: Any, stage: Stage, text: int) -> tuple[Calls, ...]:
        if not isinstance(stage, PatchStage):
            return super().calls(ask, options, stage, text)
        height, width = stage.patch
        count, tokens = stage.steps * stage.calls, height * width // ask.multiple**2
        return (Calls(count, tokens, text, together=min(options.batch, stage.calls)),)

    @classmethod
    def codings(cls, ask: Ask, options: Any, plan: Sequence[Stage]) -> list[tuple[Coding, ...]]:
        *base, patches = plan
        assert isinstance(patches, PatchStage)
        of_patches = tuple(Coding(part, *patches.patch, patches.calls) for part in ("encode", "decode"))
        return [*((Coding("decode", *stage.size),) for stage in base), of_patches]

    @classmethod
    def branches(
        cls, kind: GuidanceKind, options: Any, guidance: float | None, negative: bool, stage: Stage
    ) -> int:
        if isinstance(stage, PatchStage):
            return 1 if options.true_cfg_scale == 1 else 2
        return 1 if kind != "cfg" or guidance in (None, 1) else 2

    @classmethod
    def enough(cls, ask: Ask, options: Any) -> bool:
        return max(ask.size) >= (options.patch or ask.native)

    @classmethod
    def plan(cls, ask: Ask, options: Any) -> list[Stage]:
        patches = patch_stage(ask, options)
        return [patches] if ask.picture else [ask.published_base(options.base_steps), patches]

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
        scale: float | None = None,
        **options: Any,
    ) -> Any:
        """Arguments as in EulerPipeline, and `Options`' fields by name. Differences:

        image:               a picture (or one for each prompt) in place of the base pass, of any size: it is
                             continued by reflection to whole tokens, and the result is cut back
        scale:               of that picture, 1 or more: the result has exactly this many times its sides,
                             rounded. 4 if no size is given either, as in figure 7
        height, width:       in place of a scale, of the picture's aspect ratio; without a picture twice the
                             native size if not given
        num_inference_steps: of each patch; None is 4
        guidance_scale:      of the base pass; a given picture needs none
        output_type:         as in diffusers; "pt" lies on the CPU, and "latent" is the finished picture
                             encoded again, since patches are blended in pixels
        callback_on_step_end: its step counts on from the base pass and from patch to patch; latents are those
                             of the patches at hand, [patches * batch, N, 4C]
        return_stages:       the output's `stages` holds the base picture

        If interrupted, places that are not painted yet stay as the enlargement shows them.
        """
        settings = build(self.Options, options, f"sampler {type(self).__name__}")
        picture = None if image is None else pixels(image).to(self._execution_device)
        target = enlarged_size(picture, scale, height, width)
        size = (height, width)
        if target is not None:
            size = tuple(up_to(side, self.pixel_multiple) for side in target)
            if output_type == "latent":
                self.grid(*target)
        ask = self._ask(settings, *size, num_inference_steps, picture is not None)
        self.check_options(settings, self.guidance_kind)
        plan = self.checked_plan(ask, settings)
        step_end = StepEnd(callback_on_step_end, callback_on_step_end_tensor_inputs)
        self.begin(step_end, joint_attention_kwargs)
        self.settings = settings
        words = Words(
            Prompt(prompt, prompt_2, prompt_embeds, pooled_prompt_embeds),
            Prompt(negative_prompt, negative_prompt_2, negative_prompt_embeds, negative_pooled_prompt_embeds),
            guidance_scale,
            num_images_per_prompt,
            max_sequence_length,
        )
        base_said, said = self.say(words, plan, settings)
        shown: list[Any] = []
        keep = (lambda z: shown.append(self._show(z, output_type))) if return_stages else None
        native = native_of(self, ask.native)
        job = Job(settings, plan, base_said, native, generator, step_end, picture, keep)
        calls = sum(
            stage.steps * stage.calls * each.branches
            for stage, each in zip(plan[::-1], (said, base_said), strict=False)
        )
        with self.one_bar(calls):
            if picture is None:
                picture = self.decode(self.run(job)[0])
            images = self.painted(replace(job, said=said), picture, target or ask.size, output_type)
        self.maybe_free_model_hooks()
        if return_dict:
            return StagedOutput(images=images, stages=shown if return_stages else None)
        return (images, shown) if return_stages else (images,)


class PatchCascadePipeline(PatchCascade, OnFlux1):
    """RealUHR's patch cascade on FLUX.1."""


class Flux2PatchCascadePipeline(PatchCascade, OnFlux2):
    """RealUHR's patch cascade on FLUX.2 [klein]."""
