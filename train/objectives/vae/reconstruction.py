"""UltraFlux's loss for its F16 VAE: squared error, perceptual distance and wavelet bands, without a GAN."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field, model_validator

from uhr.models.metrics.lpips import LpipsNetwork
from uhr.train.objectives.vae.base import Coded, VaeErrors, VaeLoss, VaeObjective
from uhr.train.objectives.vae.perceptual import Perceptual

if TYPE_CHECKING:
    import torch


def squared_error(images: torch.Tensor, reconstructed: torch.Tensor) -> torch.Tensor:
    """The mean squared difference of each image, [B], of [B, 3, H, W] in [-1, 1]."""
    return (reconstructed - images).square().mean(dim=(1, 2, 3))


def wavelet_error(images: torch.Tensor, reconstructed: torch.Tensor) -> torch.Tensor:
    """The mean absolute difference of the three detail bands of one level of orthonormal Haar, [B].

    The low band is left out: the squared error already weighs low frequencies most, since natural images have
    most of their energy there.
    """
    import torch

    from uhr.models.ops.filters import haar

    # the transform is linear
    _, *details = haar(reconstructed - images)
    return torch.stack([band.abs().mean(dim=(1, 2, 3)) for band in details]).mean(dim=0)


def peak_signal_to_noise(images: torch.Tensor, reconstructed: torch.Tensor) -> torch.Tensor:
    """PSNR of each image in dB, float32 [B], of [B, 3, H, W] in [-1, 1].

    Reconstructions are clipped first, as they are when they become images of 8 bits. The peak is the range,
    2, so that the value is that of pixels in [0, 255]. At most 160 dB, where float32 ends.
    """
    mean = squared_error(images.float(), reconstructed.float().clamp(-1, 1))
    return 10 * (4 / mean.clamp(min=4e-16)).log10()


class ReconstructionLoss(VaeObjective):
    """l2 * squared error + perceptual.weight * LPIPS + wavelet * error of the Haar detail bands.

    UltraFlux (2511.18050) gives the three weights, and no formula for its wavelet term: ours is the mean
    absolute error of the detail bands. It has no adversarial term, as in the paper.

    l2, wavelet: weights; 0 leaves the term out. perceptual: weight and files of LPIPS.
    """

    kind: str = "reconstruction"
    l2: float = Field(1.0, ge=0)
    perceptual: Perceptual = Perceptual()
    wavelet: float = Field(0.2, ge=0)

    @model_validator(mode="after")
    def _something(self) -> ReconstructionLoss:
        if not (self.l2 or self.wavelet or self.perceptual.weight):
            raise ValueError("all weights are 0: nothing would be trained")
        return self

    def check(self, where: str) -> None:
        self.perceptual.check(f"{where}.perceptual")

    def missing(self, where: str) -> Sequence[str]:
        found = self.perceptual.missing(f"{where}.perceptual")
        return [] if found is None else [f"{found[0]}, which this plan does not: {found[1]}"]

    def pinned(self, where: str) -> ReconstructionLoss:
        return self.model_copy(update={"perceptual": self.perceptual.pinned(f"{where}.perceptual")})

    def published(self) -> ReconstructionLoss:
        return self.model_copy(update={"perceptual": self.perceptual.published()})

    def notes(self) -> Sequence[str]:
        off = [name for name in ("l2", "wavelet") if not getattr(self, name)]
        off += [] if self.perceptual.weight else ["perceptual"]
        return [f"the {name} term of the loss is off: its weight was set to 0" for name in off]

    def open(self, device: torch.device) -> VaeLoss:
        perceptual = LpipsNetwork.load(self.perceptual, device) if self.perceptual.weight else None

        def loss(images: torch.Tensor, coded: Coded) -> VaeErrors:
            import torch

            target, found = images.float(), coded.images.float()
            parts = {}
            if self.l2:
                parts["l2"] = squared_error(target, found)
            if perceptual is not None:
                parts["perceptual"] = perceptual(target, found)
            if self.wavelet:
                parts["wavelet"] = wavelet_error(target, found)
            weights = {"l2": self.l2, "perceptual": self.perceptual.weight, "wavelet": self.wavelet}
            terms = [weights[name] * value for name, value in parts.items()]
            return VaeErrors(torch.stack(terms).sum(dim=0), parts)

        return loss
