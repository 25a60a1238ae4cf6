"""A small fixed extractor without weights, to try a protocol or to test one. Its distances are no FID."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from uhr.models.metrics.base import check_image
from uhr.models.metrics.features import Features
from uhr.models.metrics.resizing import SIDE, crops
from uhr.pixels.decode import resize

if TYPE_CHECKING:
    import numpy as np

_INPUT = 16

WIDTH = 64

CLASSES = 10


class RandomExtractor:
    """Random projections, drawn once from a fixed seed, of the image at 16 x 16 px, or of native crops of
    299 px."""

    def __init__(self, count: int = 0) -> None:
        import numpy as np

        rng = np.random.default_rng(2015)
        self._count = count
        self._first = rng.standard_normal((_INPUT * _INPUT * 3, WIDTH)) / 8
        self._second = rng.standard_normal((WIDTH, CLASSES))
        self.name = f"random-projection/{f'native-{count}x{SIDE}' if count else f'area-{_INPUT}'}"
        numbers = self._first.tobytes() + self._second.tobytes()
        self._hash = hashlib.sha256(numbers).hexdigest()

    def identity(self) -> dict[str, Any]:
        """As of any `Extractor`; `weights` is the hash of the random numbers."""
        return {"extractor": self.name, "weights": self._hash}

    def features(self, image: np.ndarray, index: int) -> Features:
        """Return `features` [rows, 64] and `probabilities` [rows, 10]."""
        import numpy as np

        pixels = check_image(image)
        inputs = crops(pixels, index, self._count, SIDE, self.name) if self._count else pixels[None]
        small = np.stack([resize(each, _INPUT, _INPUT) for each in inputs])
        hidden = np.maximum((small.reshape(len(small), -1) / 127.5 - 1) @ self._first, 0)
        logits = hidden @ self._second
        logits -= logits.max(axis=1, keepdims=True)
        probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        return Features.of(self.identity(), index, {"features": hidden, "probabilities": probabilities})
