"""The named values of options."""

from __future__ import annotations

from enum import StrEnum


class Ring(StrEnum):
    """The content of the ring around shifted latents (`swin.py`).

    noise: noise at the step's level around data of 0, which the backbone expects; the default
    zeros: as in the official codes; outside the backbone's distribution at any level above 0
    """

    NOISE = "noise"
    ZEROS = "zeros"


class Projection(StrEnum):
    """How strongly a projected flow follows its reference, by frequency; f = `cosine_weight`, from 1 to 0.

    cosine_decay: f on the low band: the official README's, and the default
    cosine_shift: all frequencies at weight f, and the low band at 1 - f: the official function's default
    constant:     the low band is the reference's at every step
    """

    COSINE_DECAY = "cosine_decay"
    COSINE_SHIFT = "cosine_shift"
    CONSTANT = "constant"


class StageShift(StrEnum):
    """How the grid of a stage above the native size is shifted. The dynamic shift is not calibrated there.

    static: by a fixed factor, 3 in every method on FLUX.1
    native: by the family's dynamic factor at the native size (3.158 on FLUX.1-dev), whatever the stage's size
    """

    STATIC = "static"
    NATIVE = "native"


class ShiftPolicy(StrEnum):
    """How a linear grid of sigmas is shifted towards the noisy end (`schedules.py` has the formulas)."""

    NONE = "none"
    STATIC = "static"
    DYNAMIC = "dynamic"
