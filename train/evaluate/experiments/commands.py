"""The commands of an experiment: each step of an arm is an existing command, and can be given by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from uhr.train.evaluate.experiments.file import Experiment, ExperimentArm
from uhr.train.recipes.core.base import RecipeBase

Command = tuple[str, ...]

ARMS = "arms"
RUN, EVALUATED, IMAGES, RESULT = "run", "evaluated", "images", "result"


@dataclass(frozen=True)
class Machine:
    """Where the commands run: `--device`, and `--workers` of those that generate and score.

    device: one, or several with commas between, which run different arms at the same time
    (`lanes.lanes_of`).
    """

    device: str = "auto"
    workers: int = 1


@dataclass(frozen=True)
class Step:
    """A command, and whether what it writes is finished."""

    command: Command
    is_done: Callable[[], bool]


@dataclass(frozen=True)
class ArmRun:
    """One arm with one training seed; None if it is not trained. `out` is its folder.

    recipe: with its changes, and the seed.
    """

    name: str
    arm: ExperimentArm
    seed: int | None
    out: Path
    recipe: RecipeBase | None

    @property
    def images(self) -> Path:
        """The folder of its generated set."""
        return self._step / IMAGES

    @property
    def result(self) -> Path:
        """The folder of its scores."""
        return self._step / RESULT

    @property
    def run(self) -> Path:
        """The folder of its training run."""
        return self.out / RUN

    @property
    def _step(self) -> Path:
        from uhr.train.evaluate.checkpoints.run import STEPS

        if self.recipe is None:
            return self.out
        return self.out / EVALUATED / STEPS / f"{self.recipe.steps:08d}"


def runs(experiment: Experiment, out: Path) -> list[ArmRun]:
    """The arms with their training seeds, in order."""
    found = []
    for name, arm in experiment.arms.items():
        for seed in experiment.seeds_of(name):
            place = out / ARMS / name
            place = place if seed is None else place / f"seed-{seed}"
            found.append(ArmRun(name, arm, seed, place, arm.resolved(seed)))
    return found


def steps(experiment: Experiment, run: ArmRun, machine: Machine) -> list[Step]:
    """The steps of one arm with one seed."""
    if run.recipe is not None:
        return [_train(run, run.recipe, machine), _evaluate(experiment, run, run.recipe, machine)]
    return [_generate(experiment, run, machine), _score(experiment, run, machine)]


def _train(run: ArmRun, recipe: RecipeBase, machine: Machine) -> Step:
    from uhr.train.run.checkpoints import checkpoint
    from uhr.train.run.job import has_begun

    arm = run.arm
    name, config = arm.named_recipe
    device = [] if machine.device == "auto" else [f"runtime.device={machine.device}"]

    def is_done() -> bool:
        return (checkpoint.steps(run.run) or [0])[-1] >= recipe.steps

    if has_begun(run.run):
        # on whatever device it began
        return Step(_texts("train", "resume", run.run, *_each("--set", device)), is_done)
    changes = [*arm.set, f"seed={run.seed}", *device]
    command = _texts(
        *("train", "run", *([name] if config is None else ["--config", config])),
        *arm.named.options(),
        *_each("--data", arm.data),
        *_each("--init", arm.init),
        *_each("--set", changes),
        *("--out", run.run),
    )
    return Step(command, is_done)


def _evaluate(experiment: Experiment, run: ArmRun, recipe: RecipeBase, machine: Machine) -> Step:
    """Export, generate and score the last checkpoint."""
    from uhr.train.evaluate.checkpoints.run import FILE

    arm, out = run.arm, run.out / EVALUATED
    command = _texts(
        *("eval", "run", run.run, "--checkpoints", recipe.steps, "--protocol", experiment.protocol),
        *_protocol(experiment),
        *_scoring(experiment),
        *_clip(experiment),
        *([] if arm.sampler is None else ["--sampler", arm.sampler]),
        *([] if arm.steps is None else ["--steps", arm.steps]),
        *_each("--option", arm.options),
        *_place(machine),
        *("--out", out),
    )
    return Step(command, lambda: (out / FILE).is_file() and _is_compared(experiment, run))


def _generate(experiment: Experiment, run: ArmRun, machine: Machine) -> Step:
    from uhr.train.generate.index import FILE

    arm = run.arm
    command = _texts(
        *("eval", "generate", experiment.protocol, "--sampler", arm.sampler),
        *arm.named.options(),
        *_each("--adapter", arm.adapters),
        *([] if arm.steps is None else ["--steps", arm.steps]),
        *([] if arm.guidance is None else ["--guidance", f"{arm.guidance:g}"]),
        *_each("--option", arm.options),
        *_protocol(experiment),
        *_place(machine),
        *("--out", run.images),
    )
    return Step(command, lambda: (run.images / FILE).is_file() and _all_made(run.images))


def _all_made(images: Path) -> bool:
    from uhr.base.store import open_store
    from uhr.train.generate.index import read_set

    info = read_set(open_store(str(images)))
    return info is not None and not info.counts["failed"]


def _score(experiment: Experiment, run: ArmRun, machine: Machine) -> Step:
    from uhr.train.evaluate.result import FILE

    command = _texts(
        *("eval", "run", experiment.protocol, "--images", run.images),
        *_protocol(experiment),
        *_scoring(experiment),
        *_each("--trained-on", run.arm.trained_on),
        *(_clip(experiment) if run.arm.trained_on else []),
        *_place(machine),
        *("--out", run.result),
    )
    return Step(command, lambda: (run.result / FILE).is_file() and _is_compared(experiment, run))


def _is_compared(experiment: Experiment, run: ArmRun) -> bool:
    """Whether a finished result was compared with its training data by the model that the experiment names.
    If it was not, its command compares again, and scores nothing again.
    """
    from uhr.train.evaluate.result import open_result

    overlap = open_result(run.result).info.overlap
    return overlap is None or overlap.get("clip_place") == experiment.clip


def _protocol(experiment: Experiment) -> list[object]:
    """The options that say which prompts are used, and how the protocol is changed."""
    return [
        *_each("--set", experiment.protocol_set),
        *([] if experiment.prompts is None else ["--prompts", experiment.prompts]),
        *([] if experiment.first is None else ["--first", experiment.first]),
    ]


def _scoring(experiment: Experiment) -> list[object]:
    return [
        *([] if experiment.references is None else ["--references", experiment.references]),
        *_each("--weights", experiment.weights),
        *(["--allow-missing"] if experiment.allow_missing else []),
    ]


def _clip(experiment: Experiment) -> list[object]:
    return [] if experiment.clip is None else ["--clip", experiment.clip]


def _place(machine: Machine) -> list[object]:
    device = [] if machine.device == "auto" else ["--device", machine.device]
    return [*device, "--engine", "local", "--workers", machine.workers]


def _each(option: str, values: Sequence[object]) -> list[object]:
    return [part for value in values for part in (option, value)]


def _texts(*parts: object) -> Command:
    return tuple(str(part) for part in parts)
