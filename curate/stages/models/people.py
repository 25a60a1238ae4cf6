"""People: boxes and area by an open-vocabulary detector, or a count of faces."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import pyarrow as pa
from pydantic import Field

from uhr.base.errors import install
from uhr.curate.stage import Package
from uhr.curate.stages.models.base import ModelStage
from uhr.manifests.schema import Column
from uhr.models.scores.images import View

_BOX = pa.struct(
    [
        pa.field("label", pa.string()),
        *(pa.field(name, pa.float64()) for name in ("confidence", "x", "y", "width", "height")),
    ]
)


class PeopleStage(ModelStage):
    """`backend: yoloe` finds people with YOLOE of ultralytics; `backend: cascade` counts frontal faces with
    OpenCV's cascade, needs no weights, and writes only `face_count`. Neither replaces the other.
    """

    name = "people"
    hashed_name = "uhr.curate.stages.people:PeopleStage"
    packages: ClassVar[tuple[Package, ...]] = (Package("ultralytics", "people", "AGPL-3.0"),)

    class Params(ModelStage.Params):
        """weights: a YOLOE checkpoint (.pt). text_encoder: the TorchScript encoder of `labels`, or saved
        prompt embeddings (.npz); null for a prompt-free checkpoint, whose names the labels are.
        min_confidence: of a box. min_area: share of the image that one box of a `character` covers. size: px
        of the detector.
        """

        backend: Literal["yoloe", "cascade"] = "yoloe"
        weights: str | None = None
        text_encoder: str | None = None
        labels: tuple[str, ...] = ("person",)
        min_confidence: float = Field(0.25, ge=0, le=1)
        min_area: float = Field(0.0, ge=0, le=1)
        size: int = Field(640, ge=32, multiple_of=32)

    def __init__(self, params: Any = None) -> None:
        super().__init__(params)
        p = self.params
        self.views = {"image": View(longest=p.size if p.backend == "yoloe" else 640, filter="bilinear")}
        self.adds = _YOLOE if p.backend == "yoloe" else _CASCADE

    def unnamed(self) -> Mapping[str, str]:
        lacks = self.params.backend == "yoloe" and self.params.weights is None
        return {"weights": "FILE"} if lacks else {}

    def missing(self) -> str | None:
        if self.params.backend == "yoloe":
            return super().missing()
        if importlib.util.find_spec("skimage") is None:
            return f"the package 'skimage' is not installed ({install('demo')})"
        return None

    def weights(self) -> Mapping[str, str]:
        named = {"yoloe": self.params.weights, "text_encoder": self.params.text_encoder}
        return {k: v for k, v in named.items() if v is not None and self.params.backend == "yoloe"}

    def open(self, device: str) -> None:
        from uhr.models.scores.people import FaceCascade, People, PeopleDetector

        p = self.params
        if p.backend == "cascade":
            self._scorer: Any = FaceCascade.load()
            return
        people = People(p.labels, p.min_confidence, p.min_area, p.size)
        self._scorer = PeopleDetector.load(p.weights, people, p.text_encoder, device)

    def score(
        self, rows: Sequence[Mapping[str, Any]], views: Mapping[str, Sequence[Any]]
    ) -> Mapping[str, Sequence[Any]]:
        return {name: list(values) for name, values in self._scorer.score(views["image"]).items()}


_YOLOE = (
    Column("person_count", pa.int64(), "boxes of the labels that YOLOE found", "1", ">= 0", stage="people"),
    Column(
        "person_area",
        pa.float64(),
        "share of the image that these boxes cover together",
        "1",
        "[0, 1]",
        stage="people",
    ),
    Column(
        "person_boxes",
        pa.list_(_BOX),
        "the boxes, most confident first: left, top, width and height as shares of the upright image",
        "1",
        "[0, 1]",
        "YOLOE 2503.07465, through ultralytics",
        stage="people",
    ),
    Column(
        "character",
        pa.bool_(),
        "whether one box covers `min_area` of the image; the evidence is in `person_boxes`",
        stage="people",
    ),
)

_CASCADE = (
    Column(
        "face_count",
        pa.int64(),
        "frontal faces that a cascade of local binary patterns found; misses many and invents some",
        "1",
        ">= 0",
        "OpenCV's lbpcascade_frontalface, through scikit-image",
        stage="people",
    ),
)
