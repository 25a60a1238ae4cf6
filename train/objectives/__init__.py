"""Training objectives: pure functions of a model, a batch and random numbers.

A new objective is a class derived from `base.Objective`, and a line in `NAMES`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from uhr.base.kinds import by_kind
from uhr.train.objectives.base import Objective

NAMES = {
    "flow": "uhr.train.objectives.flow:Flow",
    "distillation": "uhr.train.objectives.distillation:Distillation",
    "reverse-distillation": "uhr.train.objectives.distillation:ReverseDistillation",
    "wavelet": "uhr.train.objectives.wavelet:Wavelet",
    "snr-huber-wavelet": "uhr.train.objectives.wavelet:SnrHuberWavelet",
}
"""The objectives by kind; any other is named by its import path, such as `mypkg.objectives:Mine`."""

if TYPE_CHECKING:
    AnyObjective = Objective
else:
    AnyObjective: Any = by_kind(Objective, NAMES, "objective")
