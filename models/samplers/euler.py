"""Euler: the plain sampler of flow models, and the base pass of most others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch

from uhr.base.errors import UserError
from uhr.models.conditions import Prompt
from uhr.models.hr_toolkit import Toolkit
from uhr.models.pipelines import OnStepEnd, SamplerPipeline, StepEnd
from uhr.models.planning import SamplerOptions
from uhr.models.samplers.families import OnFlux1, OnFlux2
from uhr.models.samplers.native import native_of
from uhr.models.spec import ShiftPolicy
from uhr.models.stages import Ask, Stage, sized


class EulerOptions(SamplerOptions):
    """The keyword arguments of a call that `--set` can change; the call's docstring says what they mean."""

    shift: ShiftPolicy | None = None
    shift_factor: float = 3.0
    toolkit: Toolkit | None = None


class Euler(SamplerPipeline):
    """Text to image by Euler steps.

    With the schedule that the checkpoint was published with it gives what the stock pipeline gives. With a
    toolkit it is the training-free baseline that papers call FLUX*: above the native size with NTK positions,
    proportional attention and a static shift.
    """

    surgeries: Sequence[dict[str, Any]] = ()
    """What the toolkit had on the backbone in the last run."""

    Options = EulerOptions

    takes_picture = False
    native_times = 1

    @classmethod
    def plan(cls, ask: Ask, options: Any) -> list[Stage]:
        shift = options.shift or (None if options.toolkit is None else ShiftPolicy.STATIC)
        rows, columns = ask.grid
        return [sized(*ask.size, ask.schedule(ask.steps, rows * columns, shift, options.shift_factor))]

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        prompt_2: str | list[str] | None = None,
        negative_prompt: str | list[str] | None = None,
        negative_prompt_2: str | list[str] | None = None,
        true_cfg_scale: float = 1.0,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 28,
        sigmas: Sequence[float] | None = None,
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
        shift: ShiftPolicy | str | None = None,
        shift_factor: float = 3.0,
        toolkit: Toolkit | Mapping[str, Any] | None = None,
        native_size: int | None = None,
    ) -> Any:
        """Arguments as in diffusers' FluxPipeline, on every family; one with a single text encoder takes no
        second prompt and no pooled embeddings. Differences:

        guidance_scale: must be given where the backbone embeds it or is guided by two passes (where it is
                        their scale), and must not be where it takes none
        true_cfg_scale: above 1 it wants a negative prompt and doubles the model calls:
                        v = v_negative + scale * (v_prompt - v_negative)
        sigmas:         noise levels, falling; used as they are, unshifted. A final 0 may be left out
        shift:          none, static (by `shift_factor`) or dynamic (refused above the tokens that it was
                        calibrated for); None is what the scheduler's configuration says
        latents:        noise [B, N, 4C], packed, of the first noise level
        toolkit:        what lets the backbone work above its native size: `hr_toolkit.Toolkit`, or its fields
                        ({} has its defaults). `shift` None is then static
        native_size:    side in px of the backbone's training square, for the toolkit; None is what its spec
                        says
        """
        kit = None if toolkit is None else Toolkit.model_validate(toolkit)
        if kit is not None and shift is None:
            shift = ShiftPolicy.STATIC
        height, width = height or 1024, width or 1024
        grid = self.grid(height, width)
        levels = (
            self.schedule(num_inference_steps, grid[0] * grid[1], shift, shift_factor)
            if sigmas is None
            else _as_levels(sigmas)
        )
        step_end = StepEnd(callback_on_step_end, callback_on_step_end_tensor_inputs)
        self.begin(step_end, joint_attention_kwargs)
        said = self.conditions(
            Prompt(prompt, prompt_2, prompt_embeds, pooled_prompt_embeds),
            Prompt(negative_prompt, negative_prompt_2, negative_prompt_embeds, negative_pooled_prompt_embeds),
            grid,
            guidance_scale,
            true_cfg_scale,
            num_images_per_prompt,
            max_sequence_length,
        )
        if latents is None:
            tokens = self.pack(self.noise(said.positive.text.shape[0], height, width, generator))
        else:
            tokens = latents.to(self._execution_device, torch.float32)
        if kit is None:
            self.surgeries = ()
            tokens = self.integrate(tokens, levels, said, step_end)
        else:
            native = native_of(self, native_size)
            with kit.on(self, tokens.shape[1], native) as surgeries:
                self.surgeries = [each.describe() for each in surgeries]
                tokens = self.integrate(tokens, levels, kit.told(said, grid, native), step_end)
        return self.finish(tokens, height, width, output_type, return_dict)

    def details(self) -> dict[str, Any]:
        return {"surgeries": list(self.surgeries)}


def _as_levels(sigmas: Sequence[float]) -> list[float]:
    levels = [float(sigma) for sigma in sigmas]
    if levels and levels[-1] > 0:
        levels.append(0.0)
    falling = all(a > b for a, b in pairwise(levels))
    if len(levels) < 2 or not falling or levels[0] > 1 or levels[-1] < 0:
        raise UserError(f"sigmas {levels}", "give falling noise levels in (0, 1]")
    return levels


class EulerPipeline(Euler, OnFlux1):
    """Euler on FLUX.1."""


class Flux2EulerPipeline(Euler, OnFlux2):
    """Euler on FLUX.2 [klein]."""
