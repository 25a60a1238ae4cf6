"""Flatness: how much of an image has no structure at the pixel level."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa
from pydantic import Field

from uhr.curate.frame import Frame
from uhr.curate.measures.gray_pass import FLAT_VARIANCE, LARGEST_PATCH, PATCH, warm
from uhr.curate.stage import FrameStage
from uhr.manifests.schema import Column


class FlatnessStage(FrameStage):
    """Share of patches whose Sobel gradient magnitude has a small variance, as UltraFlux's filter computes
    it.

    Patches tile the stored grid from the top left; incomplete ones at the right and bottom are left out, and
    an image without a complete patch has 0.0. Source: UltraFlux 2511.18050, `tools/filtering_pipeline.py`.
    """

    name = "flatness"
    hashed_name = "uhr.curate.stages.flatness:FlatnessStage"
    adds = (
        Column(
            "flat_fraction",
            pa.float64(),
            "share of 240 x 240 px patches whose Sobel gradient magnitude has a variance below 800",
            "1",
            "[0, 1]",
            "UltraFlux 2511.18050, tools/filtering_pipeline.py",
            "flatness",
        ),
    )

    class Params(FrameStage.Params):
        patch: int = Field(PATCH, ge=8, le=LARGEST_PATCH, description="side of a patch, px")
        variance: float = Field(FLAT_VARIANCE, ge=0, description="a patch below it is flat")

    def open(self) -> None:
        warm()

    def annotate(self, frame: Frame) -> Mapping[str, Any]:
        return {"flat_fraction": frame.gray_measures(self.params.patch).flat_fraction(self.params.variance)}
