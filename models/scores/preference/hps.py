"""HPS v2.1 (arXiv 2306.09341): a CLIP ViT-H/14 of open_clip that was trained on human preferences."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from uhr.models.scores.clip import ClipModel, Dtype
from uhr.models.scores.images import as_tensor

if TYPE_CHECKING:
    import torch


class HpsModel(ClipModel):
    """Embeddings with the preprocessing of HPS's own code: the longer side is resized to the input (torch's
    bicubic filter on floats, antialiased, not clipped), and black bars fill the square.

    It differs from open_clip's preprocessing for a ViT-H/14, which crops the centre.
    """

    @classmethod
    def load(
        cls,
        weights: str | Path,
        device: str = "cpu",
        dtype: Dtype = "float32",
        architecture: str | None = "ViT-H-14",
    ) -> Self:
        """Load `HPS_v2.1_compressed.pt`. Raises UserError as `ClipModel.load`."""
        return super().load(weights, device, dtype, architecture)

    def embed(self, images: Sequence[Any]) -> torch.Tensor:
        """Return the embeddings of images, float32 [N, D] on the model's device."""
        import torch

        pixels = torch.cat([self._input(as_tensor(image)) for image in images])
        return self._normalised(self._model.encode_image, pixels.to(self._device, self._dtype))

    def _input(self, image: torch.Tensor) -> torch.Tensor:
        import torch

        side = self._side
        planes = image.permute(2, 0, 1)[None].float() / 255
        height, width = planes.shape[2:]
        scale = side / max(height, width)
        size = (round(height * scale), round(width * scale))
        if size != (height, width):
            planes = torch.nn.functional.interpolate(planes, size, mode="bicubic", antialias=True)
        down, right = side - size[0], side - size[1]
        bars = (right // 2, right - right // 2, down // 2, down - down // 2)
        planes = torch.nn.functional.pad(planes, bars)
        mean, std = (planes.new_tensor(values).view(1, 3, 1, 1) for values in (self._mean, self._std))
        return (planes - mean) / std
