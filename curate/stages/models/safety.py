"""Safety: the probability that an image is not safe for work, or has a watermark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import pyarrow as pa

from uhr.base.config import Config
from uhr.curate.stages.models.base import ModelStage, local_json, precision
from uhr.manifests.schema import Column
from uhr.models.scores.images import View


class ProbabilityModel(Config):
    """A classifier of transformers with the `labels` whose probability counts, or a head over
    `clip_embedding`: clip-nsfw-l14 and clip-nsfw-h14 are LAION's, `probability` is any chain of linear layers
    with ReLU and a sigmoid.
    """

    weights: str
    kind: Literal["classifier", "clip-nsfw-l14", "clip-nsfw-h14", "probability"] = "classifier"
    labels: tuple[str, ...] = ()


class SafetyStage(ModelStage):
    """`nsfw_prob` and `watermark_prob`, each by a model of its own; a column without a model is not added."""

    name = "safety"
    hashed_name = "uhr.curate.stages.safety:SafetyStage"

    class Params(ModelStage.Params):
        """nsfw, watermark: the models. dtype of classifiers: float16 on a GPU, float32 on a CPU."""

        nsfw: ProbabilityModel | None = None
        watermark: ProbabilityModel | None = None

    def __init__(self, params: Any = None) -> None:
        super().__init__(params)
        named = {"nsfw_prob": self.params.nsfw, "watermark_prob": self.params.watermark}
        self._models = {column: model for column, model in named.items() if model is not None}
        columns = {
            "nsfw_prob": "probability that the image is not safe for work",
            "watermark_prob": "probability that the image has a watermark",
        }
        self.adds = tuple(
            Column(column, pa.float64(), meaning, "1", "[0, 1]", stage=self.name)
            for column, meaning in columns.items()
            if column in (self._models or named)
        )
        classifiers = [c for c, model in self._models.items() if model.kind == "classifier"]
        self.views = {column: _view(self._models[column].weights) for column in classifiers}
        if len(classifiers) < len(self._models):
            self.needs = ("clip_embedding",)

    def unnamed(self) -> Mapping[str, str]:
        if not self._models:
            return {each: f"{{weights: FOLDER, labels: [{each}]}}" for each in ("nsfw", "watermark")}
        for column, model in self._models.items():
            if model.kind == "classifier" and not model.labels:
                return {f"{column.removesuffix('_prob')}.labels": "[LABEL]"}
        return {}

    def weights(self) -> Mapping[str, str]:
        return {column.removesuffix("_prob"): model.weights for column, model in self._models.items()}

    def open(self, device: str) -> None:
        from uhr.models.scores.classifier import ImageClassifier
        from uhr.models.scores.heads import Head

        self._loaded: dict[str, Any] = {}
        for column, model in self._models.items():
            if model.kind == "classifier":
                dtype = precision("auto", device, "float16")
                self._loaded[column] = ImageClassifier.load(
                    model.weights, model.labels, column, device, dtype
                )
            else:
                self._loaded[column] = Head.load(model.kind, model.weights, device)

    def score(
        self, rows: Sequence[Mapping[str, Any]], views: Mapping[str, Sequence[Any]]
    ) -> Mapping[str, Sequence[Any]]:
        found = {}
        for column, loaded in self._loaded.items():
            if column in views:
                values = loaded.score(views[column])[column]
            else:
                values = loaded.score([row["clip_embedding"] for row in rows])
            found[column] = values.tolist()
        return found


def _view(weights: str) -> View:
    from uhr.models.scores.classifier import view_of

    return view_of(local_json(weights, "preprocessor_config.json").get("size") or {"shortest_edge": 224})
