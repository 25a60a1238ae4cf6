"""How close an image is to its reference, pixel by pixel: PSNR, SSIM and LPIPS.

For a VAE the image is what it reconstructs from the reference (`uhr.models.vae.codec.reconstruct`); FID
between the two sets is then rFID.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import Field

from uhr.base.config import Config
from uhr.base.errors import UserError
from uhr.base.files import user_path
from uhr.models.loading.hashes import file_hash
from uhr.models.metrics.base import About, Minimum, Need, Sample, check_same_size
from uhr.models.metrics.lpips import NETWORKS, LpipsNetwork, Network
from uhr.models.metrics.per_image import PerImage
from uhr.models.scores.images import View, as_planes

if TYPE_CHECKING:
    import numpy as np
    import torch

_STRIP = 512
"""Rows that are computed at once: memory does not grow with the image."""

MOST_PSNR = 100
"""dB of equal images, whose PSNR is infinite and would leave no mean, and of all that are closer than that: a
megapixel with one value that is off by 1 has 113 dB."""


_WINDOW, _SIGMA = 11, 1.5


class _Pairs(PerImage):
    """Base of metrics of an image and its reference of the same size."""

    needs: frozenset[Need] = frozenset({"reference"})

    @classmethod
    def minimum(cls, options: Any) -> Minimum:
        return Minimum(side=cls.smallest, same_size=True)

    def values(self, sample: Sample) -> tuple[float]:
        return (self.distance(*check_same_size(sample, self.name)),)

    @abstractmethod
    def distance(self, image: np.ndarray, reference: np.ndarray) -> float:
        """Return the value of the image, uint8 RGB [H, W, 3], against its reference."""


class Psnr(_Pairs):
    """Peak signal-to-noise ratio of all channels together, 10 log10(255^2 / mean squared error), in dB, at
    most 100: equal images, whose ratio is infinite, have 100 dB.
    """

    about = About("closeness to the reference by squared error, in dB", "Apache-2.0", "definition")

    class Options(Config):
        """No options."""

    def __init__(self) -> None:
        super().__init__(f"psnr/rgb/most-{MOST_PSNR}", f"[0, {MOST_PSNR}] dB")

    @classmethod
    def load(cls, options: Any, device: str = "cpu") -> Psnr:
        return cls()

    def distance(self, image: np.ndarray, reference: np.ndarray) -> float:
        import numpy as np

        total = 0.0
        for top in range(0, len(image), _STRIP):
            rows = slice(top, top + _STRIP)
            error = image[rows].astype(np.float64) - reference[rows]
            total += float((error * error).sum())
        return MOST_PSNR if total == 0 else min(MOST_PSNR, 10 * math.log10(255**2 * image.size / total))


class Ssim(_Pairs):
    """Structural similarity (Wang et al. 2004) with its Gaussian window of 11 px and sigma 1.5, as the mean
    over channels and over the pixels whose window is inside the image.

    It is scikit-image's `structural_similarity` with `gaussian_weights`, `sigma=1.5`, `data_range=255` and
    without `use_sample_covariance`.
    """

    about = About("closeness to the reference by local structure", "Apache-2.0", "Wang et al. 2004")

    smallest = _WINDOW

    class Options(Config):
        """No options."""

    def __init__(self) -> None:
        super().__init__("ssim/rgb/gaussian-11", "[-1, 1]", packages=("opencv-python-headless",))

    @classmethod
    def load(cls, options: Any, device: str = "cpu") -> Ssim:
        return cls()

    def distance(self, image: np.ndarray, reference: np.ndarray) -> float:
        height, width = image.shape[:2]
        if min(height, width) < _WINDOW:
            raise UserError(
                f"an image has {width}x{height} px, and {self.name} has a window of {_WINDOW} px",
                "give larger images",
            )
        inside = height - _WINDOW + 1
        total = 0.0
        for top in range(0, inside, _STRIP):
            rows = slice(top, min(top + _STRIP, inside) + _WINDOW - 1)
            for channel in range(3):
                total += _similarities(image[rows, :, channel], reference[rows, :, channel])
        return total / (3 * inside * (width - _WINDOW + 1))


_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


def _similarities(one: np.ndarray, other: np.ndarray) -> float:
    """The sum of SSIM over the pixels of two planes whose window is inside them."""
    import cv2
    import numpy as np

    border = _WINDOW // 2

    def mean(plane: np.ndarray) -> np.ndarray:
        blurred = cv2.GaussianBlur(plane, (_WINDOW, _WINDOW), _SIGMA)
        return blurred[border:-border, border:-border]

    # float64: variances are differences of large numbers
    x, y = one.astype(np.float64), other.astype(np.float64)
    mx, my = mean(x), mean(y)
    xx, yy, xy = mean(x * x) - mx * mx, mean(y * y) - my * my, mean(x * y) - mx * my
    similarity = (2 * mx * my + _C1) * (2 * xy + _C2) / ((mx * mx + my * my + _C1) * (xx + yy + _C2))
    return float(similarity.sum())


class Lpips(_Pairs):
    """LPIPS 0.1 (arXiv 1801.03924) after both images are resized by a rule that is part of the name.

    The distance depends on the resolution: that of 4K images is another than that of the same images at 1K.
    """

    better = "lower"
    about = About(
        "distance from the reference in the features of a network",
        "weights: BSD-2-Clause (LPIPS), BSD-3-Clause (torchvision)",
        "arXiv 1801.03924",
        {
            "network_file": " or ".join(known.weights for known in NETWORKS.values()),
            "heads_file": " or ".join(known.heads for known in NETWORKS.values()),
        },
    )

    class Options(Config):
        """network: of torchvision. network_file, heads_file: its weights, and those of LPIPS 0.1 for it.
        short: px of the shorter side that larger images are reduced to; null compares at the image's own
        size.
        """

        network: Network = "alexnet"
        network_file: str | None = None
        heads_file: str | None = None
        short: int | None = Field(1024, ge=32)

    def __init__(
        self, options: Options, network: LpipsNetwork, device: str, weights: Mapping[str, str]
    ) -> None:
        self._short, self._network, self._device = options.short, network, device
        rule = "native" if self._short is None else f"bicubic-short-{self._short}"
        name = f"lpips-0.1/{options.network}/{rule}"
        super().__init__(name, ">= 0", weights=weights, packages=("torch", "torchvision"))

    @classmethod
    def load(cls, options: Options, device: str = "cpu") -> Lpips:
        """Make the metric. Raises UserError if a file is not named, or is of another network."""
        import torch

        known = NETWORKS[options.network]
        files = {"network_file": options.network_file, "heads_file": options.heads_file}
        hashes = {}
        for (field, file), url in zip(files.items(), (known.weights, known.heads), strict=True):
            if file is None:
                fix = f"download {url}, and name the file"
                raise UserError(f"LPIPS with {options.network} needs {field}", fix)
            if not user_path(file).is_file():
                raise UserError(f"{field} {file} does not exist", "name the file where it is")
            hashes[field] = file_hash(user_path(file))
        return cls(options, LpipsNetwork.load(options, torch.device(device)), device, hashes)

    def distance(self, image: np.ndarray, reference: np.ndarray) -> float:
        import torch

        with torch.inference_mode():
            found = self._network(self._input(reference), self._input(image))
        return float(found.item())

    def _input(self, image: np.ndarray) -> torch.Tensor:
        """The image as the network takes it: float32 [1, 3, H, W] in [-1, 1]."""
        pixels = image if self._short is None else View(shortest=self._short).of(image)
        return as_planes(pixels, self._device)[None].float() / 127.5 - 1
