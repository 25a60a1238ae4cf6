"""What is scored with what: the job, and the request that a folder of results begins with."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import uhr
from uhr.base.config import fingerprint
from uhr.base.files import file_version, or_half_written, user_path
from uhr.base.locks.run_lock import NAME as LOCK
from uhr.base.run_folder import FolderLayout, RunFolder
from uhr.runtime import units
from uhr.runtime.pool import Pool
from uhr.runtime.units import Runner
from uhr.train.evaluate import bootstrap, prompts, result
from uhr.train.evaluate.images import ImageRef, ImageSet, References
from uhr.train.evaluate.overlap.compare import Overlap
from uhr.train.evaluate.overlap.lineage import Trained
from uhr.train.evaluate.prompts import EvalItem
from uhr.train.evaluate.protocol import EvalProtocol
from uhr.train.evaluate.result import MissingMetric, Result
from uhr.train.evaluate.scoring.groups import needs_no_model
from uhr.train.evaluate.scoring.work import FEATURES, ChosenMetric

REQUEST = "request.json"
GENERATED, REFERENCES = "features", "reference-features"
WORK, UNITS, REFERENCE_UNITS = "work", "work/units", "work/reference-units"

LAYOUT = FolderLayout(
    "the result",
    (REQUEST, GENERATED, REFERENCES, result.SCORES, result.FILE, WORK),
    (REQUEST, WORK),
    {
        GENERATED: or_half_written(FEATURES.pattern),
        REFERENCES: or_half_written(FEATURES.pattern),
        WORK: or_half_written(rf"{LOCK}|group-\d+\.json"),
        UNITS: or_half_written(units.FILES),
        REFERENCE_UNITS: or_half_written(units.FILES),
    },
)


class Evaluation(NamedTuple):
    """A protocol with the images that it asks for.

    complete: whether no prompt of the protocol was left out.
    """

    protocol: EvalProtocol
    items: Sequence[EvalItem]
    complete: bool = True


@dataclass(frozen=True)
class Scoring:
    """What a user decides about scoring besides protocol and images.

    Args:
        pool: the workers.
        references: a folder or a manifest, also at an address in an object store; None if there are none.
        weights: `METRIC=PATH` for the weights of metrics (`choice.parse_weights`).
        allow_missing: whether metrics that cannot be computed, or not be loaded, are left out.
        trained: what the model was trained on.
        reuse: a finished result with the same references, whose features of them are taken over.
        seed: of all resampling.
        device: a torch device, or auto.
        together: how many models are loaded at one time; None for as many as `groups.memory_for` says.
    """

    pool: Pool
    references: Path | str | None = None
    weights: Sequence[str] = ()
    allow_missing: bool = False
    trained: Trained = field(default_factory=Trained)
    reuse: Result | None = None
    seed: int = 0
    device: str = "auto"
    together: int | None = None


@dataclass(frozen=True)
class ScoreJob:
    """An evaluation whose images, references and metrics were found.

    Args:
        chosen: the metrics that can be computed; `missing` are the others of the protocol.
        scoring: with a device that is not auto.
        layout: of OUT, for a command that writes more than this one into it.
    """

    evaluation: Evaluation
    images: ImageSet
    references: References | None
    chosen: Sequence[ChosenMetric]
    missing: Sequence[MissingMetric]
    out: Path
    runner: Runner
    scoring: Scoring
    overlap: Overlap | None = None
    layout: FolderLayout = LAYOUT
    resamples: int = bootstrap.RESAMPLES


def begin(job: ScoreJob) -> None:
    """Write the request, or compare it with the one that is there. Raises UserError with what differs.

    Nothing is loaded: weights count by their names, and as the sizes and times of their files. Their hashes
    are in the result.
    """
    folder = RunFolder(job.out, job.layout)
    folder.keep_request(REQUEST, _request(job), result.SCHEMA_VERSION, "evaluation")


def _request(job: ScoreJob) -> dict[str, Any]:
    """What decides the numbers of the result, and the versions of the files that are scored."""
    protocol, items, _ = job.evaluation
    return {
        "uhr": uhr.__version__,
        "protocol": protocol.id,
        "prompts": prompts.digest(list(items)),
        "images": fingerprint([_version(ref) for ref in job.images.refs]),
        "references": None if job.references is None else job.references.id,
        "metrics": {chosen.name: _state(chosen) for chosen in job.chosen},
        "missing": sorted(each.metric for each in job.missing),
        "seed": job.scoring.seed,
        "resamples": job.resamples,
    }


def _version(ref: ImageRef) -> list[str]:
    path = ref.path
    assert path is not None, "generated images are files"
    return [ref.place, file_version(path.stat())]


def _state(chosen: ChosenMetric) -> str:
    """A hash of what decides a metric's values. One without weights is made, which costs nothing."""
    from uhr.models.metrics.base import key
    from uhr.models.metrics.registry import metric

    if needs_no_model(chosen):
        return key(metric(chosen.metric, **chosen.options))
    return fingerprint([chosen.metric, {name: _option(value) for name, value in chosen.options.items()}])


def _option(value: Any) -> Any:
    """An option, with the versions of the files if it is the path of some."""
    if isinstance(value, Mapping):
        return {str(name): _option(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_option(each) for each in value]
    if not isinstance(value, str) or not value or not (path := user_path(value)).exists():
        return value
    files = [path] if path.is_file() else sorted(_files(path))
    return [value, [[str(file), file_version(file.stat())] for file in files]]


def _files(folder: Path) -> list[Path]:
    found = [Path(at) / name for at, _, names in os.walk(folder) for name in names]
    return [file for file in found if file.is_file()]
