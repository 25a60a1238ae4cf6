"""Terminal output: progress of long work, tables, messages, and JSON for machines."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shlex
import shutil
import sys
import textwrap
import time
import unicodedata
from collections.abc import Callable, Generator, Sequence
from pathlib import PurePath
from typing import Any

from uhr.base.files import finite
from uhr.base.formatting import duration

Advance = Callable[..., None]
"""`advance(n=1, note=None, total=None)`: n more are done; `note` replaces the text behind the bar, `total`
the total number, if that becomes known later."""


_JOINERS = "\u200c\u200d"
"""Format characters that only shape the letters and emoji next to them."""


def shown(text: object, keep: str = "") -> str:
    """Escape a text for one line of a terminal.

    Names and captions come from others: what moves the cursor, changes colours, breaks the line or turns
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
    """Show progress on stderr: a bar on a terminal, otherwise a plain line every few seconds, with the time
    that is left at the rate since the first call of `advance` with n > 0. What that call counts may have been
    done before.
    """
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
    done, text, known = 0, "", total
    printed: tuple[int, str, int | None] | None = None
    first: tuple[float, int] | None = None

    def left(now: float) -> str:
        if known is None or first is None or not first[1] < done < known:
            return ""
        rate = (now - first[0]) / (done - first[1])
        return f", about {duration(rate * (known - done))} left"

    def line() -> None:
        nonlocal printed
        printed = done, text, known
        of = f"/{known}" if known is not None else ""
        now = time.monotonic()
        tail = left(now) + ("  " + shown(text) if text else "")
        print(f"{description}: {done}{of} {unit} in {now - start:.1f} s{tail}", file=sys.stderr, flush=True)

    def advance(n: int = 1, note: str | None = None, total: int | None = None) -> None:
        nonlocal done, last, text, known, first
        done += n
        if n and first is None:
            first = time.monotonic(), done
        text = text if note is None else note
        known = known if total is None else total
        # a note before the first item says what the wait is for
        if time.monotonic() - last >= every or (note and n == done == 0 and last == start):
            last = time.monotonic()
            line()

    yield advance
    if printed != (done, text, known):
        line()


def emit(value: Any, as_json: bool, text: Callable[[Any], None]) -> None:
    """Print the result of a command: `value` as JSON on stdout, or `text(value)` for people."""
    if as_json:
        print(json_text(value))
    else:
        text(value)


def json_text(value: Any) -> str:
    """Serialise `value` as indented JSON for stdout.

    NaN and infinity, which JSON does not have, become null. What the terminal's encoding cannot represent,
    such as a byte of a path that is not UTF-8, becomes a JSON escape.
    """
    value = finite(value)
    text = json.dumps(value, indent=2, ensure_ascii=False, default=str, allow_nan=False)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        return json.dumps(value, indent=2, default=str, allow_nan=False)
    return text


def say(text: str = "") -> None:
    """Print a text on stdout. Line breaks are kept: names and captions go through `shown` first."""
    print(shown(text, keep="\n\t"), flush=True)


def warn(line: str) -> None:
    """Print a warning on stderr; the run continues."""
    print(f"warning: {shown(line)}", file=sys.stderr, flush=True)


def note(line: str) -> None:
    """Print on stderr what was decided for the user, and why."""
    print(f"note: {shown(line)}", file=sys.stderr, flush=True)


def table(head: Sequence[str], rows: Sequence[Sequence[Any]], fit: bool = False) -> None:
    """Print a plain table: aligned columns, numbers to the right, no frame.

    fit: whether to break the cells of the widest columns at spaces, so that lines fit on the terminal. Where
    there is none, a row stays one line.
    """
    head = [shown(name) for name in head]
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max(len(name), *(len(row[i]) for row in cells), 0) for i, name in enumerate(head)]
    if fit and on_terminal():
        widths = _narrowed(widths, [head, *cells], shutil.get_terminal_size().columns)
    right = [
        all(isinstance(row[i], int | float) for row in rows if row[i] is not None) for i in range(len(head))
    ]
    for line in (broken for row in (head, *cells) for broken in _broken(row, widths)):
        parts = [c.rjust(w) if r else c.ljust(w) for c, w, r in zip(line, widths, right, strict=True)]
        say("  ".join(parts).rstrip())


def on_terminal() -> bool:
    """Whether a person reads what is printed."""
    return sys.stdout.isatty()


def _narrowed(widths: Sequence[int], lines: Sequence[Sequence[str]], total: int) -> list[int]:
    """Return widths of columns with `total` together, or as little more as the longest words require: the
    widest columns are made narrower.
    """
    words = [max(len(word) for line in lines for word in (line[i].split(" "))) for i in range(len(widths))]
    found = list(widths)
    while sum(found) + 2 * (len(found) - 1) > total:
        wide = [i for i in range(len(found)) if found[i] > words[i]]
        if not wide:
            break
        found[max(wide, key=lambda i: found[i])] -= 1
    return found


def _broken(row: Sequence[str], widths: Sequence[int]) -> list[list[str]]:
    """Return the lines of a row whose cells have at most these widths, where their words permit."""
    columns = [
        textwrap.wrap(cell, max(1, width), break_long_words=False, break_on_hyphens=False) or [""]
        if len(cell) > width
        else [cell]
        for cell, width in zip(row, widths, strict=True)
    ]
    return [list(parts) for parts in itertools.zip_longest(*columns, fillvalue="")]


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    return shown(value)


def counted(count: int, noun: str) -> str:
    """`1 step`, `2,000 steps`."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def command(*arguments: object) -> str:
    """The shell command `uhr` with these arguments, quoted: spaces in a path survive the shell, and a path
    that begins with a dash is not taken for an option."""
    return " ".join(["uhr", *map(quoted, arguments)])


def quoted(argument: object) -> str:
    """One argument of a shell command, as `command` prints it."""
    text = os.fspath(argument) if isinstance(argument, PurePath) else str(argument)
    if isinstance(argument, PurePath) and text.startswith("-"):
        text = f"./{text}"
    # a condition with a text in it is easier to read in double quotes, in which the shell reads the others
    plain = "'" in text and not set('"$`\\!').intersection(text)
    word = f'"{text}"' if plain else shlex.quote(text)
    return word if shown(word) == word else f"$'{''.join(map(_quoted_byte, os.fsencode(text)))}'"


def _quoted_byte(byte: int) -> str:
    """One byte of a path inside the quotes of $'...', which bash, zsh and others read."""
    character = chr(byte)
    if character in "'\\":
        return f"\\{character}"
    return character if 32 <= byte < 127 else f"\\x{byte:02x}"


Main = Callable[[list[str]], int]
"""`uhr.cli.main`, which `uhr.cli` hands to its commands as `context.obj`."""


def printed(as_json: bool) -> contextlib.AbstractContextManager[object]:
    """A block whose output is for people: on stdout, or on stderr where stdout is JSON."""
    return contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext()


def run_command(main: Main, arguments: Sequence[str], as_json: bool, interrupted: str) -> None:
    """Print and run one command; with `as_json`, what it prints goes to stderr.

    interrupted: what is printed after Ctrl-C. Raises SystemExit with the code of a command that fails.
    """
    with printed(as_json):
        say(f"\n$ {command(*arguments)}")
        code = main(list(arguments))
        if code == 0:
            return
        if code == 130:
            say(interrupted)
    raise SystemExit(code)
