"""Sharpness: second derivatives, and the steps that JPEG blocks leave."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from uhr.curate.frame import Frame
from uhr.curate.measures.gray_pass import warm
from uhr.curate.stage import FrameStage
from uhr.manifests.schema import Column


class SharpnessStage(FrameStage):
    """Variance of OpenCV's 3 x 3 Laplacian (`ksize=1`) of gray, and blockiness: the mean gray step across
    the lines of the 8 x 8 grid over the mean step inside its cells. The grid starts at the top left of the
    stored image, as in JPEG.
    """

    name = "sharpness"
    hashed_name = "uhr.curate.stages.sharpness:SharpnessStage"
    adds = (
        Column(
            "laplacian_var",
            pa.float64(),
            "variance of the 3 x 3 Laplacian of gray: low where nothing is sharp",
            "1",
            ">= 0",
            stage="sharpness",
        ),
        Column(
            "blockiness",
            pa.float64(),
            "mean gray step across the 8 x 8 JPEG grid over the mean step inside it: 1 without blocks",
            "1",
            ">= 0",
            stage="sharpness",
        ),
    )

    def open(self) -> None:
        warm()

    def annotate(self, frame: Frame) -> Mapping[str, Any]:
        measured = frame.gray_measures()
        return {"laplacian_var": measured.laplacian_var, "blockiness": measured.blockiness}
