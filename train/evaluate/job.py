"""An evaluation from what a command line names: images, references, metrics and overlap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from uhr.base.console import warn
from uhr.base.files import user_path
from uhr.base.paths import in_store
from uhr.base.run_folder import RunFolder
from uhr.runtime.units import NO_LIMITS
from uhr.train.evaluate import choice
from uhr.train.evaluate.images import ImageSet, References, find, find_references
from uhr.train.evaluate.overlap.compare import Overlap, compare
from uhr.train.evaluate.result import MissingMetric, Result
from uhr.train.evaluate.run import run
from uhr.train.evaluate.scoring.request import LAYOUT, Evaluation, ScoreJob, Scoring
from uhr.train.evaluate.scoring.work import ChosenMetric


class Prepared(NamedTuple):
    """An evaluation whose metrics, references and training data were checked, before it has images.

    scoring: with a device that is not auto. chosen: the metrics that can be computed; `missing` are the
    others of the protocol. overlap: None if no training data are named.
    """

    evaluation: Evaluation
    scoring: Scoring
    chosen: Sequence[ChosenMetric]
    missing: Sequence[MissingMetric]
    references: References | None
    overlap: Overlap | None


def evaluate(evaluation: Evaluation, images: Path, out: Path, scoring: Scoring) -> Result:
    """Score the images of a folder under a protocol.

    Everything that can be wrong is checked before a model of a metric is loaded. Raises UserError for the
    first mistake.
    """
    found = _images(evaluation, images, out)
    return _run(prepare(evaluation, scoring), found, out)


def prepare(evaluation: Evaluation, scoring: Scoring) -> Prepared:
    """Check everything that needs no images. No model of a metric is loaded. Raises UserError for the first
    mistake.
    """
    protocol, items, _ = evaluation
    named = choice.parse_weights(protocol, scoring.weights)
    place = scoring.references
    kind = protocol.references.kind if place is not None else "none"
    if place is not None and kind == "none":
        warn(f"{protocol.name} has no references: {place} is not used")
    known = None if kind == "none" else kind
    chosen, missing = choice.choose(protocol, named, known, scoring.allow_missing)
    training = scoring.trained.open()
    refs = None
    if place is not None and kind != "none":
        refs = find_references(place if in_store(place) else user_path(place), kind, items)
    chosen, others = choice.sufficient(chosen, items, refs, scoring.allow_missing)
    device = _device(scoring.device)
    return Prepared(
        evaluation=evaluation,
        scoring=replace(scoring, device=device),
        chosen=chosen,
        missing=[*missing, *others],
        references=refs,
        overlap=None if training is None else compare(training, items, refs, device),
    )


def evaluate_prepared(prepared: Prepared, images: Path, out: Path) -> Result:
    """Score the images of a folder under a protocol that was prepared. Raises UserError as `evaluate`."""
    return _run(prepared, _images(prepared.evaluation, images, out), out)


def _images(evaluation: Evaluation, images: Path, out: Path) -> ImageSet:
    RunFolder(user_path(out), LAYOUT).check()
    return find(user_path(images), evaluation.items)


def _run(prepared: Prepared, images: ImageSet, out: Path) -> Result:
    scoring = prepared.scoring
    return run(
        ScoreJob(
            evaluation=prepared.evaluation,
            images=images,
            references=prepared.references,
            chosen=prepared.chosen,
            missing=prepared.missing,
            out=user_path(out),
            runner=scoring.pool.runner(NO_LIMITS, threads=None, device=scoring.device),
            scoring=scoring,
            overlap=prepared.overlap,
        )
    )


def _device(device: str) -> str:
    from uhr.models.loading.model import pick_device

    return str(pick_device("auto")) if device == "auto" else device
