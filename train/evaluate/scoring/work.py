"""The work of scoring: images go through all metrics, one at a time, unit by unit.

A unit's part has a row per image with the values of the metrics of images. The features that metrics of sets
compare are written beside it, a file per extractor and unit, before the part: a unit with a part has all its
features.
"""

from __future__ import annotations

import math
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa

from uhr.base.errors import UserError
from uhr.base.files import atomic
from uhr.runtime.units import Watch, Work
from uhr.train.evaluate.images import ImageRef, References
from uhr.train.evaluate.prompts import EvalItem

if TYPE_CHECKING:
    from uhr.models.metrics.base import ImageMetric, SetMetric
    from uhr.models.metrics.features import Features

ITEMS = pa.schema(
    [
        pa.field("index", pa.int64()),
        pa.field("prompt", pa.string()),
        pa.field("image", pa.list_(pa.string())),
        pa.field("reference", pa.list_(pa.string())),
    ]
)
"""`image` and `reference` are the parts of an `ImageRef`; the reference is null where there is none."""

FEATURES = re.compile(r"[0-9a-f]{16}-\d{7}\.arrow")
"""The names of files of features: the extractor's key, and the first index."""


class ChosenMetric(NamedTuple):
    """A metric of the protocol under its name there, and all its options with the user's weights.

    named: whether the user named weights of it.
    """

    name: str
    metric: str
    options: dict[str, Any]
    named: bool = False


def items_table(
    items: Sequence[EvalItem], refs: Sequence[ImageRef], references: Sequence[ImageRef] | None = None
) -> pa.Table:
    """The images to score."""
    rows = [
        {
            "index": number,
            "prompt": items[number].prompt,
            "image": list(ref),
            "reference": None if references is None else list(references[number]),
        }
        for number, ref in enumerate(refs)
    ]
    return pa.Table.from_pylist(rows, ITEMS)


def references_table(references: References) -> pa.Table:
    """The references to compute features of, each once, without prompts."""
    rows = [{"index": number, "image": list(ref)} for ref, number in references.distinct.items()]
    return pa.Table.from_pylist(rows, ITEMS)


class ScoreWork(Work):
    """Scores images, or only computes the features of references.

    Args:
        metrics: all metrics for generated images; for references those of sets.
        features: the folder of the features.
        references_only: whether the images are references.
        made: the same metrics, if they are loaded already.
    """

    def __init__(
        self,
        metrics: Sequence[ChosenMetric],
        device: str,
        features: Path,
        references_only: bool = False,
        made: Made | None = None,
    ) -> None:
        self.chosen, self.device, self.features = tuple(metrics), device, features
        self.references_only = references_only
        self._made = made

    def __getstate__(self) -> dict[str, Any]:
        # loaded models are not sent to workers
        return {**vars(self), "_made": None}

    @property
    def made(self) -> Made:
        """The metrics, loaded when they are first needed."""
        if self._made is None:
            self._made = Made.load(self.chosen, self.device)
        return self._made

    def open(self) -> None:
        _ = self.made

    def run(self, items: pa.Table, watch: Watch) -> pa.Table:
        from uhr.models.metrics.base import Sample, check_samples

        metrics = {} if self.references_only else self._image_metrics()
        rows: list[dict[str, Any]] = []
        features: dict[str, list[Features]] = {}
        for number, row in enumerate(items.to_pylist()):
            fault = watch.begin(number)
            ref = _ref(row["image"])
            if fault is not None:
                raise UserError(
                    f"{ref.name}: the process that scored it {fault.message}", "check free memory"
                )
            image, sha256, size = ref.pixels()
            reference = None
            if row["reference"] is not None and any("reference" in each.needs for each in metrics.values()):
                reference = _ref(row["reference"]).pixels()[0]
            sample = Sample(image, row["index"], row["prompt"], reference, ref.path)
            values: dict[str, float | None] = {}
            try:
                for name, metric in metrics.items():
                    check_samples(metric, [sample])
                    (scores,) = metric.score([sample])
                    values |= {score_column(name, key): v for key, v in _finite(scores, metric).items()}
                for key, extractor in self.made.extractors.items():
                    features.setdefault(key, []).append(extractor.features(image, row["index"]))
            except UserError as error:
                raise UserError(f"{ref.name}: {error.what}", error.fix) from error
            rows.append({"index": row["index"], "bytes": size, "sha256": sha256, **values})
        self._write(features, rows[0]["index"])
        return pa.Table.from_pylist(rows, self._schema(metrics))

    def _write(self, features: Mapping[str, Sequence[Features]], first: int) -> None:
        from uhr.models.metrics.features import Features

        for key, parts in features.items():
            Features.merge(parts).write(self.features / features_name(key, first))

    def _image_metrics(self) -> dict[str, ImageMetric]:
        """The metrics of images by their names in the protocol."""
        from uhr.models.metrics.base import ImageMetric

        both = zip(self.chosen, self.made.metrics, strict=True)
        return {chosen.name: metric for chosen, metric in both if isinstance(metric, ImageMetric)}

    @staticmethod
    def _schema(metrics: Mapping[str, ImageMetric]) -> pa.Schema:
        own = [("index", pa.int64()), ("bytes", pa.int64()), ("sha256", pa.string())]
        columns = (score_column(name, column.name) for name, m in metrics.items() for column in m.columns)
        return pa.schema([*own, *((column, pa.float64()) for column in columns)])


class Made(NamedTuple):
    """Loaded metrics, in the order of those that were chosen. `extractors` are those of all metrics of sets,
    by key."""

    metrics: list[ImageMetric | SetMetric]
    extractors: dict[str, Any]

    @classmethod
    def load(cls, chosen: Sequence[ChosenMetric], device: str, failed: dict[str, str] | None = None) -> Made:
        """Load the metrics.

        failed: takes the errors of metrics whose weights the user did not name, which are left out; None
            raises them. Raises UserError if one cannot be loaded.
        """
        from uhr.models.metrics.registry import metric

        made: list[Any] = []
        for each in chosen:
            try:
                made.append(metric(each.metric, device=device, **each.options))
            except UserError as error:
                if failed is None or each.named:
                    raise UserError(f"{each.name}: {error.what}", error.fix, error.give) from error
                failed[each.name] = str(error)
        return cls.of(made)

    @classmethod
    def of(cls, made: list[Any]) -> Made:
        """Take loaded metrics."""
        from uhr.models.metrics.base import ImageMetric, key

        sets = [each for each in made if not isinstance(each, ImageMetric)]
        return cls(made, {key(each.extractor): each.extractor for each in sets})


def score_column(name: str, column: str) -> str:
    """The column of a part with the values of a metric, which has this name in the protocol: two metrics may
    give columns of one name.
    """
    return f"{name}/{column}"


def features_name(key: str, first: int) -> str:
    """The file of the features of a unit whose first image has this index."""
    return f"{key[:16]}-{first:07d}.arrow"


def copy_features(source: Path, target: Path, key: str) -> None:
    """Take over the files of an extractor's features, as links where the file system has them. Raises
    UserError if there are none.
    """
    files = sorted(source.glob(f"{key[:16]}-*.arrow"))
    if not files:
        raise UserError(f"{source} has no features any more", "name another result, or none")
    target.mkdir(parents=True, exist_ok=True)
    for file in files:
        with atomic(target / file.name) as temporary:
            temporary.unlink(missing_ok=True)
            try:
                os.link(file, temporary)
            except OSError:
                shutil.copyfile(file, temporary)


def read_features(folder: Path, key: str) -> Features | None:
    """All features of an extractor in a folder, mapped into memory; None if there are none."""
    from uhr.models.metrics.features import Features

    files = sorted(folder.glob(f"{key[:16]}-*.arrow"))
    return Features.merge([Features.read(file) for file in files]) if files else None


def _ref(parts: Sequence[str | None]) -> ImageRef:
    name, place, item = parts
    assert name is not None
    assert place is not None
    return ImageRef(name, place, item)


def _finite(scores: Mapping[str, float | None], metric: ImageMetric) -> dict[str, float | None]:
    """The scores. Raises UserError if one is not a finite number: a mean over it would be none either."""
    for name, value in scores.items():
        if value is not None and not math.isfinite(value):
            raise UserError(f"{metric.name} gives {value} as {name}", "look at the image")
    return {name: None if value is None else float(value) for name, value in scores.items()}
