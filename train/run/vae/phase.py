"""A data set of pixels in a phase, and what its images are trained by."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch

from uhr.train.data.mixture import Turn, UseOrder
from uhr.train.data.reader import EncodedData, PixelRows
from uhr.train.objectives.draws import Draws
from uhr.train.objectives.vae.base import VaeErrors, VaeLoss, VaeObjective
from uhr.train.recipes.core.vae import VaeRecipe
from uhr.train.run.vae.autoencoder import Autoencoder


@dataclass(frozen=True)
class ImageBatch:
    """Images of one size: float32 [B, 3, H, W] in [-1, 1].

    mask: float32 [B, 1, H, W] in [0, 1], 1 where a pixel takes part in training; None is everywhere.
    """

    images: torch.Tensor
    mask: torch.Tensor | None = None

    def slice(self, start: int, stop: int) -> ImageBatch:
        """The images from `start` to `stop` (exclusive)."""
        return ImageBatch(self.images[start:stop], None if self.mask is None else self.mask[start:stop])

    @property
    def noise_levels(self) -> None:
        """A VAE is trained without noise."""
        return None

    @property
    def amount(self) -> tuple[str, float]:
        """The size of one sample, with its unit, for rates in the log."""
        return "megapixels", self.images.shape[-2] * self.images.shape[-1] / 1e6


def images_of(rows: PixelRows, device: torch.device) -> torch.Tensor:
    """Stored pixels as images, float32 [B, 3, H, W] in [-1, 1]."""
    return rows.pixels.to(device).float() / 127.5 - 1


class PixelUse:
    """One data set of a phase, and how its images are trained.

    Args:
        latents: "sample" decodes draws of the encoder's distribution, "mean" its mean.
        loss_weight: factor of the loss.
    """

    def __init__(
        self,
        data: EncodedData,
        objective: VaeObjective,
        latents: str,
        loss_weight: float,
        device: torch.device,
    ) -> None:
        self.data, self.objective, self.latents = data, objective, latents
        self.loss_weight, self.device = loss_weight, device

    @classmethod
    def of(cls, recipe: VaeRecipe, phase: int, order: UseOrder, device: torch.device) -> PixelUse:
        """A data set of a phase as the recipe uses it."""
        objective = recipe.phases[phase].objective
        return cls(order.data, objective, recipe.latents, order.use.loss_weight, device)

    @cached_property
    def _loss(self) -> VaeLoss:
        return self.objective.open(self.device)

    def read(self, turn: Turn, draws: Draws) -> PixelRows:
        """Read the rows of a batch."""
        return self.data.read_pixels(turn.bucket, turn.rows)

    def batch(self, rows: PixelRows, draws: Draws) -> ImageBatch:
        """Make a batch from stored rows."""
        mask = None if rows.mask is None else rows.mask[:, None].to(self.device).float() / 255
        return ImageBatch(images_of(rows, self.device), mask)

    def errors(
        self, autoencoder: Autoencoder, batch: ImageBatch, draws: Draws
    ) -> tuple[torch.Tensor, VaeErrors]:
        """The reconstructions, float32 [B, 3, H, W], and their errors.

        With a mask, whatever the objective: where the mask is 0, the reconstruction is replaced by the
        original, which leaves no difference, and the errors are divided by the mask's mean, so that a small
        area counts as much as a whole image. An image whose mask is 0 everywhere has the loss 0.
        """
        coded = autoencoder.code(batch.images, draws if self.latents == "sample" else None)
        if batch.mask is None:
            return coded.images, self._loss(batch.images, coded)
        inside = batch.images + batch.mask * (coded.images - batch.images)
        errors = self._loss(batch.images, replace(coded, images=inside))
        # at least one pixel of the mask's 8 bits, or none
        share = batch.mask.mean(dim=(1, 2, 3)).clamp(min=1 / (255 * batch.mask[0].numel()))
        parts = {name: value / share for name, value in errors.parts.items()}
        return coded.images, VaeErrors(errors.loss / share, parts)

    def loss(
        self, network: Autoencoder, batch: ImageBatch, draws: Draws
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The loss of each image with its weight, float32 [B], and its named parts, [B] each."""
        _, errors = self.errors(network, batch, draws)
        return errors.loss * self.loss_weight, dict(errors.parts)
