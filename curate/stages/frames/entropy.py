"""Entropy: how many gray levels an image uses, and how evenly."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from uhr.curate.frame import Frame
from uhr.curate.measures.gray_pass import warm
from uhr.curate.stage import FrameStage
from uhr.manifests.schema import Column


class EntropyStage(FrameStage):
    """Shannon entropy of the 8-bit gray histogram in bits, [0, 8]: the number that UltraFlux's filter
    computes by scikit-image's `shannon_entropy` (2511.18050, `tools/filtering_pipeline.py`).
    """

    name = "entropy"
    hashed_name = "uhr.curate.stages.entropy:EntropyStage"
    adds = (
        Column(
            "entropy",
            pa.float64(),
            "Shannon entropy of the 8-bit gray histogram",
            "bit",
            "[0, 8]",
            "UltraFlux 2511.18050, tools/filtering_pipeline.py",
            "entropy",
        ),
    )

    def open(self) -> None:
        warm()

    def annotate(self, frame: Frame) -> Mapping[str, Any]:
        return {"entropy": frame.gray_measures().entropy()}
