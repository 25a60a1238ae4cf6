"""Atomic writes, errors of full or read-only disks, and hashes of files."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import re
import stat
import uuid
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from uhr.base.errors import UserError

_CHUNK = 16 << 20
_data_to_disk = getattr(os, "fdatasync", os.fsync)
_WRITTEN_AT_ONCE = 64 << 20
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""A disk or quota is full, or a file is larger than its limit."""

_FULL = (*_NO_SPACE, errno.EROFS)
"""Also a disk that is mounted read-only; no read fails with any of these."""

_SUFFIX = r"\.[0-9a-f]{32}\.tmp"
TEMPORARY = re.compile(rf"\..+{_SUFFIX}")
"""The names of files while `atomic` writes them; they remain if the process is killed."""


def or_half_written(names: str) -> re.Pattern[str]:
    """A pattern that matches these names (a regular expression) and their temporary names."""
    return re.compile(rf"(?:{names})|\.(?:{names}){_SUFFIX}")


@contextlib.contextmanager
def atomic(path: Path) -> Generator[Path]:
    """Yield a temporary name next to `path`; it is renamed to `path` when the block ends without an error.

    The bytes are on disk before the name is: a crash at any moment leaves the old file, the new one, or none.
    The file gets the mode that the umask gives to new files, whatever the library that writes it does
    (safetensors writes files that only their owner can read).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        mode = _create(temporary)
        yield temporary
        if stat.S_IMODE(temporary.stat().st_mode) != mode:
            temporary.chmod(mode)
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _create(path: Path) -> int:
    """Create an empty file and return its mode (permission bits)."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        return stat.S_IMODE(os.fstat(handle).st_mode)
    finally:
        os.close(handle)


def usual_modes(folder: Path) -> None:
    """Give every file below `folder` the mode that the umask gives to new files: for a folder that a library
    wrote."""
    probe = folder / f".mode.{uuid.uuid4().hex}.tmp"
    try:
        mode = _create(probe)
    finally:
        probe.unlink(missing_ok=True)
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            path.chmod(mode)


@contextlib.contextmanager
def saving(
    place: Path | str, fix: str | Callable[[], str], kind: type[UserError] = UserError
) -> Generator[None]:
    """Turn a failed write to `place`, a file or a folder, into an error of type `kind`: "PLACE cannot be
    written (No space left on device): FIX".

    `fix` may be a function if it depends on what was written before the failure; "free space" in it becomes
    "make it writable" if the disk is not full. An error is a failed write if it reports a full or read-only
    disk (`disk_fault`), or if it is an OSError about a file in `place`. Every other error passes unchanged.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = disk_fault(error) or _refused(error, Path(place))
        if reason is None:
            raise
        fix = fix if isinstance(fix, str) else fix()
        if reason not in map(os.strerror, _NO_SPACE):
            fix = fix.replace("free space there", "make it writable").replace(
                "free space", "make it writable"
            )
        raise kind(f"{place} cannot be written ({reason})", fix) from error


def disk_fault(error: BaseException) -> str | None:
    """The system's text for a full or read-only disk ("No space left on device", "Disk quota exceeded", "File
    too large", "Read-only file system") if an exception of any library reports one; None otherwise.
    """
    if isinstance(error, OSError) and error.errno in _FULL:
        return os.strerror(error.errno)
    # DuckDB and safetensors raise errors of their own that contain the system's text and no number
    text = str(error)
    return next((reason for reason in map(os.strerror, _FULL) if reason in text), None)


def _refused(error: Exception, place: Path) -> str | None:
    """The system's reason if an OSError is about a file in `place`, its temporary name (`atomic`), or a
    parent that could not be made; None otherwise."""
    if not isinstance(error, OSError) or error.filename is None:
        return None
    place, file = place.absolute(), Path(os.fsdecode(error.filename)).absolute()
    temporary = file.parent == place.parent and file.name.startswith(f".{place.name}.")
    if temporary or file.is_relative_to(place) or place.is_relative_to(file):
        return error.strerror or str(error)
    return None


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


class EarlyWrites:
    """Writes a growing file to disk while it grows, so that the `sync` at its end waits for little: for a
    `with` block inside of that in which the file is open. A failed write raises OSError.

    handle: of the open file, whose bytes are only appended.
    """

    def __init__(self, handle: int) -> None:
        self._handle = handle
        self._begun = 0
        self._writing: Future[None] | None = None
        self._thread = ThreadPoolExecutor(1)

    def __enter__(self) -> EarlyWrites:
        return self

    def grown(self, size: int) -> None:
        """Begin to write what was appended, if that is much; `size` are the bytes of the file by now."""
        if size - self._begun < _WRITTEN_AT_ONCE or (self._writing and not self._writing.done()):
            return
        self._finished()
        self._begun = size
        self._writing = self._thread.submit(_data_to_disk, self._handle)

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown()
        self._finished()

    def _finished(self) -> None:
        if self._writing is not None:
            self._writing.result()  # the system reports a failed write once


def user_path(text: str | Path) -> Path:
    """Expand `~` in a path that a user wrote; `~name` of an unknown user is left as it is."""
    return Path(os.path.expanduser(text))


def json_bytes(value: Any, sort_keys: bool = False, indent: int | None = 2) -> bytes:
    """Serialise `value` as JSON in UTF-8, ending with a line break. Without `indent` it is one line, and made
    ten times as fast.

    A lone surrogate, Python's form of a path's byte that is not UTF-8, becomes a JSON escape (`\\udce9`), so
    that a reader of the JSON gets the path back. Raises ValueError for NaN and infinity.
    """
    text = json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False, sort_keys=sort_keys)
    return f"{text}\n".encode("utf-8", "backslashreplace")


def finite(value: Any) -> Any:
    """Return `value` with None for every NaN and infinity in it, which JSON does not have."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [finite(one) for one in value]
    return value


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically. Raises ValueError for NaN and infinity."""
    data = json_bytes(value)
    with atomic(path) as temporary:
        temporary.write_bytes(data)


def file_version(status: os.stat_result) -> str:
    """`SIZE-MTIME`, in bytes and ns, of the result of `os.stat` or `os.fstat`: the `source_version` of a file
    in a folder. Two states of a file with one version are taken for the same bytes.
    """
    return f"{status.st_size}-{status.st_mtime_ns}"


def sha256_file(path: Path, advance: Callable[[int], None] | None = None) -> str:
    """SHA-256 (64 hex digits) of a file's bytes. `advance(n)` is called after every n bytes."""
    with open(path, "rb") as file:
        if advance is None:
            return hashlib.file_digest(file, "sha256").hexdigest()
        total = hashlib.sha256()
        while chunk := file.read(_CHUNK):
            total.update(chunk)
            advance(len(chunk))
        return total.hexdigest()
