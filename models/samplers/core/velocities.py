"""Wrappers of a guided velocity that several samplers share. Each takes a velocity and returns one."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from uhr.models.ops import swin
from uhr.models.ops.choices import Ring
from uhr.models.ops.patches.grid import Box, Canvas
from uhr.models.samplers.core.conditioning import Conditions
from uhr.models.samplers.core.engine import Engine, Velocity


def ringed(engine: Engine, z: torch.Tensor, sigma: float, ring: Ring, width: int = 1) -> torch.Tensor:
    """Pad z by a ring of `width` positions (`swin.pad`), with noise from the call's generator."""
    height, across = (engine.facts.vae_factor * (side + 2 * width) for side in z.shape[-2:])
    return swin.pad(z, sigma, ring, lambda: engine.noise.draw(z.shape[0], (height, across)), width)


def swin_patchify(velocity: Velocity, engine: Engine, ring: Ring) -> Velocity:
    """Return the velocity with the packing grid shifted by half a token on every other step (`swin.py`)."""

    def shifted(z: torch.Tensor, sigma: float, step: int, conditions: Conditions) -> torch.Tensor:
        if not swin.shifts(step):
            return velocity(z, sigma, step, conditions)
        around = ringed(engine, z, sigma, ring)
        return swin.crop(velocity(around, sigma, step, conditions))

    return shifted


def window_mean(velocity: Velocity, boxes: Sequence[Box], ring: int = 0) -> Velocity:
    """Return the mean of the velocities in `boxes` of z, over the boxes that cover each position.

    Position ids count from 0 in every window, as in an image of its own. With a `ring`, the windows see that
    many positions around z, which are left out of the result.
    """

    def mean(z: torch.Tensor, sigma: float, step: int, conditions: Conditions) -> torch.Tensor:
        batch, channels, height, width = z.shape
        canvas = Canvas(batch, channels, height - 2 * ring, width - 2 * ring, z.device)
        for box in boxes:
            top, left = max(ring - box.top, 0), max(ring - box.left, 0)
            tall = min(box.height, height - ring - box.top) - top
            wide = min(box.width, width - ring - box.left) - left
            found = velocity(box.crop(z), sigma, step, conditions)
            inside = Box(box.top + top - ring, box.left + left - ring, tall, wide)
            canvas.add(inside, Box(top, left, tall, wide).crop(found))
        return canvas.result()

    return mean
