"""Where a training run has the trained weights of each of its steps, and `RUN@STEP` as a name for them."""

from __future__ import annotations

import re
from pathlib import Path

from uhr.base.errors import UserError

RUN = "run.json"
"""The file that marks a run's folder."""

CHECKPOINTS, WEIGHTS = "checkpoints", "weights"
"""Its subfolders with whole checkpoints, and with the weights of earlier ones; each has a folder per step."""

ADAPTER = "adapter.safetensors"

_STEP = re.compile(r"step-(\d{8})")
_NAMED = re.compile(r"(.+)@([^/]*)")


def step_name(step: int) -> str:
    """The name of a step's folder."""
    return f"step-{step:08d}"


def steps_in(folder: Path) -> list[int]:
    """The steps of which there is a folder, complete or not, in order."""
    if not folder.is_dir():
        return []
    found = (_STEP.fullmatch(path.name) for path in folder.iterdir())
    return sorted(int(match[1]) for match in found if match)


def all_steps(run: Path) -> list[int]:
    """The steps of which a run has weights, in order."""
    return sorted({*steps_in(run / CHECKPOINTS), *steps_in(run / WEIGHTS)})


def split_step(path: Path) -> tuple[Path, int] | None:
    """The run and the step of a path `RUN@STEP`; None if it is no such name, or the path of something.

    Raises UserError if what follows the run is not a number.
    """
    match = _NAMED.fullmatch(str(path))
    if match is None or path.exists() or not (Path(match[1]) / RUN).is_file():
        return None
    run, step = Path(match[1]), match[2]
    if not step.isdecimal():
        raise _missing(run, f"'{step}'")
    return run, int(step)


def check_step(run: Path, step: int) -> None:
    """Raise UserError if a run has no weights of a step."""
    if step not in all_steps(run):
        raise _missing(run, str(step))


def _missing(run: Path, step: str) -> UserError:
    have = ", ".join(map(str, all_steps(run))) or "none"
    return UserError(f"{run} has no checkpoint of step {step}", f"it has: {have}")


def adapter_of_step(run: Path, step: int) -> Path:
    """The file of the adapter that a run had after a step. Raises UserError if it has none."""
    check_step(run, step)
    files = [run / place / step_name(step) / ADAPTER for place in (CHECKPOINTS, WEIGHTS)]
    found = next((file for file in files if file.is_file()), None)
    if found is None:
        fix = f"`uhr train export {run} --step {step} --out DIR` writes what it trains"
        raise UserError(f"{run} trains no adapter", fix)
    return found
