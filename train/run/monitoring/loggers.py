"""Copies of the log's numbers for TensorBoard and Weights & Biases, if a recipe asks for them."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from uhr.base.errors import UserError

Write = Callable[[dict[str, Any]], None]

PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb"}
"""The package that each logger requires."""

FOLDERS = ("tensorboard", "wandb")
"""What they write into a run's folder."""


def check_loggers(names: Sequence[str]) -> None:
    """Raise UserError if the package of a logger is not installed."""
    for name in names:
        if importlib.util.find_spec(PACKAGES[name]) is None:
            what = f"runtime.log names {name}, whose package is not installed"
            raise UserError(what, f"pip install {PACKAGES[name]}, or leave it out: --set runtime.log=[]")


@contextlib.contextmanager
def loggers(
    names: Sequence[str], run: Path, run_id: str, recipe: Mapping[str, Any], step: int
) -> Generator[Write]:
    """Yield a function that writes one step's line of the log to each logger. `step` steps are done."""
    with contextlib.ExitStack() as stack:
        writes = []
        if "tensorboard" in names:
            writes.append(stack.enter_context(_tensorboard(run, step)))
        if "wandb" in names:
            writes.append(stack.enter_context(_wandb(run, run_id, recipe)))

        def write(entry: dict[str, Any]) -> None:
            for each in writes:
                each(entry)

        yield write


@contextlib.contextmanager
def _tensorboard(run: Path, step: int) -> Generator[Write]:
    from torch.utils.tensorboard import SummaryWriter

    # what an earlier attempt wrote after its last checkpoint is not shown
    with contextlib.closing(SummaryWriter(str(run / "tensorboard"), purge_step=step + 1)) as writer:

        def write(entry: dict[str, Any]) -> None:
            for name, value in scalars(entry):
                writer.add_scalar(name, value, entry["step"])

        yield write


@contextlib.contextmanager
def _wandb(run: Path, run_id: str, recipe: Mapping[str, Any]) -> Generator[Write]:
    wandb: Any = importlib.import_module("wandb")
    opened = wandb.init(
        project="uhr", name=run.resolve().name, id=run_id or None, resume="allow", dir=str(run), config=recipe
    )
    try:
        yield lambda entry: opened.log(dict(scalars(entry)), step=entry["step"])
    finally:
        opened.finish()


def scalars(entry: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """The numbers of a line of the log, as (name, value), with nested names joined by `/`."""
    for name, value in entry.items():
        if name == "held_out":
            yield from _held_out(name, value)
        elif name == "held_out_by_phase":
            for phase, measured in value.items():
                yield from _held_out(f"held_out {phase}", measured)
        elif isinstance(value, Mapping):
            yield from ((f"{name}/{inner}", number) for inner, number in scalars(value))
        elif isinstance(value, int | float) and name != "step":
            yield name, value


def _held_out(name: str, measured: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    yield f"{name}/loss", measured["loss"]
    if "psnr" in measured:
        yield f"{name}/psnr", measured["psnr"]
    for each in measured.get("bins", ()):
        low, high = each["sigma"]
        yield f"{name}/sigma {low:g} to {high:g}", each["loss"]
