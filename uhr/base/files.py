"""Files that are whole or absent, and the error where a disk refuses them."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import stat
import uuid
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

from uhr.base.errors import UserError

_CHUNK = 16 << 20
_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""A disk or a quota without space, a limit on the size of a file."""

_FULL = (*_ROOM, errno.EROFS)
"""Also a disk that is mounted read-only: what no read ever fails with."""

_SUFFIX = r"\.[0-9a-f]{32}\.tmp"
TEMPORARY = re.compile(rf"\..+{_SUFFIX}")
"""The names that files have while `atomic` writes them, and keep where the process is killed."""


def or_half_written(names: str) -> re.Pattern[str]:
    """A pattern of these names (a regular expression) and of their temporary names."""
    return re.compile(rf"(?:{names})|\.(?:{names}){_SUFFIX}")


@contextlib.contextmanager
def atomic(path: Path) -> Generator[Path]:
    """A temporary name beside `path` to write to; renamed to `path` when the block ends without an error.

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
    """Create an empty file; the mode (permission bits) that it got."""
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
    """Turn a failed write to `place`, a file or a folder, into one error of this kind: "PLACE cannot be
    written (No space left on device): FIX". `fix` may be a function where it depends on what was written
    until then; "make room" in it reads "make it writable" where space is not what is missing.

    The block may do other things as well: an error counts as a failed write where it says that a disk takes
    no more (`disk_fault`), or is an OSError about a file in `place`. Every other error passes unchanged.
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
        if reason not in map(os.strerror, _ROOM):
            fix = fix.replace("make room", "make it writable")
        raise kind(f"{place} cannot be written ({reason})", fix) from error


def disk_fault(error: BaseException) -> str | None:
    """What the system says of a disk that takes no more bytes ("No space left on device", "Disk quota
    exceeded", "File too large", "Read-only file system"), if that is what an exception of any library is
    about; None otherwise.
    """
    if isinstance(error, OSError) and error.errno in _FULL:
        return os.strerror(error.errno)
    # DuckDB and safetensors raise errors of their own that hold the system's text and no number
    text = str(error)
    return next((reason for reason in map(os.strerror, _FULL) if reason in text), None)


def _refused(error: Exception, place: Path) -> str | None:
    """The system's reason where an OSError is about a file in `place`, about its temporary name (`atomic`),
    or about a parent that could not be made."""
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


def user_path(text: str | Path) -> Path:
    """A path as a user wrote it: `~` is the home; `~somebody`, who is not here, is a name like any other."""
    return Path(os.path.expanduser(text))


def json_bytes(value: Any, sort_keys: bool = False) -> bytes:
    """`value` as indented JSON in UTF-8, with a line break at its end. ValueError for a NaN or an infinity.

    Half of a character, as it stands for a byte of a path that is not UTF-8, is an escape of JSON's own
    (`\\udce9`): nothing is refused when the work is done, and whoever reads the JSON gets the path back.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False, sort_keys=sort_keys)
    return f"{text}\n".encode("utf-8", "backslashreplace")


def write_json(path: Path, value: Any) -> None:
    """`value` as indented JSON, atomically. ValueError for a NaN or an infinity, which JSON does not have."""
    data = json_bytes(value)
    with atomic(path) as temporary:
        temporary.write_bytes(data)


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
