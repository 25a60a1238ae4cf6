"""Scores the images of an evaluation. A run that was stopped is resumed by the same command.

OUT is a folder:

    request.json          what is scored with what, written first; another request needs another folder
    features/             features of the generated images, by extractor and unit
    reference-features/   the same of the references
    scores.parquet        a row per image
    result.json           written last
    work/                 units and lock, removed at the end
"""

from __future__ import annotations

import datetime
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uhr
from uhr.base import parquet
from uhr.base.config import fingerprint, versioned_tree
from uhr.base.console import progress, warn
from uhr.base.errors import UserError
from uhr.base.files import atomic, file_version, or_half_written, saving, sha256_file, write_json
from uhr.base.locks.run_lock import NAME as LOCK
from uhr.base.paths import path_text
from uhr.base.run_folder import FolderLayout, RunFolder
from uhr.runtime import units
from uhr.runtime.units import Runner, UnitPlan, run_units
from uhr.train.evaluate import bootstrap, prompts, result
from uhr.train.evaluate.choice import grouped
from uhr.train.evaluate.images import ImageRef, ImageSet, References
from uhr.train.evaluate.overlap.compare import Overlap
from uhr.train.evaluate.prompts import EvalItem
from uhr.train.evaluate.protocol import EvalProtocol
from uhr.train.evaluate.result import (
    ColumnResult,
    MetricResult,
    MissingMetric,
    ProtocolRef,
    ReferencesRef,
    Result,
    ResultInfo,
)
from uhr.train.evaluate.scoring import (
    FEATURES,
    ChosenMetric,
    Made,
    ScoreWork,
    copy_features,
    items_table,
    read_features,
    references_table,
)

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

REQUEST = "request.json"
GENERATED, REFERENCES = "features", "reference-features"
UNITS, REFERENCE_UNITS = "work/units", "work/reference-units"

LAYOUT = FolderLayout(
    "the result",
    (REQUEST, GENERATED, REFERENCES, result.SCORES, result.FILE, "work"),
    (REQUEST, "work"),
    {
        GENERATED: or_half_written(FEATURES.pattern),
        REFERENCES: or_half_written(FEATURES.pattern),
        "work": or_half_written(LOCK),
        UNITS: or_half_written(units.FILES),
        REFERENCE_UNITS: or_half_written(units.FILES),
    },
)

MOST_UNITS = 1000
"""Up to this many images, each unit is one image: nothing that was scored is lost when a run is stopped."""

FEWEST = 50
"""With fewer images than this, distances of distributions are dominated by the size of the sample."""


@dataclass(frozen=True)
class ScoreJob:
    """What to score, with which metrics, and by which runner.

    Args:
        chosen: the metrics that can be computed; `missing` are the others of the protocol.
        allow_missing: whether metrics that cannot be loaded are left out, too.
        complete: whether no prompt of the protocol was left out.
        seed: of all resampling.
        layout: of OUT, for a command that writes more than this one into it.
        reuse: a finished result with the same references, whose features of them are taken over.
    """

    protocol: EvalProtocol
    items: Sequence[EvalItem]
    images: ImageSet
    references: References | None
    chosen: Sequence[ChosenMetric]
    missing: Sequence[MissingMetric]
    out: Path
    runner: Runner
    device: str
    allow_missing: bool = False
    complete: bool = True
    seed: int = 0
    resamples: int = bootstrap.RESAMPLES
    overlap: Overlap | None = field(default=None)
    layout: FolderLayout = LAYOUT
    reuse: Result | None = None


def run(job: ScoreJob) -> Result:
    """Score all images, or what is missing of them, and write the result.

    Raises UserError if OUT contains another evaluation or anything else, if an image or a metric cannot be
    used, or if the disk is full.
    """
    _check_reuse(job)
    folder = RunFolder(job.out, job.layout)
    folder.claim()
    job, made = _loaded(job)
    work = ScoreWork(job.chosen, job.device, job.out / GENERATED, made=made)
    requested = _request(job, made)
    fix = "free space there; the same command resumes where it stopped"
    with saving(job.out, fix), folder.lock("work"):
        _begin(job.out, requested)
        if (job.out / result.FILE).exists():
            return _with_overlap(result.open_result(job.out), job.overlap)
        scored = _scored(job, work)
        if job.references is not None and made.extractors:
            _references(job, made)
        info = _commit(job, made, scored)
        folder.clear(UNITS, REFERENCE_UNITS)
    return Result(folder=job.out, info=info)


def _with_overlap(finished: Result, overlap: Overlap | None) -> Result:
    """A finished result, with the overlap with training data that were not known when it was written."""
    if overlap is None or finished.info.overlap == overlap.facts():
        return finished
    info = finished.info.model_copy(update={"overlap": overlap.facts()})
    write_json(finished.folder / result.FILE, info.model_dump(mode="json"))
    return Result(folder=finished.folder, info=info)


def _loaded(job: ScoreJob) -> tuple[ScoreJob, Made]:
    """Load the metrics, and move those that cannot be loaded to `missing` if that is allowed."""
    failed: dict[str, str] = {}
    with progress("load", len(job.chosen), "metrics") as advance:
        made = Made.load(job.chosen, job.device, failed if job.allow_missing else None)
        advance(len(job.chosen))
    if not made.metrics:
        name, reason = next(iter(failed.items()))
        raise UserError(f"no metric can be loaded; {name}: {reason}")
    left = [MissingMetric(metric=name, reason=reason) for name, reason in failed.items()]
    for line in grouped(left):
        warn(f"left out: {line}")
    chosen = [each for each in job.chosen if each.name not in failed]
    return replace(job, chosen=chosen, missing=[*job.missing, *left]), made


def _request(job: ScoreJob, made: Made) -> dict[str, Any]:
    """What decides the numbers of the result, and the versions of the files that are scored."""
    from uhr.models.metrics.base import key

    return {
        "schema_version": result.SCHEMA_VERSION,
        "uhr": uhr.__version__,
        "protocol": job.protocol.id,
        "prompts": prompts.digest(list(job.items)),
        "images": fingerprint([_version(ref) for ref in job.images.refs]),
        "references": None if job.references is None else job.references.id,
        "metrics": {metric.name: key(metric) for metric in made.metrics},
        "missing": sorted(each.metric for each in job.missing),
        "seed": job.seed,
        "resamples": job.resamples,
    }


def _version(ref: ImageRef) -> list[str]:
    path = ref.path
    assert path is not None, "generated images are files"
    return [ref.place, file_version(path.stat())]


def _begin(out: Path, requested: Mapping[str, Any]) -> None:
    """Write the request, or compare it with the one that is there. Raises UserError with what differs."""
    file = out / REQUEST
    if not file.exists():
        write_json(file, requested)
        return
    before = versioned_tree(file.read_bytes(), str(file), result.SCHEMA_VERSION, "name a new folder")
    differs = [name for name in requested if name != "uhr" and before.get(name) != requested[name]]
    if differs:
        what = f"--out {out} contains another evaluation: other {', '.join(differs)}"
        raise UserError(what, "name a new folder")


def _scored(job: ScoreJob, work: ScoreWork) -> pa.Table:
    import pyarrow as pa

    references = None
    if job.references is not None and job.references.kind == "paired":
        references = job.references.refs
    table = items_table(job.items, job.images.refs, references)
    plan = _plan(job.out / UNITS, table)
    with progress("score", plan.rows, "images") as advance:
        run_units(plan, work, job.runner, advance)
    return pa.concat_tables([parquet.read(plan.part(unit)) for unit in range(plan.count)])


def _references(job: ScoreJob, made: Made) -> None:
    """Compute the features of the references that some metric needs."""
    from uhr.models.metrics.base import key

    assert job.references is not None
    needed: list[tuple[ChosenMetric, Any]] = [
        (chosen, metric)
        for chosen, metric in zip(job.chosen, made.metrics, strict=True)
        if "reference" in metric.needs and hasattr(metric, "extractor")
    ]
    reused = _reuse(job, {key(metric.extractor) for _, metric in needed})
    needed = [each for each in needed if key(each[1].extractor) not in reused]
    if not needed:
        return
    work = ScoreWork(
        [chosen for chosen, _ in needed],
        job.device,
        job.out / REFERENCES,
        references_only=True,
        made=Made.of([metric for _, metric in needed]),
    )
    plan = _plan(job.out / REFERENCE_UNITS, references_table(job.references))
    with progress("references", plan.rows, "images") as advance:
        run_units(plan, work, job.runner, advance)


def _check_reuse(job: ScoreJob) -> None:
    """Raise UserError if the result whose features are to be taken over has other references."""
    if job.reuse is None:
        return
    theirs, own = job.reuse.info.references, job.references
    if (theirs and theirs.id) != (own and own.id):
        what = f"--reuse {job.reuse.folder} has other references"
        raise UserError(what, "name a result with these references, or leave --reuse out")


def _reuse(job: ScoreJob, keys: set[str]) -> set[str]:
    """Take over features of the references by these extractors. Returns the keys of those that there were."""
    if job.reuse is None:
        return set()
    there = {each.extractor for each in job.reuse.info.metrics if "reference" in each.needs}
    for each in keys & there:
        copy_features(job.reuse.folder / REFERENCES, job.out / REFERENCES, each)
    return keys & there


def _plan(folder: Path, table: pa.Table) -> UnitPlan:
    folder.mkdir(parents=True, exist_ok=True)
    return UnitPlan.create(folder, table, -(-table.num_rows // MOST_UNITS), "score")


def _commit(job: ScoreJob, made: Made, scored: pa.Table) -> ResultInfo:
    """Write the scores, then the result."""
    import numpy as np
    import pyarrow as pa

    own = {
        "index": pa.array([item.index for item in job.items], pa.int64()),
        "name": [item.name for item in job.items],
        "prompt_index": pa.array([item.prompt_index for item in job.items], pa.int64()),
        "prompt": [item.prompt for item in job.items],
        "seed": pa.array([item.seed for item in job.items], pa.int64()),
        "width": pa.array([item.size[0] for item in job.items], pa.int32()),
        "height": pa.array([item.size[1] for item in job.items], pa.int32()),
        "file": [_relative(ref, job.images.folder) for ref in job.images.refs],
        "bytes": scored["bytes"],
        "sha256": scored["sha256"],
    }
    values = [column.name for metric in made.image_metrics for column in metric.columns]
    table = pa.table({**own, **{name: scored[name] for name in values}})
    with atomic(job.out / result.SCORES) as temporary:
        parquet.write(temporary, table, compression="zstd")
    groups = np.array([item.prompt_index for item in job.items])
    metrics = []
    with progress("summarise", len(made.metrics), "metrics") as advance:
        for chosen, metric in zip(job.chosen, made.metrics, strict=True):
            metrics.append(_metric_result(job, chosen.name, metric, table, groups))
            advance()
    info = ResultInfo(
        uhr=uhr.__version__,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        protocol=ProtocolRef(
            name=job.protocol.name,
            id=job.protocol.id,
            complete=job.complete,
            tree=job.protocol.model_dump(mode="json"),
        ),
        prompts=prompts.digest(list(job.items)),
        n=len(job.items),
        images=path_text(job.images.folder.absolute()),
        made=job.images.made,
        references=None
        if job.references is None
        else ReferencesRef(
            kind=job.references.kind,
            id=job.references.id,
            count=len(job.references.distinct),
            place=path_text(job.references.place.absolute()),
        ),
        seed=job.seed,
        resamples=job.resamples,
        level=bootstrap.LEVEL,
        metrics=tuple(metrics),
        missing=tuple(job.missing),
        overlap=None if job.overlap is None else job.overlap.facts(),
        versions=_versions(),
        scores=sha256_file(job.out / result.SCORES),
    )
    write_json(job.out / result.FILE, info.model_dump(mode="json"))
    return info


def _relative(ref: ImageRef, folder: Path) -> str:
    path = ref.path
    assert path is not None
    return path_text(path.relative_to(folder.absolute()))


def _versions() -> dict[str, str]:
    """The versions of what every score passes through; a metric's own are in its identity."""
    from uhr.models.metrics.base import versions

    found = versions("numpy", "opencv-python-headless")
    return {"python": platform.python_version(), **{name: v for name, v in found.items() if v is not None}}


def _metric_result(
    job: ScoreJob, name: str, metric: Any, table: pa.Table, groups: np.ndarray
) -> MetricResult:
    from uhr.models.metrics.base import ImageMetric, key

    is_image = isinstance(metric, ImageMetric)
    columns = _image_columns(job, metric, table, groups) if is_image else _set_columns(job, metric, groups)
    return MetricResult(
        metric=name,
        name=metric.name,
        kind="image" if is_image else "set",
        needs=tuple(sorted(metric.needs)),
        identity=metric.identity(),
        key=key(metric),
        extractor=None if is_image else key(metric.extractor),
        columns=tuple(columns),
    )


def _image_columns(job: ScoreJob, metric: Any, table: pa.Table, groups: np.ndarray) -> list[ColumnResult]:
    found = []
    # a number of answers is a fact of the prompt, and no result
    own = {column.weight for column in metric.columns}
    for column in metric.columns:
        if column.name in own:
            continue
        values = table[column.name].to_numpy()
        weights = None if column.weight is None else table[column.weight].to_numpy()
        count = len(values) if weights is None else int((weights > 0).sum())
        mean = None
        if count:
            mean = bootstrap.interval(values, groups, column.mean, job.seed, job.resamples, weights)
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


def _set_columns(job: ScoreJob, metric: Any, prompt_of: np.ndarray) -> list[ColumnResult]:
    from uhr.models.metrics.base import key

    extractor = key(metric.extractor)
    generated = read_features(job.out / GENERATED, extractor)
    reference = read_features(job.out / REFERENCES, extractor) if "reference" in metric.needs else None
    assert generated is not None
    values = metric.compare(reference, generated, job.seed)
    groups = bootstrap.groups_of(prompt_of)
    # a class of the user's own need not have it
    without = {}
    if groups is not None and hasattr(metric, "without"):
        without = metric.without(reference, generated, groups, job.seed)
    return [
        ColumnResult(
            name=column.name,
            better=column.better,
            meaning=column.meaning,
            value=values[column.name].value,
            spread=values[column.name].spread,
            spread_of=values[column.name].spread_of,
            left_out=None if without.get(column.name) is None else tuple(without[column.name]),
            n=values[column.name].n,
        )
        for column in metric.columns
    ]


def note_small(count: int, made: Sequence[ChosenMetric]) -> str | None:
    """A note for a set that is too small for distances of distributions; None if there is no need."""
    sets = [each.name for each in made if each.metric.startswith(("fid", "kid", "inception"))]
    if count >= FEWEST or not sets:
        return None
    return f"{count} images are few for {', '.join(sets)}: compare only results of the same number"
