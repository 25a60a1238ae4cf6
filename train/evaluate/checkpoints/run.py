"""Generates and scores the images of a protocol for each checkpoint of a training run.

OUT is a folder:

    steps/00000010/export/    the trained part, as `uhr train export` writes it
    steps/00000010/images/    its images, as `uhr eval generate` makes them
    steps/00000010/result/    its scores, as `uhr eval run` writes them
    checkpoints.json          the values of all steps, written last
    checkpoints.html          a chart of each value against steps

The same command resumes. Later checkpoints of the same run may be added.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uhr.base.config import apply_sets, build
from uhr.base.console import warn
from uhr.base.errors import UserError
from uhr.base.files import write_json
from uhr.base.run_folder import FolderLayout, RunFolder
from uhr.models.files.run_steps import all_steps, check_step
from uhr.models.generate.request import Adapter, Request
from uhr.train.evaluate.generate import generate
from uhr.train.evaluate.job import Prepared, evaluate_prepared, prepare
from uhr.train.evaluate.overlap.lineage import Trained
from uhr.train.evaluate.result import Result
from uhr.train.evaluate.scoring.request import Evaluation, Scoring

if TYPE_CHECKING:
    from uhr.train.run.checkpoints.checkpoint import CheckpointInfo

STEPS, FILE, PAGE = "steps", "checkpoints.json", "checkpoints.html"
LAYOUT = FolderLayout("the results of a run", (STEPS, FILE, PAGE), (STEPS,))

_CARD = "README.md"
"""The file that an export writes last."""


@dataclass(frozen=True)
class CheckpointJob:
    """What to do for each checkpoint.

    Args:
        run: the folder of the training run. steps: of the checkpoints.
        sampling: fields of a request that replace the recipe's: sampler, options, steps, device.
        scoring: of all checkpoints; the run's own data are added to what `trained` names.
    """

    run: Path
    steps: Sequence[int]
    evaluation: Evaluation
    out: Path
    sampling: Mapping[str, Any]
    scoring: Scoring


def chosen_steps(run: Path, text: str) -> list[int]:
    """The steps of "all", or of "100,200", say; also those of which only the adapter is kept.

    Raises UserError for a step without a checkpoint.
    """
    from uhr.train.run.job import read_run

    read_run(run)
    have = all_steps(run)
    if not have:
        raise UserError(f"{run} has no checkpoint yet", "train it further")
    if text == "all":
        return have
    if not re.fullmatch(r"\d+(,\d+)*", text):
        raise UserError(f"--checkpoints {text}", "write all, or steps such as 100,200")
    steps = sorted({int(each) for each in text.split(",")})
    for step in steps:
        check_step(run, step)
    return steps


def evaluate_checkpoints(job: CheckpointJob) -> dict[str, Any]:
    """Export, generate and score each checkpoint, and write the values of all. Returns the content of FILE.

    What scoring needs is checked before anything is generated. Raises UserError as its parts do.
    """
    from uhr.train.evaluate.checkpoints.page import write_page

    folder = RunFolder(job.out, LAYOUT)
    folder.check()
    prepared = prepare(job.evaluation, replace(job.scoring, trained=_trained(job)))
    folder.claim()
    results: dict[int, Result] = {}
    for step in job.steps:
        print(f"checkpoint of step {step}", file=sys.stderr, flush=True)
        # all checkpoints have the same references
        reuse = next(iter(results.values()), job.scoring.reuse)
        scoring = replace(prepared.scoring, reuse=reuse)
        results[step] = _evaluate(job, step, prepared._replace(scoring=scoring))
    facts = _facts(job, results)
    write_json(job.out / FILE, facts)
    write_page(facts, job.out / PAGE)
    return facts


def _evaluate(job: CheckpointJob, step: int, prepared: Prepared) -> Result:
    place = job.out / STEPS / f"{step:08d}"
    request = _request(job, place / "export", step)
    generate(request, job.evaluation.items, place / "images", job.scoring.pool)
    return evaluate_prepared(prepared, place / "images", place / "result")


def _trained(job: CheckpointJob) -> Trained:
    """The training data that are named, and those of the run, if they are where they were."""
    from uhr.train.evaluate.overlap.lineage import training_data

    named = job.scoring.trained
    try:
        training_data([job.run])
    except UserError as error:
        warn(f"the overlap with the training data of {job.run} is not computed: {error.what}")
        return named if named.places else Trained()
    return Trained((job.run, *named.places), named.clip)


def _request(job: CheckpointJob, export_to: Path, step: int) -> Request:
    """How images of a checkpoint are generated: the exported part in its model, by the recipe's sampling."""
    from uhr.train.recipes import read_recipe
    from uhr.train.run.exports.export import export, needed_files

    if not (export_to / _CARD).exists():
        if export_to.exists():
            shutil.rmtree(export_to)
        export(job.run, export_to, step)
    info = _info(job.run, step)
    recipe = read_recipe(info.recipe)
    named = recipe.trainable.sample_options(export_to, info.model.named)
    tree: dict[str, Any] = {"adapters": []}
    for option, value in zip(named[::2], named[1::2], strict=True):
        field = option.removeprefix("--")
        if field == "adapter":
            tree["adapters"].append(Adapter(name=value))
        else:
            tree[field] = value
    tree["adapters"] += [Adapter(name=str(file)) for file in needed_files(job.run, info).values()]
    sampling = recipe.sampling
    tree |= {
        "sampler": sampling.sampler,
        "options": apply_sets({}, sampling.sets),
        "guidance": sampling.intended.guidance_of(sampling.sampler),
    }
    given = {name: value for name, value in job.sampling.items() if value not in (None, {})}
    if given.get("sampler", sampling.sampler) != sampling.sampler:
        tree |= {"options": {}, "guidance": None}
    tree["options"] = {**tree["options"], **given.pop("options", {})}
    return build(Request, {**tree, **given}, "uhr eval run --checkpoints")


def _info(run: Path, step: int) -> CheckpointInfo:
    from uhr.train.run.checkpoints import kept

    return kept.find(run, step)[1]


def _facts(job: CheckpointJob, results: Mapping[int, Result]) -> dict[str, Any]:
    first = next(iter(results.values())).info
    return {
        "run": str(job.run),
        "protocol": first.protocol.id,
        "complete": first.protocol.complete,
        "n": first.n,
        "level": first.level,
        "missing": [each.model_dump() for each in first.missing],
        "overlap": first.overlap,
        "steps": [
            {
                "step": step,
                "result": str(result.folder),
                "values": {
                    name: {"metric": metric.name, **column.model_dump(exclude={"name", "left_out"})}
                    for name, (metric, column) in result.info.columns().items()
                },
            }
            for step, result in results.items()
        ],
    }
