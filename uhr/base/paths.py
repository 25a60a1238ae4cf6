"""Paths as text in files that we write, and as names that libraries do not interpret.

A path of the file system may contain any byte but NUL. Python represents bytes that are not UTF-8 as lone
surrogates, which neither JSON nor Parquet can store and few libraries accept.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
import urllib.parse
from collections.abc import Callable, Generator
from pathlib import Path, PurePath
from typing import TypeGuard

from uhr.base.errors import UserError, nearest

FILE_URI = "file://"

_PLAIN = re.compile(r"[A-Za-z0-9_./-]+")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def is_url(text: str) -> bool:
    """Whether `text` is a URL (`s3://bucket/prefix`), not a path."""
    return _URL.match(text) is not None


def in_store(place: str | PurePath) -> TypeGuard[str]:
    """Whether a place that a record has is an address in an object store, and no path (`path_text`)."""
    return isinstance(place, str) and is_url(place) and not place.startswith(FILE_URI)


def local(name: str, utf8: bool = False) -> Callable[[str | PurePath], Path]:
    """Make the parser of an option or argument called `name` that takes a path of this machine.

    The parser raises UserError for a URL (as a path, `s3://bucket` would be a folder called `s3:`), and with
    `utf8` for a path that is not UTF-8.
    """

    def parse(value: str | PurePath) -> Path:
        text = os.fspath(value)
        if is_url(text):
            raise UserError(f"{name} {text} is a URL, not a path", "give a path of this machine")
        if utf8:
            check_utf8(name, text)
        return Path(text)

    return parse


def anywhere(name: str) -> Callable[[str | PurePath], Path | str]:
    """Make the parser of an option or argument called `name` that takes a path of this machine, or the
    address of a prefix in an object store, which stays a text.

    The parser raises UserError for an address that is not of the form `s3://bucket/prefix`.
    """

    def parse(value: str | PurePath) -> Path | str:
        text = os.fspath(value)
        if not is_url(text):
            return Path(text)
        if not text.startswith("s3://") or not text.removeprefix("s3://").strip("/"):
            raise UserError(
                f"{name} {text}: not an address in an object store", "write it as s3://bucket/prefix"
            )
        return text.rstrip("/")

    return parse


def or_similar(path: Path, fix: str) -> str:
    """Return `fix` for an error about `path`. If `path` does not exist, existing paths with similar names are
    named first: `did you mean runs/lora? Or ...`."""
    missing = path
    while not missing.parent.exists():
        missing = missing.parent
    if missing.exists() or not missing.parent.is_dir():
        return fix
    rest = path.relative_to(missing)
    try:
        names = [entry.name for entry in os.scandir(missing.parent) if is_utf8(entry.name)]
    except OSError:
        return fix
    close = [missing.with_name(name) / rest for name in nearest(missing.name, names)]
    found = [os.fspath(each) for each in close if each.exists()]
    return f"did you mean {' or '.join(found)}? Or {fix}" if found else fix


def check_utf8(name: str, path: str | PurePath) -> None:
    """Raise UserError if a path is not UTF-8, where a library or a record cannot store it. `name` is the
    option that the path was given for (`--model`)."""
    if not is_utf8(path):
        fix = "rename it, or give a link to it that has a plain name"
        raise UserError(f"{name} {os.fspath(path)}: the path is not UTF-8, which is required here", fix)


def is_utf8(path: str | PurePath) -> bool:
    """Whether the bytes of a path are UTF-8, so that any file and library can store it."""
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def escaped(path: str | PurePath) -> str:
    """Escape a path reversibly: `%` and bytes that are not UTF-8 become `%25` and `%XX`; all else is kept."""
    text = os.fsencode(path).decode("utf-8", "surrogateescape").replace("%", "%25")
    return "".join(f"%{ord(c) - 0xDC00:02X}" if "\udc80" <= c <= "\udcff" else c for c in text)


def unescaped(text: str) -> str:
    """The path whose `escaped` form is `text`."""
    return os.fsdecode(urllib.parse.unquote_to_bytes(text))


def path_text(path: str | PurePath) -> str:
    """Write a path as text for JSON and Parquet; `text_path` reads it back.

    A path in UTF-8 is its own text. Any other is written as the URI of its absolute path, escaped
    (`file:///data/caf%E9`). No `Path` looks like that, since `//` inside a path becomes `/`.
    """
    return os.fspath(path) if is_utf8(path) else FILE_URI + escaped(os.path.abspath(path))


def text_path(text: str) -> Path:
    """The path whose `path_text` is `text`."""
    return Path(unescaped(text.removeprefix(FILE_URI)) if text.startswith(f"{FILE_URI}/") else text)


def place_text(place: str | PurePath) -> str:
    """Write a place as text: an address in an object store as it is, a path as the `path_text` of the
    absolute one. `text_place` reads it back.
    """
    return place if in_store(place) else path_text(Path(place).absolute())


def text_place(text: str) -> Path | str:
    """The path or the address whose `place_text` is `text`."""
    return text if in_store(text) else text_path(text)


@contextlib.contextmanager
def plain_folder(folder: Path) -> Generator[Path]:
    """Yield an absolute path to an existing folder in which no character has a meaning for libraries, as `?`
    has for DuckDB.

    It is the folder's own path if that has only letters, digits and `_.-/`. Otherwise it is a link in a
    temporary folder, which is removed when the block ends.
    """
    whole = Path(os.path.abspath(folder))
    if _PLAIN.fullmatch(str(whole)):
        yield whole
        return
    places = [place for place in (tempfile.gettempdir(), "/tmp", "/var/tmp") if _PLAIN.fullmatch(place)]
    with tempfile.TemporaryDirectory(prefix="uhr-", dir=places[0] if places else None) as made:
        link = Path(made) / "link"
        link.symlink_to(whole, target_is_directory=True)
        yield link
