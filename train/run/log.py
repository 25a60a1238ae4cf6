"""`log.jsonl`: one JSON object per step, each step once, also if the run was killed and resumed."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

from uhr.base.console import table
from uhr.base.errors import UserError, one_line
from uhr.base.files import atomic

FILE = "log.jsonl"


@contextlib.contextmanager
def track(run: Path, step: int) -> Generator[Callable[[dict[str, Any]], None]]:
    """Yield a function that appends one step's line to the log.

    Lines of later steps than `step` are removed first: an earlier attempt wrote them after its last
    checkpoint. Each line is flushed, so that a killed process loses none.
    """
    path = run / FILE
    kept = [line for line in read_log(run) if line["step"] <= step]
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
    for number, line in enumerate(lines):
        if not line.endswith("\n"):
            return
        try:
            yield json.loads(line)
        except ValueError as error:
            raise UserError(
                f"{path} line {number + 1} is not JSON ({one_line(error)})", "remove that line"
            ) from None


def print_log(entries: list[dict[str, Any]], lines: int = 20) -> None:
    """Print at most `lines` rows, each with the means over a range of steps and a bar for the loss."""
    length = -(-len(entries) // lines)
    stretches = [entries[i : i + length] for i in range(0, len(entries), length)]
    losses = [_mean(stretch, "loss") for stretch in stretches]
    rows = [
        [
            f"{stretch[0]['step']}-{stretch[-1]['step']}" if len(stretch) > 1 else f"{stretch[0]['step']}",
            loss,
            stretch[-1]["lr"],
            _mean(stretch, "grad_norm"),
            _mean(stretch, "samples_per_second"),
            "#" * round(40 * loss / max(losses)) if max(losses) > 0 else "",
        ]
        for stretch, loss in zip(stretches, losses, strict=True)
    ]
    table(["steps", "loss", "lr", "grad norm", "samples/s", "loss"], rows)


def _mean(entries: list[dict[str, Any]], name: str) -> float:
    return sum(entry[name] for entry in entries) / len(entries)
