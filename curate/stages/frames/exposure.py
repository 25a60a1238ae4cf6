"""Exposure: mean gray, and the shares of dark and of clipped pixels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from uhr.curate.frame import Frame
from uhr.curate.measures.gray_pass import warm
from uhr.curate.stage import FrameStage
from uhr.manifests.schema import Column


class ExposureStage(FrameStage):
    """Three numbers from the gray histogram: mean, share below 16, share at 0 or 255."""

    name = "exposure"
    hashed_name = "uhr.curate.stages.exposure:ExposureStage"
    adds = (
        Column("luma_mean", pa.float64(), "mean of the 8-bit gray value", "1", "[0, 255]", stage="exposure"),
        Column(
            "dark_fraction",
            pa.float64(),
            "share of pixels with gray below 16",
            "1",
            "[0, 1]",
            stage="exposure",
        ),
        Column(
            "clipped_fraction",
            pa.float64(),
            "share of pixels with gray 0 or 255",
            "1",
            "[0, 1]",
            stage="exposure",
        ),
    )

    def open(self) -> None:
        warm()

    def annotate(self, frame: Frame) -> Mapping[str, Any]:
        measured = frame.gray_measures()
        return {
            "luma_mean": measured.luma_mean(),
            "dark_fraction": measured.fraction(slice(0, 16)),
            "clipped_fraction": measured.fraction(slice(0, 1), slice(255, 256)),
        }
