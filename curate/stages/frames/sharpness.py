"""Sharpness: second derivatives, and the steps that JPEG blocks leave."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from uhr.curate.frame import Frame
from uhr.curate.measures.gray_pass import warm
from uhr.curate.stage import FrameStage
from uhr.manifests.schema import COLUMNS


class SharpnessStage(FrameStage):
    """Variance of OpenCV's 3 x 3 Laplacian (`ksize=1`) of gray, and blockiness: the mean gray step across
    the lines of the 8 x 8 grid over the mean step inside its cells. The grid starts at the top left of the
    stored image, as in JPEG.
    """

    name = "sharpness"
    hashed_name = "uhr.curate.stages.sharpness:SharpnessStage"
    adds = (COLUMNS["laplacian_var"], COLUMNS["blockiness"])

    def open(self) -> None:
        warm()

    def annotate(self, frame: Frame) -> Mapping[str, Any]:
        measured = frame.gray_measures()
        return {"laplacian_var": measured.laplacian_var, "blockiness": measured.blockiness}
