"""Training objectives: pure functions of a model, a batch and random numbers."""

from __future__ import annotations

from typing import Any

from uhr.base.errors import load_object, unknown

NAMES = {
    "flow": "uhr.train.objectives.flow:Flow",
    "wavelet": "uhr.train.objectives.wavelet:Wavelet",
    "snr-huber-wavelet": "uhr.train.objectives.wavelet:SnrHuberWavelet",
}


def objective_class(name: str) -> Any:
    """The class of an objective by its name here, or by an import path such as `mypkg.objectives:Mine`."""
    if ":" in name:
        return load_object(name, "objective")
    if name not in NAMES:
        raise unknown("objective", name, NAMES)
    return load_object(NAMES[name], "objective")
