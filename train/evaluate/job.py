"""An evaluation from what a command line names: images, references, metrics and overlap."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from uhr.base.console import warn
from uhr.base.files import user_path
from uhr.base.run_folder import RunFolder
from uhr.runtime.units import NO_LIMITS
from uhr.train.evaluate import choice
from uhr.train.evaluate.images import find, find_references
from uhr.train.evaluate.overlap.compare import compare
from uhr.train.evaluate.result import Result
from uhr.train.evaluate.run import run
from uhr.train.evaluate.scoring.request import LAYOUT, Evaluation, ScoreJob, Scoring


def evaluate(evaluation: Evaluation, images: Path, out: Path, scoring: Scoring) -> Result:
    """Score the images of a folder under a protocol.

    Everything that can be wrong is checked before a model is loaded. Raises UserError for the first mistake.
    """
    protocol, items, _ = evaluation
    RunFolder(user_path(out), LAYOUT).check()
    named = choice.parse_weights(protocol, scoring.weights)
    place = scoring.references
    kind = protocol.references.kind if place is not None else "none"
    if place is not None and kind == "none":
        warn(f"{protocol.name} has no references: {place} is not used")
    known = None if kind == "none" else kind
    chosen, missing = choice.choose(protocol, named, known, scoring.allow_missing)
    training = scoring.trained.open()
    found = find(user_path(images), items)
    refs = None
    if place is not None and kind != "none":
        refs = find_references(user_path(place), kind, items)
    chosen, others = choice.sufficient(chosen, items, refs, scoring.allow_missing)
    device = _device(scoring.device)
    job = ScoreJob(
        evaluation=evaluation,
        images=found,
        references=refs,
        chosen=chosen,
        missing=[*missing, *others],
        out=user_path(out),
        runner=scoring.pool.runner(NO_LIMITS, threads=None, device=device),
        scoring=replace(scoring, device=device),
        overlap=None if training is None else compare(training, items, refs, device),
    )
    return run(job)


def _device(device: str) -> str:
    from uhr.models.loading.model import pick_device

    return str(pick_device("auto")) if device == "auto" else device
