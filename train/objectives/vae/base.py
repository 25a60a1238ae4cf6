"""The interface of a VAE's objectives: what they are given, and what they return.

Shapes: B images of H x W px, C latent channels of h x w. Images are sRGB in [-1, 1].
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from uhr.base.kinds import Kind

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Coded:
    """Images after the VAE's encoder and decoder.

    mean, std: of the encoder's distribution, raw (unscaled), float32 [B, C, h, w].
    images: the reconstructions, float32 [B, 3, H, W], nominally in [-1, 1] and not clipped.
    """

    mean: torch.Tensor
    std: torch.Tensor
    images: torch.Tensor


@dataclass(frozen=True)
class VaeErrors:
    """What an objective returns: the loss of each image, float32 [B], and its named parts, [B] each."""

    loss: torch.Tensor
    parts: Mapping[str, torch.Tensor] = field(default_factory=dict)


VaeLoss = Callable[["torch.Tensor", Coded], VaeErrors]
"""`loss(images, coded)`: a pure function of the images, float32 [B, 3, H, W], and what the VAE makes of them.
"""


class VaeObjective(Kind):
    """An objective of a VAE and its parameters."""

    def check(self, where: str) -> None:
        """Raise UserError if a file that it needs is missing or invalid.

        where: its place in the recipe, such as `phases.main.objective`.
        """
        return

    def missing(self, where: str) -> Sequence[str]:
        """What a run needs besides this configuration, and how to get it: one sentence each, for a plan.

        where: as in `check`.
        """
        return ()

    def pinned(self, where: str) -> VaeObjective:
        """The same with the hash of every file that it reads, so that a resumed run reads the same ones.

        Raises UserError if a file has another hash than it had before.
        """
        return self

    def published(self) -> VaeObjective:
        """The same without paths of this machine, for a model card."""
        return self

    def notes(self) -> Sequence[str]:
        """What a reader of a plan must know about it, one sentence each."""
        return ()

    @abstractmethod
    def open(self, device: torch.device) -> VaeLoss:
        """Load what it needs onto a device, and return the loss."""
