"""The random numbers of a training step, as a function of (seed, stream, step, place in the global batch).

There is no generator state to save: a resumed run draws the same numbers as an uninterrupted one, and so does
a run with another micro-batch size. They are drawn on the CPU, so that they do not depend on the device.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch


class Draws:
    """The random numbers of one step for the samples at `places` of its global batch.

    Streams have names: no two uses of randomness share numbers, and a new stream changes no other.
    """

    def __init__(self, seed: int, step: int, places: Sequence[int]) -> None:
        self.seed, self.step, self.places = seed, step, tuple(places)

    def slice(self, start: int, stop: int) -> Draws:
        """The same step, for the samples from `start` to `stop` (exclusive)."""
        return Draws(self.seed, self.step, self.places[start:stop])

    def normal(self, stream: str, shape: Sequence[int]) -> torch.Tensor:
        """Samples of N(0, 1), float32 [B, *shape]."""
        samples = [
            np.random.Generator(self._bits(stream, place)).standard_normal(tuple(shape), dtype=np.float32)
            for place in self.places
        ]
        return torch.from_numpy(np.stack(samples))

    def uniform(self, stream: str) -> torch.Tensor:
        """Samples of U(0, 1) without 0 and 1, float64 [B]."""
        raw = [self._bits(stream, place).random_raw() >> 11 for place in self.places]
        return (torch.tensor(raw, dtype=torch.float64) + 0.5) * 2.0**-53

    def _bits(self, stream: str, place: int) -> np.random.Philox:
        digest = hashlib.sha256(f"{self.seed}/{stream}/{self.step}/{place}".encode()).digest()
        return np.random.Philox(key=int.from_bytes(digest[:16], "little"))
