"""GLCM score and compression ratio, as Diffusion-4K's `eval.py` computes them (arXiv 2503.18352)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from uhr.base.config import Config
from uhr.base.errors import UserError
from uhr.models.metrics.base import About, Sample
from uhr.models.metrics.per_image import PerImage

if TYPE_CHECKING:
    import numpy as np

PATCH = 64
"""px of the patches."""

LEVELS = 64

DISTANCES = (1, 2, 3, 4)

_PAPER = "Diffusion-4K, arXiv 2503.18352, and its eval.py"


class GlcmScore(PerImage):
    """The mean over patches of 64 px of the entropy of the gray-level co-occurrence matrices.

    "Entropy" is that of the official code: scikit-image's `shannon_entropy` of the array of matrices, which
    is the entropy in bits of how often each distinct number occurs in it, not -sum(P log P) of the
    matrices. Pixels right of and below the last whole patch are left out.
    """

    about = About("richness of texture in patches of 64 px", "Apache-2.0", _PAPER)

    smallest = PATCH

    class Options(Config):
        """No options: patch, levels, distances and angles are those of the paper's code."""

    def __init__(self) -> None:
        super().__init__("glcm/diffusion-4k", ">= 0", packages=("opencv-python-headless",))

    @classmethod
    def load(cls, options: Any, device: str = "cpu") -> GlcmScore:
        return cls()

    def values(self, sample: Sample) -> tuple[float]:
        import cv2
        import numpy as np

        height, width = sample.image.shape[:2]
        if min(height, width) < PATCH:
            what = (
                f"image {sample.index} has {width}x{height} px, and {self.name} takes patches of {PATCH} px"
            )
            raise UserError(what, "give larger images")
        gray = cv2.cvtColor(np.ascontiguousarray(sample.image), cv2.COLOR_RGB2GRAY) // 4
        rows, columns = height // PATCH, width // PATCH
        patches = gray[: rows * PATCH, : columns * PATCH].reshape(rows, PATCH, columns, PATCH).swapaxes(1, 2)
        return (float(np.mean([entropy(patch) for patch in patches.reshape(-1, PATCH, PATCH)])),)


def offsets() -> list[tuple[int, int]]:
    """Return (down, right) of each pair of pixels: distances 1 to 4 at 0, 45, 90 and 135 degrees, rounded as
    scikit-image's `graycomatrix` rounds them.
    """
    import math

    angles = [0.0, math.pi / 4, math.pi / 2, math.pi * 3 / 4]
    return [(round(math.sin(a) * d), round(math.cos(a) * d)) for d in DISTANCES for a in angles]


def entropy(patch: np.ndarray) -> float:
    """Return the score of one patch of gray levels 0 to 63, uint8 [64, 64].

    The matrices have 16 x 64 x 64 numbers, each a count divided by the pairs of its offset. How often each
    count occurs, by number of pairs, is all that the entropy needs; equal fractions of different offsets
    are one number.
    """
    import numpy as np

    repeats_by_pairs: dict[int, np.ndarray] = {}
    offset_list = offsets()
    for down, right in offset_list:
        above, below = patch[: PATCH - down], patch[down:]
        if right >= 0:
            one, other = above[:, : PATCH - right], below[:, right:]
        else:
            one, other = above[:, -right:], below[:, : PATCH + right]
        counts = np.bincount((one.astype(np.intp) * LEVELS + other).ravel(), minlength=LEVELS * LEVELS)
        repeats = np.bincount(counts, minlength=one.size + 1)
        repeats_by_pairs[one.size] = repeats_by_pairs.get(one.size, 0) + repeats
    fractions, repeats = [], []
    for pairs, found in repeats_by_pairs.items():
        occurring = np.flatnonzero(found)
        fractions.append(occurring / pairs)
        repeats.append(found[occurring])
    values, where = np.unique(np.concatenate(fractions), return_inverse=True)
    p = np.bincount(where, np.concatenate(repeats), len(values)) / (len(offset_list) * LEVELS * LEVELS)
    return float(-(p * np.log2(p)).sum())


class CompressionRatio(PerImage):
    """Bytes of the pixels by bytes of the image as a JPEG of quality 95: higher for images with less detail.

    The paper's value of a set is the bytes of all pixels by those of all files: the harmonic mean for
    images of one size. The JPEG is Pillow's, with its default 4:2:0 subsampling, as in
    `generate_and_eval_fid.py`.
    """

    about = About(
        "how well a JPEG of quality 95 compresses the image; lower with more detail", "Apache-2.0", _PAPER
    )
    better = "lower"
    mean = "harmonic"

    class Options(Config):
        """quality: of the JPEG; 95 in the paper."""

        quality: int = Field(95, ge=1, le=100)

    def __init__(self, quality: int = 95) -> None:
        self._quality = quality
        super().__init__(f"compression-ratio/jpeg-{quality}", "> 0", packages=("pillow",))

    @classmethod
    def load(cls, options: Options, device: str = "cpu") -> CompressionRatio:
        return cls(options.quality)

    def values(self, sample: Sample) -> tuple[float]:
        import io

        from PIL import Image

        file = io.BytesIO()
        Image.fromarray(sample.image).save(file, "JPEG", quality=self._quality)
        return (sample.image.size / file.tell(),)
