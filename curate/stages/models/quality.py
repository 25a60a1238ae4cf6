"""Image quality: metrics of pyiqa by name, and Q-Align."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import pyarrow as pa

from uhr.base.errors import UserError
from uhr.curate.stage import BatchStage, Package
from uhr.curate.stages.models.base import check_view, local_json
from uhr.manifests.schema import Column
from uhr.models.scores.images import View

_PYIQA = Package("pyiqa", "quality", "PolyForm-Noncommercial-1.0.0")

_WITHOUT_WEIGHTS = ("piqe", "entropy")


class PyiqaStage(BatchStage):
    """A no-reference metric of pyiqa, by its name, on the image at its own size: pyiqa's own value.

    The column has the metric's name, with `_` for other characters than letters and digits (`clipiqa+` is
    `clipiqa_plus`).
    """

    name = "pyiqa"
    hashed_name = "uhr.curate.stages.quality:PyiqaStage"
    packages: ClassVar[tuple[Package, ...]] = (_PYIQA,)
    views: Mapping[str, View] = {"image": View()}

    class Params(BatchStage.Params):
        """metric: a name of `pyiqa.list_models("NR")`. files: a folder with pyiqa's files, or the hub
        repository chaofengc/IQA-PyTorch-Weights; null: what pyiqa has downloaded before.
        """

        metric: str = "piqe"
        files: str | None = None

    def __init__(self, params: Any = None) -> None:
        super().__init__(params)
        self.column = re.sub(r"\W", "_", self.params.metric.replace("+", "_plus"))
        meaning = f"pyiqa's `{self.params.metric}` of the image at its own size"
        self.adds = (Column(self.column, pa.float64(), meaning, "1", "", "pyiqa", stage=self.name),)

    def missing(self) -> str | None:
        lack = super().missing()
        if lack is None and self.params.metric not in _WITHOUT_WEIGHTS and not self._from_hub():
            try:
                _metric(self.params.metric, self.params.files, "cpu")
            except UserError as error:
                return str(error)
        return lack

    def weight_hashes(self) -> dict[str, str]:
        if self.params.metric in _WITHOUT_WEIGHTS:
            return {}
        found = _metric(self.params.metric, self.params.files, "cpu").weights_hash
        return {} if found is None else {self.params.metric: found}

    def weights(self) -> Mapping[str, str]:
        # what the hash of `weight_hashes` is of, for manifest and lineage
        if self.params.metric in _WITHOUT_WEIGHTS or self.params.files is None:
            return {}
        return {self.params.metric: self.params.files}

    def _from_hub(self) -> bool:
        from uhr.models.scores.weights import Weights

        return self.params.files is not None and Weights.parse(self.params.files).repository is not None

    def open(self, device: str) -> None:
        self._scorer = _metric(self.params.metric, self.params.files, device)

    def score(
        self, rows: Sequence[Mapping[str, Any]], views: Mapping[str, Sequence[Any]]
    ) -> Mapping[str, Sequence[Any]]:
        (values,) = self._scorer.score(views["image"]).values()
        if not all(map(math.isfinite, values)):
            raise ValueError(f"{self.params.metric} gives no number for this image")
        return {self.column: values.tolist()}

    def close(self) -> None:
        _metric.cache_clear()


@functools.lru_cache(maxsize=8)
def _metric(name: str, files: str | None, device: str) -> Any:
    from uhr.models.scores.pyiqa_metrics import PyiqaMetric

    return PyiqaMetric.load(name, files, device)


class QAlignStage(BatchStage):
    """Q-Align: quality as rated by a vision-language model in the words bad, poor, fair, good, excellent.

    The model looks at 448 px. `native` gives it the whole image, which pyiqa resizes itself; the default is
    the same image to one level, resized with all other views (docs: `uhr.models.scores.q_align`).
    """

    name = "q_align"
    hashed_name = "uhr.curate.stages.quality:QAlignStage"
    packages: ClassVar[tuple[Package, ...]] = (_PYIQA, Package("icecream", "quality", "MIT"))

    class Params(BatchStage.Params):
        """weights: a folder, hub id or s3:// of q-future/one-align. tasks: quality, aesthetic or both."""

        weights: str = "q-future/one-align"
        tasks: tuple[Literal["quality", "aesthetic"], ...] = ("quality",)
        native: bool = False

    def __init__(self, params: Any = None) -> None:
        super().__init__(params)
        side = local_json(self.params.weights, "preprocessor_config.json").get("crop_size", {})
        side = side.get("height", 448) if isinstance(side, dict) else side
        self.views = {"image": View() if self.params.native else View(longest=side, filter="bicubic")}
        self.adds = tuple(
            Column(
                "q_align" if task == "quality" else f"q_align_{task}",
                pa.float64(),
                f"{task} as rated by Q-Align: the expected value over bad (1) to excellent (5)",
                "1",
                "[1, 5]",
                "Q-Align 2312.17090, through pyiqa",
                stage=self.name,
            )
            for task in self.params.tasks
        )

    def weights(self) -> Mapping[str, str]:
        return {"one-align": self.params.weights}

    def open(self, device: str) -> None:
        from uhr.models.scores.q_align import QAlign

        self._scorer = QAlign.load(self.params.weights, device, self.params.tasks, self.params.native)
        check_view(self, self._scorer.view)

    def score(
        self, rows: Sequence[Mapping[str, Any]], views: Mapping[str, Sequence[Any]]
    ) -> Mapping[str, Sequence[Any]]:
        return {name: values.tolist() for name, values in self._scorer.score(views["image"]).items()}
