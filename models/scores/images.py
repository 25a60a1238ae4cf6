"""Images as scorers take them, and the size at which a scorer expects them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch

Filter = Literal["bilinear", "bicubic"]


@dataclass(frozen=True)
class View:
    """The size of the image that a scorer receives. An image that is smaller already is not enlarged.

    Without a side the scorer receives the image at its own size. `filter` is the antialiased filter of
    torch on uint8, within one level of Pillow's filter of the same name.
    """

    shortest: int | None = None
    longest: int | None = None
    filter: Filter = "bicubic"

    def __post_init__(self) -> None:
        if self.shortest is not None and self.longest is not None:
            raise ValueError(f"{self} limits both sides; give one")

    def describe(self) -> str:
        """Return a short text such as `at most 1024 px on the longer side, bicubic`."""
        side = self.shortest or self.longest
        if side is None:
            return "the image at its own size"
        return f"at most {side} px on the {'shorter' if self.shortest else 'longer'} side, {self.filter}"

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Return width and height of the view of an image of this size, in px.

        The other side is rounded down, as torchvision and transformers do when they resize.
        """
        side = self.shortest or self.longest
        reference = min(width, height) if self.shortest is not None else max(width, height)
        if side is None or side >= reference:
            return width, height
        return max(1, side * width // reference), max(1, side * height // reference)

    def of(self, image: Any, reverse: bool = False) -> torch.Tensor:
        """Return the view of an image, uint8 [H, W, 3]; its channels in reverse, if `reverse`."""
        import cv2
        import torch

        tensor = as_tensor(image)
        height, width = tensor.shape[:2]
        size = self.size(width, height)
        if size == (width, height):
            return tensor.flip(-1) if reverse else tensor
        planes = tensor.permute(2, 0, 1)[None]
        resized = torch.nn.functional.interpolate(planes, size[::-1], mode=self.filter, antialias=True)[0]
        if resized.device.type != "cpu":
            return (resized.flip(0) if reverse else resized).permute(1, 2, 0).contiguous()
        # torch returns planes, and takes twenty times as long to interleave them
        channels = [plane.numpy() for plane in resized]
        return torch.from_numpy(cv2.merge(channels[::-1] if reverse else channels))


def as_tensor(image: Any) -> torch.Tensor:
    """Return an image as a uint8 tensor [H, W, 3]. Raises ValueError for any other type or shape."""
    import numpy as np
    import torch

    if isinstance(image, np.ndarray) and not image.flags.writeable:
        image = image.copy()  # torch warns about arrays that it might write to
    tensor = torch.as_tensor(image)
    if tensor.dtype != torch.uint8 or tensor.ndim != 3 or tensor.shape[2] != 3 or 0 in tensor.shape:
        raise ValueError(f"an image is uint8 [H, W, 3], and this is {tensor.dtype} {list(tensor.shape)}")
    return tensor


def as_planes(image: Any, device: Any) -> torch.Tensor:
    """Return an image as a uint8 tensor [3, H, W] on `device`."""
    return as_tensor(image).to(device).permute(2, 0, 1)


def as_pil(images: Sequence[Any]) -> list[Any]:
    """Return images for the preprocessing of transformers and open_clip, which take Pillow's."""
    from PIL import Image

    return [Image.fromarray(as_tensor(image).cpu().numpy()) for image in images]
