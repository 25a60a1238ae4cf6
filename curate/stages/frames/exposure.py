"""Exposure: mean gray, and the shares of dark and of clipped pixels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from uhr.curate.frame import Frame
from uhr.curate.measures.gray_pass import warm
from uhr.curate.stage import FrameStage
from uhr.manifests.schema import COLUMNS


class ExposureStage(FrameStage):
    """Three numbers from the gray histogram: mean, share below 16, share at 0 or 255."""

    name = "exposure"
    hashed_name = "uhr.curate.stages.exposure:ExposureStage"
    adds = (COLUMNS["luma_mean"], COLUMNS["dark_fraction"], COLUMNS["clipped_fraction"])

    def open(self) -> None:
        warm()

    def annotate(self, frame: Frame) -> Mapping[str, Any]:
        measured = frame.gray_measures()
        return {
            "luma_mean": measured.luma_mean(),
            "dark_fraction": measured.fraction(slice(0, 16)),
            "clipped_fraction": measured.fraction(slice(0, 1), slice(255, 256)),
        }
