"""Files that are whole or absent."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import uuid
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

_CHUNK = 16 << 20


@contextlib.contextmanager
def atomic(path: Path) -> Generator[Path]:
    """A temporary name beside `path` to write to; renamed to `path` when the block ends without an error.

    The bytes are on disk before the name is: a crash at any moment leaves the old file, the new one, or none.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def user_cache(name: str) -> Path:
    """The folder in the user's cache (XDG_CACHE_HOME, or ~/.cache) for things of that name."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "uhr" / name


def sync(path: Path) -> None:
    """Return once a file's bytes, or a folder's names, are on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def user_path(text: str | Path) -> Path:
    """A path as a user wrote it: `~` is the home; `~somebody`, who is not here, is a name like any other."""
    return Path(os.path.expanduser(text))


def write_json(path: Path, value: Any) -> None:
    """`value` as indented JSON, atomically. ValueError for a NaN or an infinity, which JSON does not have."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    with atomic(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def file_version(status: os.stat_result) -> str:
    """`SIZE-MTIME`, in bytes and ns, of what `os.stat` or `os.fstat` gives: the `source_version` of a file in
    a folder. Two states of a file with one version are taken for the same bytes.
    """
    return f"{status.st_size}-{status.st_mtime_ns}"


def sha256_file(path: Path, advance: Callable[[int], None] | None = None) -> str:
    """SHA-256 (64 hex digits) of a file's bytes. `advance(n)` hears of every n bytes more."""
    with open(path, "rb") as file:
        if advance is None:
            return hashlib.file_digest(file, "sha256").hexdigest()
        total = hashlib.sha256()
        while chunk := file.read(_CHUNK):
            total.update(chunk)
            advance(len(chunk))
        return total.hexdigest()


def human_bytes(count: float) -> str:
    """`1.5 GB`: decimal units, as disks and networks count."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
