"""What people see: progress on long work, tables, and JSON for machines."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shlex
import sys
import time
import unicodedata
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import PurePath
from typing import Any

Advance = Callable[..., None]
"""`advance(n=1, note=None, total=None)`: n more are done; `note` replaces the words behind the bar, `total`
the number of all, where that becomes known later."""


_JOINERS = "\u200c\u200d"
"""Format characters that only shape the letters and emoji beside them."""


def shown(text: object, keep: str = "") -> str:
    """Text for a terminal, in one line.

    Names and captions are strangers' texts: what moves the cursor, changes colours, breaks the line or turns
    the direction of reading becomes an escape (`\\x1b`, `\\n`, `\\u202e`), and so does a byte that is not
    UTF-8 (`\\udce9`). Characters in `keep` stay as they are.
    """
    text = str(text)
    if text.isprintable():
        return text
    return "".join(c if c in keep or _is_harmless(c) else _escape(c) for c in text)


def _is_harmless(character: str) -> bool:
    return character.isprintable() or character in _JOINERS or unicodedata.category(character) == "Zs"


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode()


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
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit, markup=False),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(description, total=total, note="")

        def advance(n: int = 1, note: str | None = None, total: int | None = None) -> None:
            if note is not None:
                bar.update(task, note=shown(note))
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
        tail = "  " + shown(words) if words else ""
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
        print(json_text(value))
    else:
        text(value)


def json_text(value: Any) -> str:
    """`value` as indented JSON for stdout: NaN and infinity, which JSON does not have, are null, and what the
    terminal cannot take (a byte of a path that is not UTF-8) is an escape of JSON's own."""
    value = _finite(value)
    text = json.dumps(value, indent=2, ensure_ascii=False, default=str, allow_nan=False)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        return json.dumps(value, indent=2, default=str, allow_nan=False)
    return text


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return value


def say(text: str = "") -> None:
    """Text for people on stdout. Line breaks are kept: names and captions go through `shown` first."""
    print(shown(text, keep="\n\t"), flush=True)


def warn(line: str) -> None:
    """A line on stderr that is not an error: the run goes on."""
    print(f"warning: {shown(line)}", file=sys.stderr, flush=True)


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A plain table: aligned columns, numbers to the right, no frame. Reads the same in a pipe."""
    head = [shown(name) for name in head]
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max(len(name), *(len(row[i]) for row in cells), 0) for i, name in enumerate(head)]
    right = [
        all(isinstance(row[i], int | float) for row in rows if row[i] is not None) for i in range(len(head))
    ]
    for line in (head, *cells):
        parts = [c.rjust(w) if r else c.ljust(w) for c, w, r in zip(line, widths, right, strict=True)]
        say("  ".join(parts).rstrip())


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    return shown(value)


def counted(count: int, noun: str) -> str:
    """`1 step`, `2,000 steps`."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def command(*words: object) -> str:
    """`uhr` and these words as a line to copy: a path with a space in it survives the shell, and one that
    begins with a dash is not taken for an option."""
    return " ".join(["uhr", *map(_word, words)])


def _word(word: object) -> str:
    text = os.fspath(word) if isinstance(word, PurePath) else str(word)
    if isinstance(word, PurePath) and text.startswith("-"):
        text = f"./{text}"
    quoted = shlex.quote(text)
    return quoted if shown(quoted) == quoted else f"$'{''.join(map(_quoted_byte, os.fsencode(text)))}'"


def _quoted_byte(byte: int) -> str:
    """One byte of a path between the marks of $'...', which bash, zsh and others read."""
    character = chr(byte)
    if character in "'\\":
        return f"\\{character}"
    return character if 32 <= byte < 127 else f"\\x{byte:02x}"
