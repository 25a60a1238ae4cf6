"""Substitute for I-Max's pipeline: two stages on diffusers' parts, in float32, with a scheduler that reads
the shift from its configuration at every call, as diffusers 0.31 does."""

import math

import diffusers
import torch
import torch.nn.functional as F
from diffusers.pipelines.flux.pipeline_flux import FluxPipelineOutput
from diffusers.utils.torch_utils import randn_tensor
from transformer_flux import FluxTransformer2DModel

FluxTransformer2DModel.floors = True


class Scheduler(diffusers.FlowMatchEulerDiscreteScheduler):
    def set_timesteps(self, *arguments, **named):
        self.set_shift(self.config.shift)
        super().set_timesteps(*arguments, **named)


class FluxPipeline(diffusers.FluxPipeline):
    @classmethod
    def from_pretrained(cls, *arguments, **named):
        found = super().from_pretrained(*arguments, **named)
        found.scheduler = Scheduler.from_config(found.scheduler.config)
        return found

    @torch.no_grad()
    def __call__(
        self,
        prompt,
        num_inference_steps1,
        num_inference_steps2,
        guidance_scale1,
        guidance_scale2,
        height,
        width,
        ntk_factor,
        time_shift_1,
        time_shift_2,
        proportional_attention,
        text_duplication,
        swin_pachify,
        guidance_schedule,
        callback_on_step_end,
        generator=None,
    ):
        assert guidance_schedule == "cosine_decay"
        self.text = self.encode_prompt(prompt, None, max_sequence_length=512)
        toolkit = {
            "ntk_factor": ntk_factor,
            "proportional_attention": proportional_attention,
            "text_duplication": text_duplication,
        }
        times = round(math.sqrt(height * width) / 128)
        z = self.drawn(height // times, width // times, generator)
        sigmas = self.levels(time_shift_1, num_inference_steps1)
        for i in range(num_inference_steps1):
            v = self.velocity(z, sigmas[i], guidance_scale1, {})
            z = z + (sigmas[i + 1] - sigmas[i]) * v
            callback_on_step_end(self, i, None, {"latents": self.packed(z)})
        image = F.interpolate(self.decoded(z), (height, width), mode="bicubic")
        config = self.vae.config
        reference = self.vae.tiled_encode(image).latent_dist.sample()
        reference = (reference - config.shift_factor) * config.scaling_factor
        z = self.drawn(height, width, generator)
        sigmas = self.levels(time_shift_2, num_inference_steps2)
        for i in range(num_inference_steps2):
            if swin_pachify:
                pad = (1, 1, 1, 1) if i % 2 == 0 else (-1, -1, -1, -1)
                z, reference = F.pad(z, pad), F.pad(reference, pad)
            v = self.velocity(z, sigmas[i], guidance_scale2, toolkit)
            towards = (z - reference) / sigmas[i]
            fade = 0.5 * (1 + math.cos(math.pi * i / num_inference_steps2))
            v = v + fade * blocks(towards - v)
            z = z + (sigmas[i + 1] - sigmas[i]) * v
            callback_on_step_end(self, i, None, {"latents": self.packed(z)})
        return FluxPipelineOutput(images=self.image_processor.postprocess(self.decoded(z)))

    def drawn(self, height, width, generator):
        return randn_tensor((1, 16, height // 8, width // 8), generator=generator, dtype=torch.float32)

    def levels(self, shift, steps):
        self.scheduler.config.shift = shift
        self.scheduler.set_timesteps(sigmas=[1 - i / steps for i in range(steps)], device="cpu")
        return [float(sigma) for sigma in self.scheduler.sigmas]

    def velocity(self, z, sigma, guidance, toolkit):
        text, pooled, text_ids = self.text
        rows, columns = z.shape[-2] // 2, z.shape[-1] // 2
        tokens = self.transformer(
            self.packed(z),
            text,
            text_ids,
            self._prepare_latent_image_ids(1, rows, columns, "cpu", torch.float32),
            timestep=torch.tensor([sigma]),
            guidance=torch.tensor([float(guidance)]),
            pooled_projections=pooled,
            return_dict=False,
            **toolkit,
        )[0]
        return self._unpack_latents(tokens, 8 * z.shape[-2], 8 * z.shape[-1], 8)

    def packed(self, z):
        return self._pack_latents(z, *z.shape)

    def decoded(self, z):
        config = self.vae.config
        return self.vae.tiled_decode(z / config.scaling_factor + config.shift_factor, return_dict=False)[0]


def blocks(x):
    """The low Haar band: each block of 2 x 2 is its mean."""
    return F.avg_pool2d(x, 2).repeat_interleave(2, -1).repeat_interleave(2, -2)
