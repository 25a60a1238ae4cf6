"""The random numbers of a training step, as a function of (seed, stream, step, place in the global batch).

There is no generator state to save: a resumed run draws the same numbers as an uninterrupted one, and so does
a run with another micro-batch size. They are drawn on the CPU from raw Philox output and transformed by
operations that IEEE 754 defines exactly, so that they depend neither on the device nor on versions.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

_BLOCK = 1 << 15
"""Numbers that are transformed at once: the temporary arrays stay in a core's cache."""


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
        import torch

        found = np.empty((len(self.places), math.prod(shape)), np.float32)
        for row, place in zip(found, self.places, strict=True):
            bits = self._bits(stream, place)
            for start in range(0, row.size, _BLOCK):
                piece = row[start : start + _BLOCK]
                piece[:] = normal_quantile(bits.random_raw(piece.size))
        return torch.from_numpy(found).reshape(len(self.places), *shape)

    def uniform(self, stream: str) -> torch.Tensor:
        """Samples of U(0, 1) without 0 and 1, float64 [B]."""
        import torch

        raw = [self._bits(stream, place).random_raw() >> 11 for place in self.places]
        return (torch.tensor(raw, dtype=torch.float64) + 0.5) * 2.0**-53

    def _bits(self, stream: str, place: int) -> np.random.Philox:
        digest = hashlib.sha256(f"{self.seed}/{stream}/{self.step}/{place}".encode()).digest()
        return np.random.Philox(key=int.from_bytes(digest[:16], "little"))


def normal_quantile(raw: np.ndarray) -> np.ndarray:
    """Map uniform 64-bit integers to N(0, 1), float64: the quantile at (k + 1/2) / 2^53, k = raw >> 11.

    The rational approximations of Wichura (1988, algorithm AS 241, PPND16; relative error about 1e-16), with
    a logarithm of additions, multiplications, divisions and square roots alone: libraries do not promise the
    last digit of theirs. An odd function of k, to the bit.
    """
    k = (raw >> np.uint64(11)).astype(np.int64)
    q = ((k - (1 << 52)).astype(np.float64) + 0.5) * 2.0**-53
    r = 0.180625 - q * q
    value = q * _ratio(r, _CENTRE)
    outside = np.flatnonzero(r < 0)
    if outside.size:
        tail = np.minimum(k[outside], (1 << 53) - 1 - k[outside])
        r = np.sqrt(-_log((tail.astype(np.float64) + 0.5) * 2.0**-53))
        far = r > 5.0
        size = np.where(far, _ratio(r - 5.0, _FAR), _ratio(r - 1.6, _MIDDLE))
        value[outside] = np.copysign(size, q[outside])
    return value


def _ratio(x: np.ndarray, coefficients: tuple[tuple[float, ...], tuple[float, ...]]) -> np.ndarray:
    above, below = (_polynomial(x, each) for each in coefficients)
    return above / below


def _polynomial(x: np.ndarray, coefficients: Sequence[float]) -> np.ndarray:
    """The coefficient of the highest power comes first."""
    value = np.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        value *= x
        value += coefficient
    return value


def _log(x: np.ndarray) -> np.ndarray:
    """The natural logarithm of positive numbers: the exponent, and the series of atanh for the rest."""
    mantissa, exponent = np.frexp(x)
    low = mantissa < math.sqrt(0.5)
    mantissa, exponent = np.where(low, 2 * mantissa, mantissa), exponent - low
    f = (mantissa - 1) / (mantissa + 1)
    return exponent * 0.6931471805599453 + 2 * f * _polynomial(f * f, _ATANH)


_ATANH = tuple(1 / n for n in range(23, 0, -2))
_CENTRE = (
    (
        2.5090809287301226727e3,
        3.3430575583588128105e4,
        6.7265770927008700853e4,
        4.5921953931549871457e4,
        1.3731693765509461125e4,
        1.9715909503065514427e3,
        1.3314166789178437745e2,
        3.3871328727963666080e0,
    ),
    (
        5.2264952788528545610e3,
        2.8729085735721942674e4,
        3.9307895800092710610e4,
        2.1213794301586595867e4,
        5.3941960214247511077e3,
        6.8718700749205790830e2,
        4.2313330701600911252e1,
        1.0,
    ),
)
_MIDDLE = (
    (
        7.74545014278341407640e-4,
        2.27238449892691845833e-2,
        2.41780725177450611770e-1,
        1.27045825245236838258e0,
        3.64784832476320460504e0,
        5.76949722146069140550e0,
        4.63033784615654529590e0,
        1.42343711074968357734e0,
    ),
    (
        1.05075007164441684324e-9,
        5.47593808499534494600e-4,
        1.51986665636164571966e-2,
        1.48103976427480074590e-1,
        6.89767334985100004550e-1,
        1.67638483018380384940e0,
        2.05319162663775882187e0,
        1.0,
    ),
)
_FAR = (
    (
        2.01033439929228813265e-7,
        2.71155556874348757815e-5,
        1.24266094738807843860e-3,
        2.65321895265761230930e-2,
        2.96560571828504891230e-1,
        1.78482653991729133580e0,
        5.46378491116411436990e0,
        6.65790464350110377720e0,
    ),
    (
        2.04426310338993978564e-15,
        1.42151175831644588870e-7,
        1.84631831751005468180e-5,
        7.86869131145613259100e-4,
        1.48753612908506148525e-2,
        1.36929880922735805310e-1,
        5.99832206555887937690e-1,
        1.0,
    ),
)
