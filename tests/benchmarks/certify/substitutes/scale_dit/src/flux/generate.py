"""Substitute for Scale-DiT's generate: a base image, its latents enlarged, and a stage in windows with the
base as guide."""

import copy
import math

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.pipelines.flux.pipeline_flux import FluxPipelineOutput
from diffusers.utils.torch_utils import randn_tensor

from .block import _BLOCK_MASK_CACHE
from .pipeline_tools import inverse_permutation, window_permutation
from .transformer import forward


@torch.no_grad()
def generate(pipeline, prompt, height, width, model_config, max_sequence_length, guidance_scale,
             num_inference_steps, hr_inference_steps, hr_guidance_scale, save_path, callback_on_step_end,
             generator=None):  # fmt: skip
    assert model_config["guidance_schedule"] == "cosine_decay"
    (mask,) = _BLOCK_MASK_CACHE.values()
    assert mask.shape == (1, pipeline.transformer.config.num_attention_heads, 5, 10)
    pipeline.vae.enable_tiling()
    model, plain = pipeline.transformer, copy.deepcopy(pipeline.transformer)
    plain.delete_adapters("default")
    low_height, low_width = model_config["joint_denoise_size"]
    text, pooled, text_ids = pipeline.encode_prompt(prompt, None, max_sequence_length=max_sequence_length)
    sigmas = np.linspace(1, 1 / num_inference_steps, num_inference_steps)
    sigmas = [*(3 * sigmas / (1 + 2 * sigmas)).tolist(), 0.0]

    def ids(rows, columns, step=1):
        return step * pipeline._prepare_latent_image_ids(1, rows, columns, "cpu", torch.float32)

    def velocity(tokens, sigma, guidance, angles, mask=None, guide=None):
        state = {
            "tokens": tokens, "text": text, "pooled": pooled, "sigma": torch.tensor(sigma),
            "guidance": torch.tensor(guidance), "angles": angles, "mask": mask,
        }  # fmt: skip
        return forward(model, plain, state, guide)

    rows, columns = low_height // 16, low_width // 16
    z = randn_tensor((1, 16, 2 * rows, 2 * columns), generator=generator, dtype=torch.float32)
    tokens = pipeline._pack_latents(z, *z.shape)
    angles = positions(torch.cat([text_ids, ids(rows, columns)]), model_config["ntk_factor"])
    for i, sigma in enumerate(sigmas[:-1]):
        tokens = tokens + (sigmas[i + 1] - sigma) * velocity(tokens, sigma, guidance_scale, angles)
        callback_on_step_end(pipeline, i, sigma, {"latents": tokens})
    guide = tokens

    z = pipeline._unpack_latents(guide, low_height, low_width, 8)
    large = F.interpolate(z, (height // 8, width // 8), mode="bicubic", align_corners=False)
    data = pipeline._pack_latents(large, *large.shape)
    high = height // 16, width // 16
    window = model_config["window_size"][0] // 16
    order = window_permutation(H=high[0], W=high[1], Wh=window, Ww=window)
    back = inverse_permutation(order)
    levels = sigmas[-hr_inference_steps - 1 :]
    tokens = (1 - levels[0]) * data + levels[0] * torch.randn_like(data)
    tokens, data = tokens[:, order], data[:, order]
    every = torch.cat([text_ids, ids(*high)[order], ids(rows, columns, height // low_height)])
    angles = positions(every, model_config["ntk_factor"])
    place = torch.cat([ids(*high)[order], ids(rows, columns, height // low_height)])[:, 1:]
    mask = paper_mask(place, window, len(text_ids), len(order))

    def low(x):
        spread = pipeline._unpack_latents(x[:, back], height, width, 8)
        means = F.avg_pool2d(spread, 2).repeat_interleave(2, -1).repeat_interleave(2, -2)
        return pipeline._pack_latents(means, *means.shape)[:, order]

    for i, sigma in enumerate(levels[:-1]):
        v = velocity(tokens, sigma, hr_guidance_scale, angles, mask, guide)
        towards = (tokens - data) / sigma
        fade = 0.5 * (1 + math.cos(math.pi * (i + hr_inference_steps) / num_inference_steps))
        v = v + fade * low(towards - v)
        tokens = tokens + (levels[i + 1] - sigma) * v
        callback_on_step_end(pipeline, i, sigma, {"latents": tokens})
    z = pipeline._unpack_latents(tokens[:, back], height, width, 8)
    config = pipeline.vae.config
    image = pipeline.vae.decode(z / config.scaling_factor + config.shift_factor, return_dict=False)[0]
    images = pipeline.image_processor.postprocess(image)
    return FluxPipelineOutput(images=[images, images[0]])


def positions(ids, factor, axes=(4, 14, 14)):
    angles = []
    for axis, dim in enumerate(axes):
        share = torch.arange(0, dim, 2, dtype=torch.float64) / dim
        angles.append(ids[:, axis, None].double() * (10000.0 * factor) ** -share)
    turned = torch.cat(angles, 1).repeat_interleave(2, 1)
    return turned.cos().float(), turned.sin().float()


def paper_mask(place, window, text, count):
    """Which query sees which key, over text, image and guide: windows and their neighbours, the guide of the
    same window, and the guide itself without text."""
    cell = place // window
    near = ((cell[:, None] - cell[None]).abs() <= 1).all(-1)
    same = (cell[:, None] == cell[None]).all(-1)
    image = torch.arange(len(place)) < count
    seen = torch.zeros(text + len(place), text + len(place), dtype=torch.bool)
    seen[:text, : text + count] = True
    seen[text : text + count, :text] = True
    inner = seen[text:, text:]
    inner |= image[:, None] & image[None] & near
    inner |= image[:, None] & ~image[None] & same
    inner |= ~image[:, None] & ~image[None]
    return seen
