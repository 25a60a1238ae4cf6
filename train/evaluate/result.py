"""The result of an evaluation: `result.json`, and a row per image in `scores.parquet`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from uhr.base import parquet
from uhr.base.config import Config, read_versioned
from uhr.base.errors import UserError, one_line
from uhr.base.files import sha256_file
from uhr.base.paths import or_similar

if TYPE_CHECKING:
    import pyarrow as pa

FILE, SCORES = "result.json", "scores.parquet"
SCHEMA_VERSION = 1

OWN = ("index", "name", "prompt_index", "prompt", "seed", "width", "height", "file", "bytes", "sha256")
"""Columns of `scores.parquet` before those of the metrics."""


class ColumnResult(Config):
    """One number of a metric, over the whole set.

    Args:
        name: the column in `scores.parquet` for a metric of images, else the name of the value.
        low, high: the ends of the interval over prompts: the bootstrap's of metrics of images, the
            jackknife's of metrics of sets (`bootstrap.jackknife_interval`).
        spread: a standard deviation or error, of metrics of sets; `spread_of` says of what.
        left_out: of metrics of sets, the values without the images of each group of prompts
            (`bootstrap.groups_of`), for paired differences; None if the metric has none, or of few prompts.
        weight: the column of `scores.parquet` that weights the mean; images of weight 0 have no value.
        n: images that have a value, or rows of features of the smaller set. Images whose score is null have
            none: the metric could not measure them.
    """

    name: str
    better: Literal["higher", "lower"] | None
    meaning: str
    mean: Literal["arithmetic", "harmonic"] = "arithmetic"
    value: float | None
    low: float | None = None
    high: float | None = None
    spread: float | None = None
    spread_of: str | None = None
    left_out: tuple[float, ...] | None = None
    weight: str | None = None
    n: int


class MetricResult(Config):
    """A metric of the protocol, and its values.

    Args:
        metric: its name in the protocol.
        name: its full name.
        kind: whether it scores each image, or the set.
        key: the SHA-256 of `identity`: weights, options and versions. Other keys are other metrics.
        extractor: the key of the features' extractor, of metrics of sets.
    """

    metric: str
    name: str
    kind: Literal["image", "set"]
    needs: tuple[str, ...]
    identity: dict[str, Any]
    key: str
    extractor: str | None = None
    columns: tuple[ColumnResult, ...]


class MissingMetric(Config):
    """A metric of the protocol that was left out, and why."""

    metric: str
    reason: str


class ProtocolRef(Config):
    """The protocol of a result; `tree` is all of it. `complete`: no prompt was left out."""

    name: str
    id: str
    complete: bool
    tree: dict[str, Any]


class ReferencesRef(Config):
    """The reference images: how they were used, a hash of which they are, their number, and their folder."""

    kind: str
    id: str
    count: int
    place: str


class ResultInfo(Config):
    """The content of `result.json`, which is written last.

    Args:
        prompts: a hash of prompts, seeds and sizes (64 hex digits).
        images: the folder of the generated images.
        made: how they were generated, as far as it is known.
        seed: of all resampling. resamples, level: of the bootstrap.
        overlap: what references and prompts share with the training data of the model; None if its training
            data is not known.
        scores: the SHA-256 of `scores.parquet`.
    """

    schema_version: int = SCHEMA_VERSION
    uhr: str
    created: str
    protocol: ProtocolRef
    prompts: str
    n: int
    images: str
    made: dict[str, Any] | None = None
    references: ReferencesRef | None = None
    seed: int
    resamples: int
    level: float
    metrics: tuple[MetricResult, ...]
    missing: tuple[MissingMetric, ...] = ()
    overlap: dict[str, Any] | None = None
    versions: dict[str, str] = Field(default_factory=dict)
    scores: str

    def columns(self) -> dict[str, tuple[MetricResult, ColumnResult]]:
        """Every number, under a name that is unique in the result: that of its column."""
        return {column.name: (metric, column) for metric in self.metrics for column in metric.columns}


class Result(Config):
    """A finished result in a folder."""

    folder: Path
    info: ResultInfo

    def scores(self) -> pa.Table:
        """The rows of the images, in the order of the items. Raises UserError if the file was changed."""
        file = self.folder / SCORES
        try:
            if sha256_file(file) != self.info.scores:
                raise UserError(f"{file} has changed since the evaluation", "run `uhr eval run` again")
        except OSError as error:
            raise UserError(
                f"{file} cannot be read ({one_line(error)})", "run `uhr eval run` again"
            ) from None
        return parquet.read(file)


def open_result(folder: Path) -> Result:
    """Open the result in a folder. Raises UserError if there is none, or if it is unfinished."""
    if not (folder / FILE).exists():
        fix = or_similar(folder, "name a folder that `uhr eval run --out` wrote")
        state = "contains no finished result" if folder.exists() else "does not exist"
        raise UserError(f"{folder} {state}", fix)
    info = read_versioned(ResultInfo, folder / FILE, SCHEMA_VERSION, "run `uhr eval run` again")
    return Result(folder=folder, info=info)
