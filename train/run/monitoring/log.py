"""`log.jsonl`: one JSON object per step, each step once, also if the run was killed and resumed."""

from __future__ import annotations

import contextlib
import datetime
import json
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import Any

from uhr.base.console import table
from uhr.base.errors import UserError, one_line
from uhr.base.files import atomic
from uhr.base.formatting import gibibytes, number

FILE = "log.jsonl"

RATES = {"tokens_per_second": "tokens/s", "megapixels_per_second": "Mpx/s"}
"""Keys of the rates at which a backbone and a VAE are trained, and their units."""

HELD_OUT = "held-out loss"
"""The name of a held-out loss in tables and in the metrics of checkpoints."""


@contextlib.contextmanager
def track(run: Path, step: int) -> Generator[Callable[[dict[str, Any]], None]]:
    """Yield a function that appends one step's line to the log.

    Lines of later steps than `step` are removed first: an earlier attempt wrote them after its last
    checkpoint. Each line is flushed, so that a killed process loses none.
    """
    path = run / FILE
    # a run that begins measures the model before its first step again
    kept = [line for line in read_log(run) if line["step"] <= step] if step else []
    with atomic(path) as temporary:
        temporary.write_text("".join(map(_line, kept)), encoding="utf-8")
    with open(path, "a", encoding="utf-8") as file:

        def write(entry: dict[str, Any]) -> None:
            file.write(_line(entry))
            file.flush()

        yield write


def _line(entry: dict[str, Any]) -> str:
    return json.dumps(entry, allow_nan=False) + "\n"


def read_log(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's log; empty if there is none. An incomplete last line is left out."""
    return list(_entries(run / FILE))


def _entries(path: Path) -> Iterator[dict[str, Any]]:
    if not path.is_file():
        return
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    for index, line in enumerate(lines):
        if not line.endswith("\n"):
            return
        try:
            yield json.loads(line)
        except ValueError as error:
            raise UserError(
                f"{path} line {index + 1} is not JSON ({one_line(error)})", "remove that line"
            ) from None


def held_out_losses(entry: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The held-out losses of a line of the log, by their names for people.

    There is one if all phases have one objective and one resolution, and otherwise one for each that differs:
    their values cannot be compared.
    """
    by_phase = entry.get("held_out_by_phase", {})
    named = {f"{HELD_OUT} of phase {phase}": measured for phase, measured in by_phase.items()}
    return {HELD_OUT: entry["held_out"], **named} if "held_out" in entry else named


def progress_note(
    entry: dict[str, Any],
    total: int,
    seconds: float | None = None,
    measured: Mapping[str, Any] | None = None,
) -> str:
    """A step's line of the log in a few words, for the progress bar.

    total: the run's steps. seconds: of a step, for the time that is left; None is those of this step.
    measured: the last line that has held-out losses, if there is one.
    """
    left = (total - entry["step"]) * (entry["seconds"] if seconds is None else seconds)
    parts = [
        f"loss {entry['loss']:.4f}" if "loss" in entry else "skipped",
        *(
            f"{name} {found['loss']:.4f} at step {measured['step']}"
            for name, found in held_out_losses(measured or {}).items()
            if measured is not None
        ),
        f"{entry['samples_per_second']:.3g} images/s",
        *(f"{number(entry[name])} {unit}" for name, unit in RATES.items() if name in entry),
        f"wait {entry['wait'] / max(entry['seconds'], 1e-9):.1%}",
        f"memory {gibibytes(entry['peak_memory'])}",
        f"{datetime.timedelta(seconds=round(left))} left",
    ]
    return ", ".join(parts)


def print_log(entries: list[dict[str, Any]], lines: int = 20) -> None:
    """Print at most `lines` rows, each with the means over a range of steps and a bar for the loss.

    Columns that no line of the log has are left out: earlier versions wrote fewer.
    """
    # the model before the first step is not part of a range of steps
    before = [entry for entry in entries if entry["step"] == 0]
    steps = entries[len(before) :]
    length = max(1, -(-len(steps) // lines))
    stretches = [before] if before else []
    stretches += [steps[i : i + length] for i in range(0, len(steps), length)]
    losses = [_mean(stretch, "loss") for stretch in stretches]
    most = max((loss for loss in losses if loss is not None), default=0)
    held_out = dict.fromkeys(name for entry in entries for name in held_out_losses(entry))
    columns = {
        "steps": [_steps(stretch) for stretch in stretches],
        "loss": losses,
        **{name: [_mean_held_out(stretch, name, "loss") for stretch in stretches] for name in held_out},
        **{f"{name}: PSNR": [_mean_held_out(each, name, "psnr") for each in stretches] for name in held_out},
        "lr": [stretch[-1].get("lr") for stretch in stretches],
        "d": [_mean(stretch, "optimiser", "d") for stretch in stretches],
        "grad norm": [_mean(stretch, "grad_norm") for stretch in stretches],
        "skipped": [sum("skipped" in entry for entry in stretch) or None for stretch in stretches],
        "samples/s": [_mean(stretch, "samples_per_second") for stretch in stretches],
        **{unit: [_mean(stretch, name) for stretch in stretches] for name, unit in RATES.items()},
        "wait %": [_wait(stretch) for stretch in stretches],
    }
    shown = {name: values for name, values in columns.items() if any(value is not None for value in values)}
    bars = ["#" * round(40 * loss / most) if loss and most > 0 else "" for loss in losses]
    table([*shown, "loss"], [list(row) for row in zip(*shown.values(), bars, strict=True)])


def _steps(stretch: list[dict[str, Any]]) -> str:
    first, last = stretch[0]["step"], stretch[-1]["step"]
    return f"{first}-{last}" if first != last else f"{first}"


def _mean(entries: list[dict[str, Any]], *path: str) -> float | None:
    """The mean of a value over the lines that have it; None if none has."""
    found = []
    for entry in entries:
        value: Any = entry
        for name in path:
            value = value.get(name) if isinstance(value, dict) else None
        if value is not None:
            found.append(value)
    return sum(found) / len(found) if found else None


def _mean_held_out(stretch: list[dict[str, Any]], name: str, value: str) -> float | None:
    return _mean([held_out_losses(entry).get(name, {}) for entry in stretch], value)


def _wait(stretch: list[dict[str, Any]]) -> float | None:
    """The share of the time that the steps waited for data, in percent."""
    waits = [entry["wait"] for entry in stretch if "wait" in entry]
    seconds = sum(entry["seconds"] for entry in stretch if "wait" in entry)
    return 100 * sum(waits) / seconds if waits and seconds else None
