"""Paired differences between results of one protocol."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uhr.base.config import Config
from uhr.base.console import counted
from uhr.base.errors import UserError, combined
from uhr.base.files import user_path
from uhr.train.evaluate import bootstrap
from uhr.train.evaluate.bootstrap import Difference
from uhr.train.evaluate.protocol import EvalProtocol
from uhr.train.evaluate.result import ColumnResult, MetricResult, Result, ResultInfo, open_result

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa


@dataclass(frozen=True, eq=False)
class Arm:
    """One result under the name that the user gave it."""

    name: str
    result: Result

    @property
    def info(self) -> ResultInfo:
        return self.result.info

    @cached_property
    def scores(self) -> pa.Table:
        """The rows of its images, in the order of the items."""
        return self.result.scores()

    def column(self, name: str) -> ColumnResult | None:
        """A value of this name; None if the metric was left out."""
        found = self.info.columns().get(name)
        return None if found is None else found[1]

    def values(self, column: ColumnResult) -> tuple[np.ndarray, np.ndarray | None]:
        """The values of its images in a column, float [N], NaN where an image has none, and their weights."""
        import numpy as np

        values = np.asarray(self.scores[column.name], dtype=float)
        weights = None if column.weight is None else np.asarray(self.scores[column.weight], dtype=float)
        return np.where(bootstrap.has_value(values, weights), values, np.nan), weights


class ComparedColumn(Config):
    """One number of all arms.

    Args:
        name, metric: its name, and the full name of its metric.
        kind: whether it is a mean over images, or of the set.
        values: of each arm; None where the metric was left out.
        differences: of each arm from the first; None for the first, and where a value is missing, no image
            has one in both, or a metric of sets has no values without groups of prompts.
    """

    name: str
    metric: str
    kind: str
    better: str | None
    meaning: str
    values: tuple[ColumnResult | None, ...]
    differences: tuple[Difference | None, ...]


@dataclass(frozen=True, eq=False)
class Comparison:
    """Results of one protocol over the same prompts and references. The first arm is the baseline."""

    arms: tuple[Arm, ...]
    columns: tuple[ComparedColumn, ...]

    @property
    def protocol(self) -> EvalProtocol:
        return EvalProtocol.model_validate(self.arms[0].info.protocol.tree)

    @cached_property
    def prompt_count(self) -> int:
        """How many prompts there are; several images may be of one."""
        return len(set(self.arms[0].scores["prompt_index"].to_pylist()))

    def fewer(self, column: ComparedColumn, difference: Difference) -> str:
        """` (5 prompts)` for a paired difference that only some of the prompts have; else nothing."""
        if column.kind == "set" or difference.prompts == self.prompt_count:
            return ""
        return f" ({counted(difference.prompts, 'prompt')})"

    def facts(self) -> dict[str, Any]:
        """The comparison for `--json`."""
        first = self.arms[0].info
        return {
            "protocol": first.protocol.id,
            "n": first.n,
            "complete": first.protocol.complete,
            "level": first.level,
            "arms": [
                {
                    "name": arm.name,
                    "result": str(arm.result.folder),
                    "missing": [each.model_dump() for each in arm.info.missing],
                    "overlap": arm.info.overlap,
                }
                for arm in self.arms
            ],
            "columns": [
                {
                    **column.model_dump(exclude={"values", "differences"}),
                    "values": [
                        None if v is None else v.model_dump(exclude={"left_out"}) for v in column.values
                    ],
                    "differences": [None if d is None else d._asdict() for d in column.differences],
                }
                for column in self.columns
            ],
        }


def one_of_several(name: str, metric: str, metrics: Sequence[str]) -> str:
    """Return the name of a column if its metric has several, else "": it says no more than the metric's.

    metrics: that of each column.
    """
    return name if metrics.count(metric) > 1 else ""


def open_arms(texts: Sequence[str]) -> tuple[Arm, ...]:
    """Open results, given as FOLDER or NAME=FOLDER; the name of a folder is its own.

    Raises UserError if one is no result, or if two have one name.
    """
    arms = []
    for text in texts:
        name, equals, place = text.partition("=")
        if not equals or user_path(text).exists():
            name, place = user_path(text).resolve().name, text
        if any(arm.name == name for arm in arms):
            raise UserError(f"two results are called '{name}'", "name them: NAME=FOLDER")
        arms.append(Arm(name, open_result(user_path(place))))
    return tuple(arms)


def compare(arms: Sequence[Arm]) -> Comparison:
    """Compare results. Raises UserError with what differs if their numbers cannot be compared."""
    _check(arms)
    names: dict[str, tuple[MetricResult, ColumnResult]] = {}
    for arm in arms:
        names = {**arm.info.columns(), **names}
    columns = []
    for name, (metric, column) in names.items():
        values = tuple(arm.column(name) for arm in arms)
        columns.append(
            ComparedColumn(
                name=name,
                metric=metric.name,
                kind=metric.kind,
                better=column.better,
                meaning=column.meaning,
                values=values,
                differences=tuple(_differences(arms, column, metric)),
            )
        )
    return Comparison(tuple(arms), tuple(columns))


def _check(arms: Sequence[Arm]) -> None:
    """Raise UserError if the arms are of different protocols, prompts, references or metrics."""
    first, mistakes = arms[0], []
    for arm in arms[1:]:
        facts = (
            ("protocols", first.info.protocol.id, arm.info.protocol.id, _differing_keys(first, arm)),
            ("prompts, seeds or sizes", first.info.prompts[:12], arm.info.prompts[:12], ""),
            ("references", _references(first.info), _references(arm.info), ""),
        )
        found = [f"{what} ({a} and {b}{how})" for what, a, b, how in facts if a != b]
        if not found:
            found = list(_other_metrics(first.info, arm.info))
        if found:
            mistakes.append(UserError(f"{first.name} and {arm.name} have different {', '.join(found)}"))
    if mistakes:
        raise UserError(combined(mistakes).what, "score both under one protocol with `uhr eval run`")


def _references(info: ResultInfo) -> str:
    if info.references is None:
        return "none"
    return f"{info.references.count:,} images {info.references.id[:12]}"


def _differing_keys(one: Arm, other: Arm) -> str:
    a, b = one.info.protocol.tree, other.info.protocol.tree
    about = {"name", "about", "sources", "unknown", "paper", "prompts", "images"}
    keys = [key for key in a if key not in about and a[key] != b.get(key)]
    return f": other {', '.join(keys)}" if keys else ""


def _other_metrics(one: ResultInfo, other: ResultInfo) -> list[str]:
    """Metrics of one name whose weights, options or versions differ."""
    theirs = {metric.name: metric for metric in other.metrics}
    found = []
    for metric in one.metrics:
        same = theirs.get(metric.name)
        if same is not None and same.key != metric.key:
            keys = sorted(
                key
                for key in {*metric.identity, *same.identity}
                if metric.identity.get(key) != same.identity.get(key)
            )
            found.append(f"{', '.join(keys)} of {metric.name}")
    return found


def _differences(arms: Sequence[Arm], column: ColumnResult, metric: MetricResult) -> list[Difference | None]:
    import numpy as np

    first = arms[0]
    found: list[Difference | None] = [None]
    for arm in arms[1:]:
        one, other = first.column(column.name), arm.column(column.name)
        if one is None or other is None or one.value is None or other.value is None:
            found.append(None)
            continue
        if metric.kind == "set":
            paired = one.left_out is not None and other.left_out is not None
            found.append(
                bootstrap.jackknife_difference(one.value, other.value, one.left_out, other.left_out)
                if paired
                else None
            )
            continue
        (a, a_weights), (b, b_weights) = first.values(one), arm.values(other)
        weights = None if a_weights is None or b_weights is None else (a_weights, b_weights)
        prompts, info = np.asarray(first.scores["prompt_index"]), first.info
        how = (column.mean, info.seed, info.resamples, weights, column.better)
        found.append(bootstrap.difference(a, b, prompts, *how))
    return found


def image_file(arm: Arm, row: int) -> Path:
    """The file of the image of a row."""
    from uhr.base.paths import text_path

    return text_path(arm.info.images) / text_path(arm.scores["file"][row].as_py())


def spaced(count: int, most: int | None) -> list[int]:
    """At most so many of the first `count` numbers, evenly spaced; all if `most` is None."""
    if most is None or count <= most:
        return list(range(count))
    return [at * count // most for at in range(most)]
