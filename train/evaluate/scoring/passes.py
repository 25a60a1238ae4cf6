"""One group of metrics: loads it, takes all images through it, and summarises what they gave."""

from __future__ import annotations

import gc
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from uhr.base import parquet
from uhr.base.config import Config, fingerprint, read_versioned
from uhr.base.console import progress, warn
from uhr.base.errors import UserError
from uhr.base.files import write_json
from uhr.runtime.pool import InlineRunner
from uhr.runtime.units import PlanMismatch, UnitPlan, run_units
from uhr.train.evaluate import bootstrap
from uhr.train.evaluate.result import SCHEMA_VERSION, ColumnResult, MetricResult
from uhr.train.evaluate.scoring.groups import MetricGroup, divide, memory_for
from uhr.train.evaluate.scoring.request import GENERATED, REFERENCE_UNITS, REFERENCES, UNITS, WORK, ScoreJob
from uhr.train.evaluate.scoring.work import (
    ChosenMetric,
    Made,
    ScoreWork,
    copy_features,
    items_table,
    read_features,
    references_table,
    score_column,
)

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

MOST_UNITS = 1000
"""Up to this many images, each unit is one image: nothing that was scored is lost when a run is stopped."""


LEAST_VARIATION = 1e-3
"""Of features (`distances.variation`). Random weights of Inception had 7e-5 for images of noise."""


class ScoredMetric(Config):
    """A metric of a finished group, and its columns in the parts, in order; a metric of sets has none."""

    result: MetricResult
    columns: tuple[str, ...] = ()


class ScoredGroup(Config):
    """A group whose images were all scored: its metrics in their order, and the number of its plan."""

    schema_version: int = SCHEMA_VERSION
    number: int
    metrics: tuple[ScoredMetric, ...]


class LoadedGroup(NamedTuple):
    """A group whose models are in memory."""

    group: MetricGroup
    made: Made


def divided(job: ScoreJob) -> list[MetricGroup]:
    """The groups of metrics of a job."""
    scoring = job.scoring
    memory = 0 if scoring.together else memory_for(scoring.device, scoring.pool.workers)
    return divide(job.chosen, scoring.together, memory)


def check(job: ScoreJob) -> tuple[dict[str, str], LoadedGroup | None]:
    """Load each group that is not finished once, so that what cannot be loaded is known before hours of
    scoring. The first group is loaded last, and returned.

    Returns also the metrics that are left out, with the reasons, if the job allows that. Raises UserError for
    a metric that cannot be loaded and may not be left out.
    """
    left = [each for each in divided(job) if not _file(job, each).exists()]
    failed: dict[str, str] = {}
    loaded = None
    with progress("load", sum(len(group.chosen) for group in left), "metrics") as advance:
        for group in reversed(left):
            if loaded is not None:
                loaded = None
                _release()
            loaded = _load(job, group, failed if job.scoring.allow_missing else None)
            advance(len(group.chosen))
    return failed, loaded


def _load(job: ScoreJob, group: MetricGroup, failed: dict[str, str] | None = None) -> LoadedGroup:
    made = Made.load(group.chosen, job.scoring.device, failed)
    return LoadedGroup(
        MetricGroup(tuple(each for each in group.chosen if each.name not in (failed or ()))), made
    )


def _file(job: ScoreJob, group: MetricGroup) -> Path:
    return job.out / WORK / f"group-{group.number}.json"


def score(job: ScoreJob, group: MetricGroup, loaded: list[LoadedGroup]) -> ScoredGroup:
    """Score all images with a group, or what is missing of them; a group that is finished is not loaded.

    loaded: what `check` returned, if anything; it is taken out, so that nothing else keeps the models.

    Raises UserError if an image cannot be scored, or if an earlier run had other weights or versions.
    """
    file = _file(job, group)
    if file.exists():
        return read_versioned(ScoredGroup, file, SCHEMA_VERSION, "name a new folder")
    metrics, made = _metrics(job, group, loaded)
    found = ScoredGroup(number=group.number, metrics=tuple(_scored(job, group, metrics, made)))
    write_json(file, found.model_dump(mode="json"))
    return found


def _metrics(job: ScoreJob, group: MetricGroup, loaded: list[LoadedGroup]) -> tuple[list[Any], Made | None]:
    """The metrics of a group, and their models for work in this process. Workers load their own: here only
    the metrics of sets then stay in memory, which compare at the end.
    """
    made = next((each.made for each in loaded if each.group == group), None)
    loaded.clear()
    if made is None:
        _release()
        with progress("load", len(group.chosen), f"metrics ({group.label})") as advance:
            made = _load(job, group).made
            advance(len(group.chosen))
    if isinstance(job.runner, InlineRunner):
        return list(made.metrics), made
    facts = [each if hasattr(each, "extractor") else _Facts.of(each) for each in made.metrics]
    return facts, None


def parts(job: ScoreJob, number: int) -> pa.Table:
    """The rows of all images of a group that is finished."""
    import pyarrow as pa

    plan = UnitPlan.open(job.out / UNITS, number)
    return pa.concat_tables([parquet.read(plan.part(unit)) for unit in range(plan.count)])


@dataclass(frozen=True)
class _Facts:
    """What is left of a metric of images when its model is freed."""

    name: str
    needs: frozenset[str]
    columns: Sequence[Any]
    tree: dict[str, Any]

    @classmethod
    def of(cls, metric: Any) -> _Facts:
        return cls(metric.name, metric.needs, metric.columns, metric.identity())

    def identity(self) -> dict[str, Any]:
        return self.tree


def _scored(job: ScoreJob, group: MetricGroup, metrics: list[Any], made: Made | None) -> list[ScoredMetric]:
    from uhr.models.metrics.base import key

    if made is None:
        # the workers load models of their own
        _release()
    keys = [key(metric) for metric in metrics]
    is_image = [not hasattr(metric, "extractor") for metric in metrics]
    work = ScoreWork(group.chosen, job.scoring.device, job.out / GENERATED, made=made)
    paired = job.references is not None and job.references.kind == "paired"
    references = job.references.refs if job.references is not None and paired else None
    table = items_table(job.evaluation.items, job.images.refs, references)
    plan = _plan(job, UNITS, table, group, keys)
    with progress("score", plan.rows, f"images ({group.label})") as advance:
        run_units(plan, work, job.runner, advance)
    if job.references is not None:
        both = zip(group.chosen, metrics, strict=True)
        _references(job, group, [each for each in both if hasattr(each[1], "extractor")], made is not None)
    rows = parts(job, group.number)
    found = []
    with progress("summarise", len(metrics), "metrics") as advance:
        for each, metric, own, image in zip(group.chosen, metrics, keys, is_image, strict=True):
            columns = _image_columns(job, each.name, metric, rows) if image else _set_columns(job, metric)
            summary = MetricResult(
                metric=each.name,
                name=metric.name,
                kind="image" if image else "set",
                needs=tuple(sorted(metric.needs)),
                identity=metric.identity(),
                key=own,
                extractor=None if image else key(metric.extractor),
                columns=tuple(columns),
            )
            names = tuple(column.name for column in metric.columns) if image else ()
            found.append(ScoredMetric(result=summary, columns=names))
            advance()
    both = zip(group.chosen, metrics, strict=True)
    _warn_of_equal_features(job, {each.name: metric for each, metric in both if hasattr(metric, "variation")})
    return found


def _warn_of_equal_features(job: ScoreJob, metrics: Mapping[str, Any]) -> None:
    """Warn where features of different images hardly differ, as those of a network without training."""
    from uhr.models.metrics.base import key

    found: dict[str, list[str]] = {}
    for name, metric in metrics.items():
        compared = {GENERATED: "generated images"}
        if "reference" in metric.needs:
            compared[REFERENCES] = "references"
        for folder, whose in compared.items():
            features = read_features(job.out / folder, key(metric.extractor))
            if features is not None and metric.variation(features) < LEAST_VARIATION:
                found.setdefault(whose, []).append(name)
    for whose, names in found.items():
        what = f"{', '.join(names)}: features of the {whose} hardly differ, so that the values say nothing"
        warn(f"{what}: name trained weights, or look whether the {whose} are copies of one")


def _release() -> None:
    """Free the memory of models that nothing refers to any more, on the device too."""
    from uhr.train.encode.work.memory import empty_gpu_cache

    gc.collect()
    if "torch" in sys.modules:
        empty_gpu_cache()


def _plan(job: ScoreJob, folder: str, table: pa.Table, group: MetricGroup, keys: Sequence[str]) -> UnitPlan:
    place = job.out / folder
    place.mkdir(parents=True, exist_ok=True)
    try:
        size = -(-table.num_rows // MOST_UNITS)
        return UnitPlan.create(place, table, size, fingerprint(list(keys)), number=group.number)
    except PlanMismatch:
        what = f"--out {job.out} was begun with other weights or versions of {group.label}"
        raise UserError(what, "name a new folder") from None


def _references(
    job: ScoreJob, group: MetricGroup, sets: Sequence[tuple[ChosenMetric, Any]], inline: bool
) -> None:
    """Compute the features of the references that some metric of the group needs."""
    from uhr.models.metrics.base import key

    assert job.references is not None
    needed = [each for each in sets if "reference" in each[1].needs]
    reused = _reuse(job, {key(metric.extractor) for _, metric in needed})
    needed = [each for each in needed if key(each[1].extractor) not in reused]
    if not needed:
        return
    chosen, metrics = [each for each, _ in needed], [metric for _, metric in needed]
    work = ScoreWork(
        chosen,
        job.scoring.device,
        job.out / REFERENCES,
        references_only=True,
        made=Made.of(metrics) if inline else None,
    )
    plan = _plan(
        job, REFERENCE_UNITS, references_table(job.references), group, [key(metric) for metric in metrics]
    )
    with progress("references", plan.rows, "images") as advance:
        run_units(plan, work, job.runner, advance)


def check_reuse(job: ScoreJob) -> None:
    """Raise UserError if the result whose features are to be taken over has other references."""
    reuse = job.scoring.reuse
    if reuse is None:
        return
    theirs, own = reuse.info.references, job.references
    if (theirs and theirs.id) != (own and own.id):
        what = f"--reuse {reuse.folder} has other references"
        raise UserError(what, "name a result with these references, or leave --reuse out")


def _reuse(job: ScoreJob, keys: set[str]) -> set[str]:
    """Take over features of the references by these extractors. Returns the keys of those that there were."""
    reuse = job.scoring.reuse
    if reuse is None:
        return set()
    there = {each.extractor for each in reuse.info.metrics if "reference" in each.needs}
    for each in keys & there:
        copy_features(reuse.folder / REFERENCES, job.out / REFERENCES, each)
    return keys & there


def _prompts(job: ScoreJob) -> np.ndarray:
    """The prompt of each image, by number."""
    import numpy as np

    return np.array([item.prompt_index for item in job.evaluation.items])


def _image_columns(job: ScoreJob, name: str, metric: Any, rows: pa.Table) -> list[ColumnResult]:
    found, prompts = [], _prompts(job)
    # a number of answers is a fact of the prompt, and no result
    own = {column.weight for column in metric.columns}
    for column in metric.columns:
        if column.name in own:
            continue
        values = rows[score_column(name, column.name)].to_numpy()
        weights = None if column.weight is None else rows[score_column(name, column.weight)].to_numpy()
        count = int(bootstrap.has_value(values, weights).sum())
        mean = None
        if count:
            seed = job.scoring.seed
            mean = bootstrap.interval(values, prompts, column.mean, seed, job.resamples, weights)
        found.append(
            ColumnResult(
                name=column.name,
                better=column.better,
                meaning=column.meaning,
                mean=column.mean,
                value=None if mean is None else mean.value,
                low=None if mean is None else mean.low,
                high=None if mean is None else mean.high,
                weight=column.weight,
                n=count,
            )
        )
    return found


def _set_columns(job: ScoreJob, metric: Any) -> list[ColumnResult]:
    from uhr.models.metrics.base import key

    extractor, seed = key(metric.extractor), job.scoring.seed
    generated = read_features(job.out / GENERATED, extractor)
    reference = read_features(job.out / REFERENCES, extractor) if "reference" in metric.needs else None
    assert generated is not None
    values = metric.compare(reference, generated, seed)
    groups = bootstrap.groups_of(_prompts(job))
    # a class of the user's own need not have it
    without = {}
    if groups is not None and hasattr(metric, "without"):
        without = metric.without(reference, generated, groups, seed)
    found = []
    for column in metric.columns:
        value, left_out = values[column.name], without.get(column.name)
        ends = bootstrap.jackknife_interval(value.value, left_out)
        found.append(
            ColumnResult(
                name=column.name,
                better=column.better,
                meaning=column.meaning,
                value=value.value,
                low=ends.low,
                high=ends.high,
                spread=value.spread,
                spread_of=value.spread_of,
                left_out=None if left_out is None else tuple(left_out),
                n=value.n,
            )
        )
    return found
