"""Substitute for HiFlow's pipeline: its cascade on diffusers' parts, on latents [B, C, H, W] in float32.

The ring of swin patchify is on the latents during a step, so that filters see it, as in the official code.
"""

import math

import diffusers
import numpy as np
import torch
import torch.nn.functional as F
from diffusers.pipelines.flux.pipeline_flux import FluxPipelineOutput
from diffusers.utils.torch_utils import randn_tensor
from torchvision.transforms.functional import gaussian_blur


class FluxPipeline(diffusers.FluxPipeline):
    @torch.no_grad()
    def __call__(
        self,
        prompt,
        height,
        width,
        guidance_scale,
        num_inference_steps,
        max_sequence_length,
        ntk_factor,
        proportional_attention,
        text_duplication,
        swin_pachify,
        target_heights,
        target_widths,
        num_inference_steps_highres,
        filter_ratio,
        guidance_scale_highres,
        structure_guidance,
        alphas,
        betas,
        upsampling_choice,
        flow_choice,
        sharpening_sigma,
        callback_on_step_end,
        generator=None,
    ):
        assert (structure_guidance, upsampling_choice, flow_choice) == ("fft", "latent", "v_theta")
        self.text = self.encode_prompt(prompt, None, max_sequence_length=max_sequence_length)
        self.toolkit = {
            "proportional_attention": proportional_attention,
            "text_duplication": text_duplication,
        }
        self.vae.enable_tiling()
        mu = 0.5 + (height * width / 256 - 256) * 0.65 / 3840
        grid = np.linspace(1, 1 / num_inference_steps, num_inference_steps)
        sigmas = [*(math.exp(mu) / (math.exp(mu) + 1 / grid - 1)).tolist(), 0.0]
        z = randn_tensor((1, 16, height // 8, width // 8), generator=generator, dtype=torch.float32)
        estimates = {}
        for i, sigma in enumerate(sigmas[:-1]):
            v = self.velocity(z, sigma, guidance_scale, 1.0)
            estimates[sigma] = z - sigma * v
            z = z + (sigmas[i + 1] - sigma) * v
            callback_on_step_end(self, i, sigma, {"latents": self.packed(z)})
        for stage, size in enumerate(zip(target_heights, target_widths, strict=True)):
            steps = num_inference_steps_highres[stage]
            levels = sigmas[-steps - 1 :]
            image = F.interpolate(self.decoded(z), size, mode="bicubic", align_corners=False)
            image = 2 * image - gaussian_blur(image, [3, 3], [sharpening_sigma[0]] * 2)
            data = self.encoded(image)
            # the official code draws this noise as tokens
            tokens = randn_tensor(self.packed(data).shape, generator=generator, dtype=torch.float32)
            z = levels[0] * self.spread(tokens, data) + (1 - levels[0]) * data
            before = None
            for i, sigma in enumerate(levels[:-1]):
                ringed = swin_pachify and i % 2 == 0
                if swin_pachify:
                    pad = (1, 1, 1, 1) if ringed else (-1, -1, -1, -1)
                    z = F.pad(z, pad)
                    before = before and tuple(F.pad(each, pad) for each in before)
                v = self.velocity(z, sigma, guidance_scale_highres[stage], ntk_factor[stage])
                data = z - sigma * v
                reference = F.interpolate(estimates[sigma], z.shape[-2:], mode="bicubic", align_corners=False)
                estimates[sigma] = data
                fade = (steps - i) / steps
                data = data + alphas[stage] * fade * low(reference - data, filter_ratio[stage])
                now, aim = (z - data) / sigma, (z - reference) / sigma
                if before is not None:
                    now = now + betas[stage] * fade * (before[0] + aim - before[1] - now)
                before = now, aim
                z = z + (levels[i + 1] - sigma) * now
                callback_on_step_end(self, i, sigma, {"latents": self.packed(z)})
        return FluxPipelineOutput(images=self.image_processor.postprocess(self.decoded(z)))

    def velocity(self, z, sigma, guidance, ntk):
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
            ntk_factor=ntk,
            return_dict=False,
            **self.toolkit,
        )[0]
        return self.spread(tokens, z)

    def packed(self, z):
        return self._pack_latents(z, *z.shape)

    def spread(self, tokens, like):
        height, width = like.shape[-2:]
        return self._unpack_latents(tokens, 8 * height, 8 * width, 8)

    def decoded(self, z):
        config = self.vae.config
        return self.vae.decode(z / config.scaling_factor + config.shift_factor, return_dict=False)[0]

    def encoded(self, image, draw=False):
        config, posterior = self.vae.config, self.vae.encode(image).latent_dist
        return (
            (posterior.sample() if draw else posterior.mode()) - config.shift_factor
        ) * config.scaling_factor


def low(x, cutoff):
    """Butterworth of order 4 on centred frequencies, as fractions of the largest."""
    rows, columns = (2 * torch.arange(n) / n - 1 for n in x.shape[-2:])
    squares = rows[:, None] ** 2 + columns**2
    gain = 1 / (1 + (squares / cutoff**2) ** 4)
    return torch.fft.ifft2(
        torch.fft.ifftshift(torch.fft.fftshift(torch.fft.fft2(x), (-2, -1)) * gain, (-2, -1))
    ).real
