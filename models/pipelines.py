"""What every sampler shares as a diffusers pipeline: prompts, guidance, the call of the backbone, pictures
out.

A sampler is a subclass with a `__call__` of its own. Differences to the stock FluxPipeline: latents stay in
float32 between steps and position ids in float32 always, whatever the backbone's dtype; sigmas come from
`schedules.py`; guidance is never assumed; every call of the backbone is counted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers import FluxPipeline
from diffusers.pipelines.flux.pipeline_output import FluxPipelineOutput
from diffusers.utils.torch_utils import randn_tensor

from uhr.base.config import Config
from uhr.base.errors import UserError
from uhr.models import flow
from uhr.models import latents as latent
from uhr.models.conditions import Condition, Conditions, Prompt, check_cfg
from uhr.models.spec import ModelSpec

OnStepEnd = Callable[[Any, int, torch.Tensor, dict[str, Any]], dict[str, Any]]
"""diffusers' `callback_on_step_end(pipeline, step, timestep, tensors) -> tensors to go on with`."""


@dataclass(frozen=True)
class StepEnd:
    """What to call after each step, and the names of the tensors that it is shown."""

    callback: OnStepEnd | None = None
    names: Sequence[str] = ("latents",)


class SamplerPipeline(FluxPipeline):
    """Base of the samplers. After a run, `model_calls` is how often it called the backbone, and `sigmas` the
    noise levels that it went through."""

    model_calls: int = 0
    sigmas: tuple[float, ...] = ()

    class Options(Config):
        """The keyword arguments of a call that `uhr sample --set` can change; a sampler has its own."""

    @classmethod
    def preflight(
        cls, spec: ModelSpec, options: Any, height: int, width: int, steps: int, negative: bool
    ) -> None:
        """UserError for what this sampler cannot make of a model, asked before any weights are loaded."""
        latent.check_size(spec, height, width)
        check_cfg(getattr(options, "true_cfg_scale", 1.0), negative)

    @property
    def pixel_multiple(self) -> int:
        """Height and width are multiples of this many px."""
        return 2 * self.vae_scale_factor

    def begin(self, step_end: StepEnd, attention: dict[str, Any] | None) -> None:
        """Reset what diffusers' properties report, and the count of model calls."""
        wrong = [name for name in step_end.names if name not in self._callback_tensor_inputs]
        if wrong:
            known = ", ".join(self._callback_tensor_inputs)
            raise UserError(f"the step callback asks for {', '.join(wrong)}", f"known: {known}")
        self._joint_attention_kwargs = attention
        self._current_timestep = None
        self._interrupt = False
        self.model_calls = 0

    def conditions(
        self,
        positive: Prompt,
        negative: Prompt,
        grid: tuple[int, int],
        guidance_scale: float | None,
        true_cfg_scale: float,
        pictures: int,
        length: int | None,
    ) -> Conditions:
        """Encode both prompts for a grid of (rows, columns) image tokens, `pictures` times each.

        `length` is in T5 tokens; None is what the backbone was trained with: 512, or schnell's 256.
        """
        self._guidance_scale = guidance_scale
        count = positive.check("prompt")
        check_cfg(true_cfg_scale, negative.given)
        said = self._encode(positive, grid, guidance_scale, pictures, length)
        if not negative.given:
            return Conditions(said)
        if negative.check("negative prompt") not in (1, count):
            what = f"{negative.count} negative prompts for {count} prompts"
            raise UserError(what, "give one, or one for each")
        repeats = pictures * count // negative.count
        return Conditions(said, self._encode(negative, grid, guidance_scale, repeats, length), true_cfg_scale)

    def _encode(
        self, prompt: Prompt, grid: tuple[int, int], scale: float | None, repeats: int, length: int | None
    ) -> Condition:
        device, dtype = self._execution_device, self.transformer.dtype
        t5, pooled, _ = self.encode_prompt(
            prompt=prompt.texts,
            prompt_2=prompt.texts_2,
            prompt_embeds=prompt.embeds,
            pooled_prompt_embeds=prompt.pooled,
            device=device,
            num_images_per_prompt=1,
            max_sequence_length=length or (512 if self.transformer.config.guidance_embeds else 256),
        )
        t5, pooled = (e.to(device, dtype).repeat_interleave(repeats, dim=0) for e in (t5, pooled))
        return Condition(
            t5=t5,
            pooled=pooled,
            text_ids=latent.text_ids(t5.shape[1], device),
            image_ids=latent.image_ids(*grid, device=device),
            guidance=self._guidance(scale, t5.shape[0]),
        )

    def _guidance(self, scale: float | None, batch: int) -> torch.Tensor | None:
        if not self.transformer.config.guidance_embeds:
            if scale:
                what = f"guidance {scale:g} is given, and this backbone takes none"
                raise UserError(what, "leave it out, or give a negative prompt and true_cfg_scale")
            return None
        if scale is None:
            raise UserError("this backbone wants a guidance scale", "give one; FLUX.1-dev's card says 3.5")
        return torch.full((batch,), float(scale), dtype=torch.float32, device=self._execution_device)

    def noise(self, batch: int, height: int, width: int, generator: Any) -> torch.Tensor:
        """Standard normal model latents of `batch` pictures of height x width px: float32 [B, C, H/8, W/8].

        Always drawn in float32: the same seed starts from the same noise in any dtype.
        """
        channels = self.transformer.config.in_channels // 4
        shape = (batch, channels, height // self.vae_scale_factor, width // self.vae_scale_factor)
        return randn_tensor(shape, generator=generator, device=self._execution_device, dtype=torch.float32)

    def velocity(
        self, tokens: torch.Tensor, sigma: float, condition: Condition, branch: str = "cond"
    ) -> torch.Tensor:
        """The backbone's velocity (noise - data) at tokens [B, N, 4C] of noise level sigma: float32 [B, N,
        4C].

        Sigma goes in as float32: the backbone itself casts it to its dtype before it multiplies by 1000, in
        training as here. `branch` names the pass for diffusers' step caches.
        """
        self.model_calls += 1
        with self.transformer.cache_context(branch):
            velocity = self.transformer(
                hidden_states=tokens.to(self.transformer.dtype),
                timestep=torch.full((tokens.shape[0],), sigma, dtype=torch.float32, device=tokens.device),
                guidance=condition.guidance,
                pooled_projections=condition.pooled,
                encoder_hidden_states=condition.t5,
                txt_ids=condition.text_ids,
                img_ids=condition.image_ids,
                joint_attention_kwargs=dict(self.joint_attention_kwargs or {}),
                return_dict=False,
            )[0]
        return velocity.float()

    def guided_velocity(self, tokens: torch.Tensor, sigma: float, said: Conditions) -> torch.Tensor:
        """One pass, or with a negative prompt two: v_negative + scale * (v_positive - v_negative)."""
        positive = self.velocity(tokens, sigma, said.positive)
        if said.negative is None:
            return positive
        negative = self.velocity(tokens, sigma, said.negative, branch="uncond")
        return negative + said.scale * (positive - negative)

    def integrate(
        self, tokens: torch.Tensor, sigmas: Sequence[float], said: Conditions, step_end: StepEnd
    ) -> torch.Tensor:
        """Euler from sigmas[0] to sigmas[-1] with progress bar, step callback and interruption."""
        self.sigmas = tuple(sigmas)
        self._num_timesteps = len(sigmas) - 1
        now = said

        def velocity(x: torch.Tensor, sigma: float, step: int) -> torch.Tensor:
            self._current_timestep = 1000 * sigma
            return self.guided_velocity(x, sigma, now)

        def after(step: int, x: torch.Tensor) -> torch.Tensor:
            nonlocal now
            if step_end.callback is not None:
                tensors = {"latents": x, "prompt_embeds": now.positive.t5}
                shown = {name: tensors[name] for name in step_end.names}
                timestep = torch.tensor(1000 * sigmas[step], dtype=torch.float32)
                changed = step_end.callback(self, step, timestep, shown) or {}
                x = changed.get("latents", x)
                t5 = changed.get("prompt_embeds", now.positive.t5)
                now = replace(now, positive=replace(now.positive, t5=t5))
            bar.update()
            return x

        with self.progress_bar(total=len(sigmas) - 1) as bar:
            tokens = flow.euler(velocity, tokens, sigmas, after, stop=lambda: self.interrupt)
        self._current_timestep = None
        return tokens

    def finish(
        self, tokens: torch.Tensor, height: int, width: int, output_type: str, return_dict: bool
    ) -> Any:
        """tokens [B, N, 4C] -> pictures as `output_type` says: pil, np, pt, or "latent" (the tokens)."""
        pictures: Any = tokens
        if output_type != "latent":
            z = latent.unpack(tokens, height // self.vae_scale_factor, width // self.vae_scale_factor)
            pictures = self.image_processor.postprocess(latent.decode(self.vae, z), output_type=output_type)
        self.maybe_free_model_hooks()
        return FluxPipelineOutput(images=pictures) if return_dict else (pictures,)
