"""A file that is read as one version: opened once, compared with its listed version before and after.

A source may be written to while it is read (a sync client, an optimiser that works in place, a download that
has not ended). Whatever is read through this module comes from one version of the file, or is a fault of the
kind "changed".
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Generator
from pathlib import Path

from uhr.base.files import file_version
from uhr.pixels.types import PixelFault


@contextlib.contextmanager
def opened(path: Path | str, version: str | None = None) -> Generator[int]:
    """A handle to read a regular file from, closed at the end of the block.

    `version` is what `file_version` gave when the file was listed; None where nothing listed it. Raises
    `PixelFault("changed")` where the file has another version when it is opened, or another one at the end
    of the block than at its begin, also in place of a `PixelFault` of the block: bytes that were read while
    they were written prove nothing. Raises `PixelFault("unreadable")` for what the operating system does not
    hand out; a pipe or a socket does not block.
    """
    handle = _open(path, version)
    try:
        before = os.fstat(handle)
        if version is not None:
            _compare(before, version, "it was listed")
        try:
            yield handle
        except PixelFault:
            _compare(os.fstat(handle), file_version(before), "reading began")
            raise
        _compare(os.fstat(handle), file_version(before), "reading began")
    except OSError as error:
        raise _unreachable(error, None) from None
    finally:
        os.close(handle)


def stat_file(path: Path | str, version: str | None = None) -> os.stat_result:
    """What the operating system knows of the file at `path`, which still has the version that was listed.

    Raises `PixelFault("changed")` where it has another one, and "unreadable" where there is nothing to know.
    """
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:
        raise _unreachable(error, version) from None
    if version is not None:
        _compare(status, version, "it was listed")
    return status


def _open(path: Path | str, version: str | None) -> int:
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError) as error:
        raise _unreachable(error, version) from None
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        if version is not None:
            raise changed("there is no regular file under its name any more")
        raise PixelFault("unreadable", "not a regular file")
    return handle


def _compare(status: os.stat_result, version: str, since: str) -> None:
    if file_version(status) == version:
        return
    size = version.partition("-")[0]
    if size == str(status.st_size):
        raise changed(f"its modification time is another than when {since}")
    raise changed(f"it had {size} bytes when {since} and has {status.st_size} now")


def _unreachable(error: Exception, version: str | None) -> PixelFault:
    """The fault for a file that the operating system does not hand out."""
    if version is not None and isinstance(error, FileNotFoundError | NotADirectoryError):
        return changed("it was removed after it was listed")
    words = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return PixelFault("unreadable", f"the file cannot be read ({words})")


def changed(what: str) -> PixelFault:
    """The fault for a file of which two versions were met; `what` says how they differ."""
    words = f"the file changed during the run: {what}; run again when nothing writes to it"
    return PixelFault("changed", words)
