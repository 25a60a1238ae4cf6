"""What each of two processes does for `test_two_processes.py`; not a test itself.

A function per scenario; each result is written to `NAME-RANK.json` in the work folder.
"""

import contextlib
import json
import os
import signal
import sys
import warnings
from collections.abc import Callable, Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

import short_texts
import torch

from uhr.base.errors import UserError
from uhr.train.recipes import resolve
from uhr.train.run.job import joined_job, reopen, start
from uhr.train.run.processes import parallel
from uhr.train.run.processes.parallel import EveryRank, Ranks
from uhr.train.run.trainer import Trainer, train

STEPS = 5
"""More than an epoch of small_set, whose four batches have three or two images."""

BASE = [f"phases.main.steps={STEPS}", "phases.main.lr=0.01", "runtime.checkpoint_every=2",
        "runtime.keep_checkpoints=9", "clip=0.5"]  # fmt: skip
WHOLE = ["trainable={kind: backbone}", "phases.main.lr=0.0001"]
FULL = "runtime.shard=full"
WINDOWS = ["trainable={kind: token-masked-lora, rank: 4, alpha: 4, targets: qkv}", "windows={ratio: 4}",
           "sampling.sampler=ultragen", "phases.main.resolution=64"]  # fmt: skip
# the model before training is a second copy; the student learns what it does with guidance
TEACHER = [*WHOLE, "phases.main.objective={kind: reverse-distillation}", "phases.main.resolution=64"]
COMPILED = ["runtime.compile=true", "phases.main.resolution=64", "phases.main.steps=2"]
SCENARIOS = {
    "lora": ["ema=0.9"],
    "lora-small-passes": ["batch.micro=1"],
    # one of the processes has no sample
    "lora-on-divided": ["runtime.shard=full", "batch.size=1", "batch.micro=1"],
    "whole-replicate": WHOLE,
    "whole-full": [*WHOLE, "runtime.shard=full", "ema=0.9", "batch.micro=1"],
    "whole-hybrid": [*WHOLE, "runtime.shard=hybrid"],
    "whole-prodigy": [*WHOLE, "runtime.shard=full", "optimiser={kind: prodigy}", "phases.main.lr=1"],
    "windows-on-divided": [*WINDOWS, FULL],
    "teacher-on-divided": [*TEACHER, FULL],
    "compiled-on-divided": [*COMPILED, FULL],
    "compiled-whole-full": [*WHOLE, *COMPILED, FULL],
    "vae": [
        "batch.micro=1",
        "phases.main.lr=0.0001",
        "phases.main.objective.perceptual.weight=0",
        "phases.main.resolution=64",
    ],
    "skipping": [
        *WHOLE,
        FULL,
        "ema=0.9",
        "phases.main.objective=two_ranks_objectives:NanInTheLast",
        "on_nonfinite=skip:1",
    ],
    "restless": ["phases.main.objective=two_ranks_objectives:Restless"],
}
"""What is trained by two processes, and by one."""

UNDIVIDED = {
    "windows": WINDOWS,
    "teacher": TEACHER,
    "plain": [value for value in COMPILED if "compile" not in value],
    "plain-whole": [*WHOLE, *(value for value in COMPILED if "compile" not in value)],
}
"""What one process alone trains, undivided and not compiled."""


def job_of(setting: dict[str, Any], name: str, sets: list[str], ranks: Ranks) -> Any:
    """A job of the small set, as `start` makes it in rank 0."""
    out = Path(setting["work"], name)
    made: list[Any] = []

    def first() -> Any:
        made.append(reopen(out) if (out / "run.json").exists() else _start(setting, out, sets))
        return made[0].resume

    resume = ranks.from_first(first)
    return made[0] if ranks.first else joined_job(out, resume)


def _start(setting: dict[str, Any], out: Path, sets: list[str]) -> Any:
    if out.name == "vae":
        fast = [value for value in setting["fast"] if not value.startswith("trainable")]
        recipe, data = resolve("vae-f16", None, [*fast, *BASE, *sets]), setting["crops"]
    else:
        recipe = resolve("lora", None, [*setting["fast"], *BASE, *sets])
        data = setting["data" if recipe.phases[0].resolution is None else "guided"]
    return start(recipe, setting["model"], [Path(data)], out)


def run(setting: dict[str, Any], name: str, ranks: Ranks, sets: list[str] | None = None) -> dict[str, Any]:
    """Train a scenario to its end."""
    here = ranks if "hybrid" not in name else replace(ranks, local_rank=0, local_world=1)
    sets = {**SCENARIOS, **UNDIVIDED}[name] if sets is None else sets
    with _graphs_without_cpp() as compiled:
        result = train(job_of(setting, name, sets, ranks), here)
    return {"step": result.step, "stopped": result.stopped, "compiled": sorted(compiled)}


@contextlib.contextmanager
def _graphs_without_cpp() -> Generator[list[str]]:
    """`compile` makes the same graphs, and runs them without a C++ compiler; yields the classes compiled."""
    real, compiled = torch.nn.Module.compile, []

    def compile(self: Any, **kwargs: Any) -> None:
        compiled.append(type(self).__name__)
        real(self, backend="eager", **kwargs)

    torch.nn.Module.compile = compile
    try:
        yield compiled
    finally:
        torch.nn.Module.compile = real


def stop_and_go(setting: dict[str, Any], scenario: str, ranks: Ranks) -> dict[str, Any]:
    """The same in three pieces, with a stop after steps 2 and 3."""
    name = f"{scenario}-in-pieces"
    for stop in (2, 3):
        trainer = Trainer(job_of(setting, name, SCENARIOS[scenario], ranks), ranks)
        while trainer.state.step < stop:
            trainer.step()
        trainer.save({})
        torch.rand(5)
    return run(setting, name, ranks, SCENARIOS[scenario])


def failing(setting: dict[str, Any], name: str, ranks: Ranks, sets: list[str]) -> dict[str, Any]:
    """The error of a run that fails in one process."""
    try:
        run(setting, name, ranks, sets)
    except UserError as error:
        return {"error": str(error), "every rank": isinstance(error, EveryRank)}
    return {"error": None}


def unreadable(setting: dict[str, Any], ranks: Ranks) -> dict[str, Any]:
    """A row that one process cannot read."""
    from uhr.train.run.phase import UseRun

    real = UseRun.read
    if ranks.rank == 1:

        def read(self: Any, turn: Any, draws: Any) -> Any:
            if draws.step == 2:
                raise UserError("row 7 cannot be read", "copy it again")
            return real(self, turn, draws)

        UseRun.read = read
    try:
        return failing(setting, "unreadable", ranks, [])
    finally:
        UseRun.read = real


def interrupted(setting: dict[str, Any], ranks: Ranks) -> dict[str, Any]:
    """Ctrl-C in process 1 while the third step is computed."""
    real = Trainer.step

    def step(self: Any) -> Any:
        if ranks.rank == 1 and self.state.step == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return real(self)

    Trainer.step = step
    try:
        return run(setting, "interrupted", ranks, ["runtime.checkpoint_every=100"])
    finally:
        Trainer.step = real


def full_disk(setting: dict[str, Any], ranks: Ranks) -> dict[str, Any]:
    """A checkpoint whose files of process 1 do not fit on the disk."""
    from uhr.train.run.checkpoints import checkpoint

    real = checkpoint.write_json

    def write_json(path: Path, value: Any) -> None:
        if path.name == "generators-00001.json" and "step-00000004" in str(path):
            raise OSError(28, "No space left on device", str(path))
        real(path, value)

    checkpoint.write_json = write_json
    try:
        return failing(setting, "full-disk", ranks, [])
    finally:
        checkpoint.write_json = real


def exchange(ranks: Ranks) -> dict[str, Any]:
    """What processes exchange, on small numbers."""
    both, one, none, frozen = (torch.nn.Parameter(torch.zeros(2)) for _ in range(4))
    frozen.requires_grad_(False)
    both.grad = torch.full((2,), 1.0 + ranks.rank)
    if ranks.rank == 1:
        one.grad = torch.full((2,), 5.0)
    ranks.sum_gradients([both, one, none])
    shares = {count: ranks.share(count, 2) for count in (1, 3)}
    values = {
        count: ranks.assemble(torch.tensor([[10.0 * p + ranks.rank for p in share.places]]), share).tolist()
        for count, share in shares.items()
    }
    return {
        "both": both.grad.tolist(),
        "one": one.grad.tolist() if one.grad is not None else None,
        "none": none.grad is None,
        "values": values,
        "flag": ranks.any(ranks.rank == 1),
        "first": ranks.from_first(lambda: f"rank {ranks.rank}"),
    }


def main(setting: dict[str, Any]) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    ranks = parallel.from_environment()
    write = lambda name, value: Path(setting["work"], f"{name}-{ranks.rank}.json").write_text(  # noqa: E731
        json.dumps(value)
    )
    works: dict[str, Callable[[], dict[str, Any]]] = {
        "exchange": lambda: exchange(ranks),
        **{name: lambda name=name: run(setting, name, ranks) for name in SCENARIOS},
        "lora-in-pieces": lambda: stop_and_go(setting, "lora", ranks),
        "whole-full-in-pieces": lambda: stop_and_go(setting, "whole-full", ranks),
        "restless-in-pieces": lambda: stop_and_go(setting, "restless", ranks),
        # begun by one process, which the test is
        "lora-from-one": lambda: run(setting, "lora-from-one", ranks, SCENARIOS["lora"]),
        "whole-full-from-one": lambda: run(setting, "whole-full-from-one", ranks, SCENARIOS["whole-full"]),
        "not-finite": lambda: failing(
            setting, "not-finite", ranks, ["phases.main.objective=two_ranks_objectives:NanInTheLast"]
        ),
        "unreadable": lambda: unreadable(setting, ranks),
        "interrupted": lambda: interrupted(setting, ranks),
        "full-disk": lambda: full_disk(setting, ranks),
    }
    with short_texts.text_length(), parallel.joined(ranks, torch.device("cpu")):
        for name, work in works.items():
            write(name, work())
        # last: process 1 dies between two steps
        trainer = Trainer(job_of(setting, "dies", [], ranks), ranks)
        trainer.step()
        if ranks.rank == 1:
            os._exit(9)
        try:
            with parallel.joined(ranks, torch.device("cpu")):
                trainer.step()
        except UserError as error:
            write("dies", {"error": str(error)})
        trainer.close()

    os._exit(0)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
