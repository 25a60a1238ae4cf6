"""How far two runs from the same noise are apart, and whether that certifies a row."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uhr.base.errors import UserError

if TYPE_CHECKING:
    import torch

FACTOR = 2.0
"""Times the deviation by rounding that a certified row may have: the official code also rounds where the
measurement of rounding does not."""

LOST = 0.3
"""Deviation above which two images have little in common. Where rounding would allow a larger one, nothing
can be said."""


@dataclass(frozen=True)
class Deviation:
    """The deviation of our run from the official one. Latents are compared as tokens, float32.

    steps: relative L2 norm of the difference of the latents after each step, through all stages, as far as
    both sides go. largest: largest absolute difference of the last latents. rounding: that norm after the
    last step, between our run and ours rounded otherwise (`ours`). psnr: of the images, in dB; None if they
    are equal. pixel: largest difference of a pixel, of 255. reasons: what else differs, such as the number of
    steps.
    """

    steps: tuple[float, ...]
    largest: float
    rounding: float
    psnr: float | None
    pixel: int
    reasons: tuple[str, ...] = ()

    @property
    def last(self) -> float:
        """The difference after the last step."""
        return self.steps[-1]

    def limit(self, tolerance: float) -> float:
        """The largest `last` that certifies a row."""
        return max(tolerance, FACTOR * self.rounding)

    def verdict(self, tolerance: float) -> str:
        """certified, deviates, or undecided."""
        if self.reasons:
            return "deviates"
        if FACTOR * self.rounding > LOST:
            return "undecided"
        return "certified" if self.last <= self.limit(tolerance) else "deviates"


def compare(ours: Path, official: Path, found: dict[str, dict[str, Any]]) -> Deviation:
    """Compare the folders of two sides; `found` has their result.json by side. Raises UserError for images or
    latents of different sizes, and for a side without steps."""
    import numpy as np

    from uhr.pixels.decode import decode, read_bytes

    images = [decode(read_bytes(each / "image.png")).rgb() for each in (ours, official)]
    if images[0].shape != images[1].shape:
        sizes = " and ".join(f"{image.shape[1]}x{image.shape[0]}" for image in images)
        raise UserError(f"our image and the official one have sizes {sizes}", "run both sides at one size")
    aspect = images[0].shape[0] / images[0].shape[1]
    difference = images[0].astype(np.int16) - images[1]
    error = float((difference.astype(np.float64) ** 2).mean())
    counts = {side: each["steps"] for side, each in found.items()}
    for side, count in counts.items():
        if not count:
            code = "our code" if side == "ours" else "the official code"
            raise UserError(f"{code} gave no latents after a step", "see log.txt beside its image")
    pairs = [pair(ours, official, number, aspect) for number in range(min(counts.values()))]
    last = pair(ours, ours / "rounded", counts["ours"] - 1, aspect)
    return Deviation(
        tuple(each.relative for each in pairs),
        pairs[-1].largest,
        last.relative,
        None if error == 0 else 10 * float(np.log10(255**2 / error)),
        int(np.abs(difference).max()),
        tuple(
            f"official {found['official'][name]} {name}, ours {found['ours'][name]}"
            for name in ("steps", "calls")
            if found["official"][name] != found["ours"][name]
        ),
    )


@dataclass(frozen=True)
class Pair:
    """The latents of two sides after one step: relative L2 norm and largest value of their difference."""

    relative: float
    largest: float


def pair(ours: Path, other: Path, number: int, aspect: float) -> Pair:
    """Compare a step, counted from 0 through all stages; `aspect` is height over width. Raises UserError for
    latents of different sizes."""
    one = step(ours, number)
    two = without_ring(step(other, number), one.shape[1], aspect)
    if one.shape != two.shape:
        shapes = f"our latents are {list(one.shape)} and the official ones {list(two.shape)}"
        what = f"after step {number + 1} {shapes}"
        raise UserError(what, "run both sides at one size")
    difference = one.double() - two.double()
    return Pair(float(difference.norm() / two.double().norm()), float(difference.abs().max()))


def step(folder: Path, number: int) -> torch.Tensor:
    """The tokens [B, N, 4C] after a step, counted from 0 through all stages."""
    from safetensors.torch import load_file

    return load_file(folder / f"step-{number:04d}.safetensors")["latents"]


def without_ring(tokens: torch.Tensor, count: int, aspect: float) -> torch.Tensor:
    """Cut the ring of one latent that I-Max's and HiFlow's code leaves around every other step, if the tokens
    are those of a grid of `count` with such a ring."""
    from uhr.models.ops import latents

    rows = round((count * aspect) ** 0.5)
    columns = count // rows
    if tokens.shape[1] != (rows + 1) * (columns + 1):
        return tokens
    z = latents.unpack(tokens, 2 * rows + 2, 2 * columns + 2)
    return latents.pack(z[..., 1:-1, 1:-1])
