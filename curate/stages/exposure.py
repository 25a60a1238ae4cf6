"""Exposure: mean gray, and the shares of dark and of clipped pixels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from uhr.curate.frame import Frame
from uhr.curate.measures.guards import warm
from uhr.curate.stage import Stage
from uhr.manifests.schema import COLUMNS


class ExposureStage(Stage):
    """Three numbers from the gray histogram: mean, share below 16, share at 0 or 255."""

    name = "exposure"
    adds = (COLUMNS["luma_mean"], COLUMNS["dark_fraction"], COLUMNS["clipped_fraction"])

    def open(self) -> None:
        warm()

    def annotate(self, frame: Frame) -> Mapping[str, Any]:
        guards = frame.guards()
        return {
            "luma_mean": guards.luma_mean(),
            "dark_fraction": guards.fraction(slice(0, 16)),
            "clipped_fraction": guards.fraction(slice(0, 1), slice(255, 256)),
        }
