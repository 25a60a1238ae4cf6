"""Plans and runs an experiment. The same command resumes it; arms and training seeds may be added.

OUT is a folder:

    experiment.json                        what is compared, written first
    arms/NAME/images, result               of an arm that is not trained
    arms/NAME/seed-0/run, evaluated        of a trained arm: `uhr train run` and `uhr eval run --checkpoints`
    arms/.../output.txt                    what its commands have printed, with several devices
    results.json                           values, intervals and budgets, written last
    page.html                              the same as tables, with prompts and images
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import uhr
from uhr.base.config import fingerprint, versioned_tree
from uhr.base.console import Main, command, run_command
from uhr.base.errors import UserError
from uhr.base.files import saving, write_json
from uhr.base.run_folder import FolderLayout, RunFolder
from uhr.train.evaluate import choice, prompts
from uhr.train.evaluate.compare.comparison import Arm
from uhr.train.evaluate.experiments import budgets, values, variance
from uhr.train.evaluate.experiments.budgets import Budget
from uhr.train.evaluate.experiments.commands import ARMS, ArmRun, Machine, Step, runs, steps
from uhr.train.evaluate.experiments.file import Experiment
from uhr.train.evaluate.experiments.lanes import Lane, lanes_of, run_in_lanes, shared
from uhr.train.evaluate.experiments.page import check_page, write_page
from uhr.train.evaluate.experiments.tables import PAGE
from uhr.train.evaluate.prompts import EvalItem
from uhr.train.evaluate.protocol import EvalProtocol
from uhr.train.evaluate.result import open_result

REQUEST, RESULTS = "experiment.json", "results.json"
SCHEMA_VERSION = 1
LAYOUT = FolderLayout("the experiment", (REQUEST, RESULTS, PAGE, ARMS), (REQUEST,))

_AGAIN = "free space there; the same command resumes where it stopped"


@dataclass(frozen=True)
class ExperimentJob:
    """An experiment that was checked: its protocol and prompts are there, and its recipes can be made."""

    experiment: Experiment
    protocol: EvalProtocol
    items: Sequence[EvalItem]
    out: Path
    machine: Machine
    on: str | None = None

    @cached_property
    def runs(self) -> list[ArmRun]:
        return runs(self.experiment, self.out)

    @cached_property
    def lanes(self) -> list[Lane]:
        """A lane for each device. Raises UserError for one that is not there."""
        return lanes_of(self.machine.device)

    def steps_of(self, run: ArmRun, device: str | None = None) -> list[Step]:
        """The steps of an arm with one training seed; on the first device by default."""
        return steps(self.experiment, run, replace(self.machine, device=device or self.lanes[0].device))

    @cached_property
    def planned(self) -> dict[str, Budget]:
        """The budget of each arm, from its first training seed. Raises UserError for what cannot be run."""
        found: dict[str, Budget] = {}
        for run in self.runs:
            if run.name not in found:
                found[run.name] = budgets.plan(run, self.items, self.on, self.lanes[0].device)
        return found

    def check(self) -> None:
        """Raise UserError for what would only be found missing after the training: a metric, a device, the
        page's package.
        """
        check_page()
        _ = self.lanes
        experiment = self.experiment
        named = choice.parse_weights(self.protocol, experiment.weights)
        known = experiment.references is not None or (
            self.protocol.references.in_prompts and experiment.prompts is not None
        )
        kind = self.protocol.references.kind
        choice.choose(
            self.protocol, named, kind if known and kind != "none" else None, experiment.allow_missing
        )


def plan(job: ExperimentJob) -> dict[str, Any]:
    """The commands of an experiment, and what each arm will cost, as plain values."""
    planned = job.planned
    return {
        "name": job.experiment.name,
        "protocol": job.protocol.id,
        "n": len(job.items),
        "seeds": list(job.experiment.seeds),
        "arms": {name: planned[name].model_dump() for name in job.experiment.arms},
        "unequal": budgets.unequal({name: planned[name] for name in job.experiment.arms}),
        "steps": [
            {"arm": run.name, "seed": run.seed, "command": command(*step.command), "done": step.is_done()}
            for run in job.runs
            for step in job.steps_of(run)
        ],
    }


def run(job: ExperimentJob, main: Main, as_json: bool) -> dict[str, Any]:
    """Run the commands that are left, and write the results. Returns the content of RESULTS.

    Raises UserError if OUT contains another experiment or anything else, SystemExit with the code of a
    command that fails, which has said why; with several devices UserError with its last line.
    """
    folder = RunFolder(job.out, LAYOUT)
    folder.claim()
    with saving(job.out, _AGAIN):
        _begin(job)
    if len(job.lanes) > 1:
        run_in_lanes(job.runs, job.steps_of, job.lanes, as_json)
    else:
        for each in job.runs:
            for step in job.steps_of(each):
                if not step.is_done():
                    run_command(main, step.command, as_json, "the same `uhr eval experiment` resumes")
    results = _results(job)
    facts = _facts(job, results)
    with saving(job.out, _AGAIN):
        write_json(job.out / RESULTS, facts)
    write_page(facts, [arms[0] for arms in results.values()], job.out / PAGE)
    return facts


def _begin(job: ExperimentJob) -> None:
    """Write the request, or compare it with the one that is there.

    Arms and training seeds may be added or left out; whatever else differs needs another folder.
    """
    requested = _request(job)
    file = job.out / REQUEST
    if file.exists():
        before = versioned_tree(file.read_bytes(), str(file), SCHEMA_VERSION, "name a new folder")
        if before.get("shared") != requested["shared"]:
            differs = "another protocol, other prompts, references or weights"
            raise UserError(f"--out {job.out} contains an experiment with {differs}", "name a new folder")
        known = before.get("arms", {})
        for name, key in requested["arms"].items():
            if known.get(name, key) != key:
                fix = f"give it another name, or remove {job.out / ARMS / name}"
                if (job.out / ARMS / name).exists():
                    raise UserError(f"--out {job.out} contains another arm '{name}'", fix)
        requested["arms"] = {**known, **requested["arms"]}
        requested["shared_devices"] = sorted({*before.get("shared_devices", ()), *shared(job.lanes)})
    write_json(file, requested)


def _request(job: ExperimentJob) -> dict[str, Any]:
    experiment = job.experiment
    common = [
        job.protocol.id,
        prompts.digest(list(job.items)),
        experiment.references,
        sorted(experiment.weights),
        experiment.allow_missing,
    ]
    arms = {}
    for run in job.runs:
        recipe = None if run.recipe is None else run.recipe.model_dump(mode="json", exclude={"seed"})
        arms[run.name] = fingerprint([run.arm.model_dump(mode="json", exclude={"about"}), recipe])
    return {
        "schema_version": SCHEMA_VERSION,
        "uhr": uhr.__version__,
        "name": experiment.name,
        "shared": fingerprint(common),
        "arms": arms,
        "shared_devices": shared(job.lanes),
    }


def _results(job: ExperimentJob) -> dict[str, list[Arm]]:
    """By the name of an arm, its results: one per training seed."""
    found: dict[str, list[Arm]] = {name: [] for name in job.experiment.arms}
    for run in job.runs:
        name = run.name if run.seed is None else f"{run.name}, seed {run.seed}"
        found[run.name].append(Arm(name, open_result(run.result)))
    return found


def _facts(job: ExperimentJob, results: Mapping[str, Sequence[Arm]]) -> dict[str, Any]:
    experiment = job.experiment
    by_arm = {name: [run for run in job.runs if run.name == name] for name in experiment.arms}
    trained = {name: arm.recipe is not None for name, arm in experiment.arms.items()}
    measured = {name: budgets.measure(found, job.planned[name]) for name, found in by_arm.items()}
    found = values.columns(results, trained)
    first = next(iter(results.values()))[0].info
    return {
        "schema_version": SCHEMA_VERSION,
        "uhr": uhr.__version__,
        "name": experiment.name,
        "protocol": first.protocol.id,
        "complete": first.protocol.complete,
        "n": first.n,
        "level": first.level,
        "method": variance.METHOD,
        "shared_devices": json.loads((job.out / REQUEST).read_bytes())["shared_devices"],
        "arms": {
            name: {
                "seeds": [run.seed for run in by_arm[name] if run.seed is not None],
                "recipe": None if (recipe := by_arm[name][0].recipe) is None else recipe.name,
                "results": [str(run.result) for run in by_arm[name]],
                "devices": measured[name][1],
                "budget": measured[name][0].model_dump(),
                "overlap": results[name][0].info.overlap,
                "missing": [each.model_dump() for each in results[name][0].info.missing],
            }
            for name in experiment.arms
        },
        "unequal": budgets.unequal({name: budget for name, (budget, _) in measured.items()}),
        "columns": [_plain(column) for column in found],
    }


def _plain(column: values.ExperimentColumn) -> dict[str, Any]:
    """A column as JSON: intervals by the names of their ends, and whether a difference is clear of 0."""
    tree = column.model_dump(exclude={"arms"})
    arms: dict[str, Any] = {}
    for name, value in column.arms.items():
        if value is None:
            arms[name] = None
            continue
        own = value.model_dump(exclude={"prompts", "difference"})
        own["prompts"] = value.prompts._asdict()
        if value.difference is not None:
            difference = value.difference
            own["difference"] = {
                "value": difference.value,
                **difference.both._asdict(),
                "prompts": difference.prompts._asdict(),
                "one_seed": not difference.seeds,
                "clear": value.clear,
            }
        arms[name] = own
    return {**tree, "arms": arms}
