"""Scores the images of an evaluation. A run that was stopped is resumed by the same command.

OUT is a folder:

    request.json          what is scored with what, written first; another request needs another folder
    features/             features of the generated images, by extractor and unit
    reference-features/   the same of the references
    scores.parquet        a row per image
    result.json           written last
    work/                 units, finished groups of metrics and lock, removed at the end
"""

from __future__ import annotations

import collections
import datetime
import platform
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import uhr
from uhr.base import parquet
from uhr.base.config import installed_versions
from uhr.base.console import warn
from uhr.base.errors import UserError
from uhr.base.files import atomic, saving, sha256_file, write_json
from uhr.base.paths import path_text, place_text
from uhr.base.run_folder import RunFolder
from uhr.train.evaluate import bootstrap, prompts, result
from uhr.train.evaluate.choice import grouped
from uhr.train.evaluate.images import ImageRef
from uhr.train.evaluate.overlap.compare import Overlap
from uhr.train.evaluate.result import (
    MetricResult,
    MissingMetric,
    ProtocolRef,
    ReferencesRef,
    Result,
    ResultInfo,
)
from uhr.train.evaluate.scoring.passes import (
    LoadedGroup,
    ScoredGroup,
    ScoredMetric,
    check,
    check_reuse,
    divided,
    parts,
    score,
)
from uhr.train.evaluate.scoring.request import WORK, ScoreJob, begin
from uhr.train.evaluate.scoring.work import score_column

if TYPE_CHECKING:
    import pyarrow as pa


def run(job: ScoreJob) -> Result:
    """Score all images, or what is missing of them, and write the result. One group of metrics is loaded at a
    time, and none if the result is finished.

    Raises UserError if OUT contains another evaluation or anything else, if an image or a metric cannot be
    used, or if the disk is full.
    """
    check_reuse(job)
    folder = RunFolder(job.out, job.layout)
    folder.claim()
    fix = "free space there; the same command resumes where it stopped"
    with saving(job.out, fix), folder.lock(WORK):
        begin(job)
        if (job.out / result.FILE).exists():
            return _with_overlap(result.open_result(job.out), job.overlap)
        job, loaded = _loadable(job)
        scored = [score(job, group, loaded) for group in divided(job)]
        info = _commit(job, scored)
        folder.clear(WORK)
    return Result(folder=job.out, info=info)


def _with_overlap(finished: Result, overlap: Overlap | None) -> Result:
    """A finished result, with the overlap with training data that were not known when it was written."""
    if overlap is None or finished.info.overlap == overlap.facts():
        return finished
    info = finished.info.model_copy(update={"overlap": overlap.facts()})
    write_json(finished.folder / result.FILE, info.model_dump(mode="json"))
    return Result(folder=finished.folder, info=info)


def _loadable(job: ScoreJob) -> tuple[ScoreJob, list[LoadedGroup]]:
    """The job without the metrics that cannot be loaded, and the group that is loaded already, if one is."""
    failed, loaded = check(job)
    left = [
        MissingMetric(metric=each.name, reason=failed[each.name])
        for each in job.chosen
        if each.name in failed
    ]
    chosen = [each for each in job.chosen if each.name not in failed]
    if not chosen:
        raise UserError(f"no metric can be loaded; {left[0].metric}: {left[0].reason}")
    for line in grouped(left):
        warn(f"left out: {line}")
    job = replace(job, chosen=chosen, missing=[*job.missing, *left])
    return job, [] if loaded is None else [loaded]


def _commit(job: ScoreJob, scored: Sequence[ScoredGroup]) -> ResultInfo:
    """Write the scores, then the result."""
    place = {chosen.name: at for at, chosen in enumerate(job.chosen)}
    found = sorted(
        ((metric, group.number) for group in scored for metric in group.metrics),
        key=lambda each: place[each[0].result.metric],
    )
    tables = {group.number: parts(job, group.number) for group in scored}
    _check_same_files(job, list(tables.values()))
    columns, metrics = _own_columns(job, next(iter(tables.values()))), []
    shared = _shared([metric for metric, _ in found], columns)
    for metric, number in found:
        own = metric.result.metric if shared & set(metric.columns or _names(metric.result)) else None
        for name in metric.columns:
            columns[_unique(name, own)] = tables[number][score_column(metric.result.metric, name)]
        metrics.append(_renamed(metric.result, own))
    import pyarrow as pa

    with atomic(job.out / result.SCORES) as temporary:
        parquet.write(temporary, pa.table(columns), compression="zstd")
    info = _info(job, metrics)
    write_json(job.out / result.FILE, info.model_dump(mode="json"))
    return info


def _check_same_files(job: ScoreJob, tables: Sequence[pa.Table]) -> None:
    """Raise UserError if an image was another file for one group of metrics than for the next."""
    for table in tables[1:]:
        for ref, one, other in zip(
            job.images.refs, tables[0]["sha256"].to_pylist(), table["sha256"].to_pylist(), strict=True
        ):
            if one != other:
                raise UserError(f"{ref.name} has changed while it was scored", "score it into a new folder")


def _shared(metrics: Sequence[ScoredMetric], own: Iterable[str]) -> set[str]:
    """The names of columns that two metrics give: two models of one architecture, say; or that a metric gives
    and `own`, the columns before those of metrics, have.
    """
    names = [name for each in metrics for name in (each.columns or _names(each.result))]
    return {name for name, count in collections.Counter([*names, *own]).items() if count > 1}


def _names(metric: MetricResult) -> list[str]:
    return [column.name for column in metric.columns]


def _unique(column: str, own: str | None) -> str:
    """A column's name with the metric's name in the protocol, `own`, if it is not unique."""
    from uhr.models.metrics.base import column_name

    return column if own is None else f"{column}_{column_name(own)}"


def _renamed(metric: MetricResult, own: str | None) -> MetricResult:
    if own is None:
        return metric
    columns = [
        column.model_copy(
            update={
                "name": _unique(column.name, own),
                "weight": None if column.weight is None else _unique(column.weight, own),
            }
        )
        for column in metric.columns
    ]
    return metric.model_copy(update={"name": f"{metric.name}/{own}", "columns": tuple(columns)})


def _own_columns(job: ScoreJob, table: pa.Table) -> dict[str, pa.Array]:
    """The columns of `scores.parquet` before those of metrics."""
    import pyarrow as pa

    items = job.evaluation.items
    return {
        "index": pa.array([item.index for item in items], pa.int64()),
        "name": pa.array([item.name for item in items]),
        "prompt_index": pa.array([item.prompt_index for item in items], pa.int64()),
        "prompt": pa.array([item.prompt for item in items]),
        "seed": pa.array([item.seed for item in items], pa.int64()),
        "width": pa.array([item.size[0] for item in items], pa.int32()),
        "height": pa.array([item.size[1] for item in items], pa.int32()),
        "file": pa.array([_relative(ref, job.images.folder) for ref in job.images.refs]),
        "bytes": table["bytes"],
        "sha256": table["sha256"],
    }


def _relative(ref: ImageRef, folder: Path) -> str:
    path = ref.path
    assert path is not None
    return path_text(path.relative_to(folder.absolute()))


def _info(job: ScoreJob, metrics: Sequence[MetricResult]) -> ResultInfo:
    protocol, items, complete = job.evaluation
    return ResultInfo(
        uhr=uhr.__version__,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        protocol=ProtocolRef(
            name=protocol.name, id=protocol.id, complete=complete, tree=protocol.model_dump(mode="json")
        ),
        prompts=prompts.digest(list(items)),
        n=len(items),
        images=path_text(job.images.folder.absolute()),
        made=job.images.made,
        references=None
        if job.references is None
        else ReferencesRef(
            kind=job.references.kind,
            id=job.references.id,
            count=len(job.references.distinct),
            place=place_text(job.references.place),
        ),
        seed=job.scoring.seed,
        resamples=job.resamples,
        level=bootstrap.LEVEL,
        metrics=tuple(metrics),
        missing=tuple(job.missing),
        overlap=None if job.overlap is None else job.overlap.facts(),
        versions=_versions(),
        scores=sha256_file(job.out / result.SCORES),
    )


def _versions() -> dict[str, str]:
    """The versions of what every score passes through; a metric's own are in its identity."""
    return {"python": platform.python_version(), **installed_versions("numpy", "opencv-python-headless")}
