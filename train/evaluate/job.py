"""An evaluation from what a command line names: images, references, metrics and overlap."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from uhr.base.console import warn
from uhr.base.files import user_path
from uhr.base.run_folder import RunFolder
from uhr.runtime.pool import Pool
from uhr.runtime.units import NO_LIMITS
from uhr.train.evaluate import choice
from uhr.train.evaluate.images import find, find_references
from uhr.train.evaluate.overlap.compare import compare
from uhr.train.evaluate.overlap.lineage import Trained
from uhr.train.evaluate.prompts import EvalItem
from uhr.train.evaluate.protocol import EvalProtocol
from uhr.train.evaluate.result import Result
from uhr.train.evaluate.run import LAYOUT, ScoreJob, note_small, run


def evaluate(
    protocol: EvalProtocol,
    items: Sequence[EvalItem],
    images: Path,
    *,
    references: Path | None,
    out: Path,
    weights: Sequence[str] = (),
    allow_missing: bool = False,
    trained: Trained = Trained(),
    complete: bool = True,
    reuse: Result | None = None,
    seed: int = 0,
    device: str = "auto",
    pool: Pool,
) -> Result:
    """Score the images of a folder under a protocol.

    Args:
        references: a folder or a manifest; None if there are none.
        weights: `METRIC=PATH` for the weights of metrics (`choice.parse_weights`).
        allow_missing: whether metrics that cannot be computed are left out.
        trained: what the model was trained on.
        complete: whether the items are all of the protocol's.
        reuse: a finished result whose features of the references are taken over.
        seed: of all resampling.

    Everything that can be wrong is checked before a model is loaded. Raises UserError for the first mistake.
    """
    RunFolder(user_path(out), LAYOUT).check()
    named = choice.parse_weights(protocol, weights)
    kind = protocol.references.kind if references is not None else "none"
    if references is not None and kind == "none":
        warn(f"{protocol.name} has no references: {references} is not used")
    known = None if kind == "none" else kind
    chosen, missing = choice.choose(protocol, named, known, allow_missing)
    training = trained.open()
    found = find(user_path(images), items)
    refs = None
    if references is not None and kind != "none":
        refs = find_references(user_path(references), kind, items)
    if (note := note_small(len(items), chosen)) is not None:
        warn(note)
    device = _device(device)
    job = ScoreJob(
        protocol=protocol,
        items=items,
        images=found,
        references=refs,
        chosen=chosen,
        missing=missing,
        out=user_path(out),
        runner=pool.runner(NO_LIMITS, threads=None, device=device),
        device=device,
        allow_missing=allow_missing,
        complete=complete,
        seed=seed,
        reuse=reuse,
        overlap=None if training is None else compare(training, items, refs, device),
    )
    return run(job)


def _device(device: str) -> str:
    from uhr.models.loading.model import pick_device

    return str(pick_device("auto")) if device == "auto" else device
