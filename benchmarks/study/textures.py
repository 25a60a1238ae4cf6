"""Small images of classes for a small FLUX transformer: a coarse pattern and a fine grating per class.

They are made as model latents [B, C, SIDE, SIDE] directly. The fine part holds as much of the variance as an
image's detail would, so that what a loss does to detail can be measured.
"""

from __future__ import annotations

import copy
from typing import Any

import torch

from uhr.models.families.registry import FAMILIES
from uhr.models.specs.registry import get
from uhr.train.objectives.base import Batch, BatchCondition
from uhr.train.objectives.draws import Draws
from uhr.train.objectives.flow import Flow
from uhr.train.run.denoiser import BackboneDenoiser
from uhr.train.trainable.adapters import Lora

CHANNELS, SIDE, CLASSES, TEXT = 4, 12, 6, 2
SPEC = get("tiny-flux1")


def images(labels: torch.Tensor, generator: torch.Generator, detail: float = 0.5) -> torch.Tensor:
    """Draw an image of each class, float32 [N, CHANNELS, SIDE, SIDE].

    The coarse pattern has a sign per class and channel and a random place; the grating has the class's
    direction, a random phase, and the amplitude `detail`.
    """
    count = len(labels)
    axis = torch.arange(SIDE) / SIDE
    rows, columns = axis.view(1, SIDE, 1), axis.view(1, 1, SIDE)
    place = 0.25 + 0.5 * torch.rand(count, 2, 1, 1, generator=generator)
    blob = torch.exp(-((rows - place[:, 0]) ** 2 + (columns - place[:, 1]) ** 2) / 0.08)
    signs = 1.0 - 2.0 * ((labels[:, None] >> torch.arange(CHANNELS)) & 1)
    angle = torch.pi * labels.view(-1, 1, 1) / CLASSES
    phase = 2 * torch.pi * torch.rand(count, 1, 1, generator=generator)
    wave = torch.sin(2 * torch.pi * 4 * (rows * angle.sin() + columns * angle.cos()) + phase)
    grain = 0.1 * torch.randn(count, CHANNELS, SIDE, SIDE, generator=generator)
    return 1.5 * signs[..., None, None] * blob[:, None] + detail * wave[:, None] + grain


def batch(
    count: int, generator: torch.Generator, detail: float = 0.5, wrong: float = 0.0, sigma: Any = None
) -> Batch:
    """Draw a batch of images with their classes as texts, a share `wrong` of which are of another class.

    sigma: noise level of all samples; None draws each from U(0.02, 0.98).
    """
    labels = torch.randint(CLASSES, (count,), generator=generator)
    data = images(labels, generator, detail)
    mistaken = torch.rand(count, generator=generator) < wrong
    said = torch.where(mistaken, torch.randint(CLASSES, (count,), generator=generator), labels)
    drawn = 0.02 + 0.96 * torch.rand(count, generator=generator)
    levels = drawn if sigma is None else torch.full((count,), float(sigma))
    pooled = torch.nn.functional.one_hot(said, 32).float() * 4
    sequence = torch.zeros(count, TEXT, 32)
    sequence[:, 0] = pooled
    texts = {"t5": sequence, "pooled": pooled}
    null = {"t5": torch.zeros(1, TEXT, 32), "pooled": torch.zeros(1, 32)}
    condition = BatchCondition(texts, null, torch.ones(count))
    return Batch(data, torch.randn(data.shape, generator=generator), levels, condition, ())


def transformer(seed: int) -> Any:
    """A FLUX.1 transformer of two double and two single blocks for these images, with random weights."""
    from diffusers import FluxTransformer2DModel

    torch.manual_seed(seed)
    return FluxTransformer2DModel(
        patch_size=1,
        in_channels=4 * CHANNELS,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=32,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        guidance_embeds=True,
        axes_dims_rope=(4, 14, 14),
    )


def denoiser(model: Any, part: Any = None) -> BackboneDenoiser:
    """The transformer as objectives see it."""
    return BackboneDenoiser(FAMILIES["flux1"], model, part or Lora(rank=1, alpha=1, targets=("to_q",)))


def held_out(model: Any, detail: float, count: int = 512) -> float:
    """Flow matching loss on fixed draws with right classes."""
    samples = batch(count, torch.Generator().manual_seed(77), detail)
    with torch.no_grad():
        return Flow()(denoiser(model), samples, Draws(0, 0, range(count))).per_sample().mean().item()


def copied(model: Any) -> Any:
    """A copy of a model."""
    return copy.deepcopy(model)
