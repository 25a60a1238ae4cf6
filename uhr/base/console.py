"""What people see: progress on long work, tables, and JSON for machines."""

from __future__ import annotations

import contextlib
import json
import shlex
import sys
import time
from collections.abc import Callable, Generator, Sequence
from typing import Any

Advance = Callable[..., None]
"""`advance(n=1, note=None, total=None)`: n more are done; `note` replaces the words behind the bar, `total`
the number of all, where that becomes known later."""


@contextlib.contextmanager
def progress(description: str, total: int | None, unit: str = "") -> Generator[Advance]:
    """A progress bar on stderr where that is a terminal, a plain line every few seconds elsewhere."""
    if sys.stderr.isatty():
        with _bar(description, total, unit) as advance:
            yield advance
    else:
        with _lines(description, total, unit) as advance:
            yield advance


@contextlib.contextmanager
def _bar(description: str, total: int | None, unit: str) -> Generator[Advance]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(description, total=total, note="")

        def advance(n: int = 1, note: str | None = None, total: int | None = None) -> None:
            if note is not None:
                bar.update(task, note=note)
            if total is not None:
                bar.update(task, total=total)
            bar.update(task, advance=n)

        yield advance


@contextlib.contextmanager
def _lines(description: str, total: int | None, unit: str, every: float = 5.0) -> Generator[Advance]:
    start = last = time.monotonic()
    done, words, known = 0, "", total

    def line() -> None:
        of = f"/{known}" if known is not None else ""
        took = time.monotonic() - start
        tail = "  " + words if words else ""
        print(f"{description}: {done}{of} {unit} in {took:.1f} s{tail}", file=sys.stderr, flush=True)

    def advance(n: int = 1, note: str | None = None, total: int | None = None) -> None:
        nonlocal done, last, words, known
        done += n
        words = words if note is None else note
        known = known if total is None else total
        # what the wait for the first is for is said before it
        if time.monotonic() - last >= every or (note and n == done == 0 and last == start):
            last = time.monotonic()
            line()

    yield advance
    line()


def emit(value: Any, as_json: bool, text: Callable[[Any], None]) -> None:
    """The one way a command answers: `value` as JSON on stdout for machines, or `text(value)` for people."""
    if as_json:
        print(json.dumps(value, indent=2, ensure_ascii=False, default=str))
    else:
        text(value)


def say(line: str = "") -> None:
    """A line for people on stdout."""
    print(line, flush=True)


def warn(line: str) -> None:
    """A line on stderr that is not an error: the run goes on."""
    print(f"warning: {line}", file=sys.stderr, flush=True)


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A plain table: aligned columns, numbers to the right, no frame. Reads the same in a pipe."""
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max(len(str(name)), *(len(row[i]) for row in cells), 0) for i, name in enumerate(head)]
    right = [
        all(isinstance(row[i], int | float) for row in rows if row[i] is not None) for i in range(len(head))
    ]
    for line in ([str(name) for name in head], *cells):
        parts = [c.rjust(w) if r else c.ljust(w) for c, w, r in zip(line, widths, right, strict=True)]
        say("  ".join(parts).rstrip())


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


def counted(count: int, noun: str) -> str:
    """`1 step`, `2,000 steps`."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def command(*words: object) -> str:
    """`uhr` and these words as a line to copy: a path with a space in it survives the shell."""
    return shlex.join(["uhr", *map(str, words)])
