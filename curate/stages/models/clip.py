"""CLIP: an embedding of each image, and what follows from it without looking at the image again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import pyarrow as pa

from uhr.curate.stage import Package
from uhr.curate.stages.models.base import (
    Dtype,
    ModelStage,
    check_view,
    clip_model,
    free_models,
    local_json,
    precision,
)
from uhr.manifests.schema import Column
from uhr.models.scores.images import View

OPEN_CLIP = Package("open_clip", "clip", "MIT")

EMBEDDING = Column(
    "clip_embedding",
    pa.list_(pa.field("element", pa.float32())),
    "embedding of the image by the CLIP model that `manifest.json` names, of length 1",
    "1",
    "[-1, 1]",
    "CLIP 2103.00020, through open_clip",
    stage="embedding",
)


class _ClipStage(ModelStage):
    """A stage that loads a CLIP model of open_clip. Stages with the same weights share a worker."""

    packages: ClassVar[tuple[Package, ...]] = (OPEN_CLIP,)

    class Params(ModelStage.Params):
        """weights: a folder with open_clip_config.json, hub id or s3://; or a file, with `architecture` (such
        as ViT-L-14-quickgelu for OpenAI's). dtype: auto is float16 on a GPU, float32 on a CPU.
        """

        weights: str | None = None
        architecture: str | None = None
        dtype: Dtype = "auto"

    def __init__(self, params: Any = None) -> None:
        super().__init__(params)
        self.backbone = f"clip {self.params.weights}"

    def unnamed(self) -> Mapping[str, str]:
        return {"weights": "FOLDER"} if self.params.weights is None else {}

    def weights(self) -> Mapping[str, str]:
        return {} if self.params.weights is None else {"clip": self.params.weights}

    def open(self, device: str) -> None:
        dtype = precision(self.params.dtype, device, "float16")
        self._model = clip_model(self.params.weights, self.params.architecture, device, dtype)

    def close(self) -> None:
        free_models()


class EmbeddingStage(_ClipStage):
    """The embedding of the image by a CLIP model of open_clip."""

    name = "embedding"
    hashed_name = "uhr.curate.stages.clip:EmbeddingStage"
    adds = (EMBEDDING,)

    def __init__(self, params: Any = None) -> None:
        super().__init__(params)
        self.views = {"image": _view(self.params.weights, self.params.architecture)}

    def open(self, device: str) -> None:
        super().open(device)
        check_view(self, self._model.view)

    def score(
        self, rows: Sequence[Mapping[str, Any]], views: Mapping[str, Sequence[Any]]
    ) -> Mapping[str, Sequence[Any]]:
        return {"clip_embedding": self._model.score(views["image"])["clip_embedding"].tolist()}


def _view(weights: str | None, architecture: str | None) -> View:
    if architecture is not None:
        from open_clip import get_model_config

        tree: Mapping[str, Any] = {"model_cfg": get_model_config(architecture) or {}}
    else:
        tree = local_json(weights, "open_clip_config.json")
    from uhr.models.scores.clip import view_of

    return view_of(tree)


class LaionAestheticStage(ModelStage):
    """LAION's aesthetic predictor over the embedding of OpenAI's CLIP ViT-L/14."""

    name = "laion_aesthetic"
    hashed_name = "uhr.curate.stages.clip:LaionAestheticStage"
    needs = ("clip_embedding",)
    adds = (
        Column(
            "laion_aesthetic",
            pa.float64(),
            "aesthetic score of LAION's predictor (sac+logos+ava1-l14-linearMSE) over `clip_embedding`",
            "1",
            "about 1 to 10",
            "github.com/christophschuhmann/improved-aesthetic-predictor",
            stage="laion_aesthetic",
        ),
    )

    class Params(ModelStage.Params):
        """weights: the file of the predictor."""

        weights: str | None = None

    def unnamed(self) -> Mapping[str, str]:
        return {"weights": "FILE"} if self.params.weights is None else {}

    def weights(self) -> Mapping[str, str]:
        return {} if self.params.weights is None else {"laion_aesthetic": self.params.weights}

    def open(self, device: str) -> None:
        from uhr.models.scores.heads import Head

        self._head = Head.load("laion-aesthetic", self.params.weights, device)

    def score(
        self, rows: Sequence[Mapping[str, Any]], views: Mapping[str, Sequence[Any]]
    ) -> Mapping[str, Sequence[Any]]:
        embeddings = [row["clip_embedding"] for row in rows]
        return {"laion_aesthetic": self._head.score(embeddings).tolist()}


class ClipScoreStage(_ClipStage):
    """How well a caption fits its image: 100 x the cosine of their embeddings, at least 0. Null without a
    caption; one longer than the model's context (77 tokens) is cut.
    """

    name = "clip_score"
    hashed_name = "uhr.curate.stages.clip:ClipScoreStage"

    class Params(_ClipStage.Params):
        """weights, architecture, dtype: those of `embedding`. of: the column of the caption."""

        of: str = "caption"

    def __init__(self, params: Any = None) -> None:
        super().__init__(params)
        of = self.params.of
        self.needs = ("clip_embedding", of)
        self.column = "clip_score" if of == "caption" else f"clip_score_{of}"
        meaning = f"100 x the cosine of `clip_embedding` and the embedding of `{of}`, at least 0"
        source = "CLIPScore 2104.08718 without its factor 2.5, as in torchmetrics"
        self.adds = (Column(self.column, pa.float64(), meaning, "1", "[0, 100]", source, stage=self.name),)

    def score(
        self, rows: Sequence[Mapping[str, Any]], views: Mapping[str, Sequence[Any]]
    ) -> Mapping[str, Sequence[Any]]:
        import numpy as np

        embeddings = np.array([row["clip_embedding"] for row in rows], dtype=np.float32)
        found = self._model.fit(embeddings, [row.get(self.params.of) for row in rows])
        return {self.column: [None if np.isnan(value) else float(value) for value in found]}
