"""Read a file in one version: open it once, and compare it with its listed version before and after.

A source may be written to while it is read (by a sync client, an optimiser that works in place, a download).
Everything that is read by this module is from one version of the file; otherwise it is a fault of the kind
"changed".
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
def open_version(path: Path | str, version: str | None = None) -> Generator[int]:
    """Open a regular file for reading; yield its handle, which is closed at the end of the block.

    `version` is the `file_version` of the file when it was listed; None if it was not listed. Raises
    `PixelFault("changed")` if the file has another version when it is opened or at the end of the block, also
    in place of a `PixelFault` of the block, which may be due to the change, and `PixelFault("unreadable")`
    for a file that cannot be opened or is not a regular one; a pipe or a socket does not block.
    """
    handle, before = _open(path, version)
    try:
        if version is not None:
            _compare(before, version, "it was listed")
        try:
            yield handle
        except PixelFault:
            _compare_again(handle, before)
            raise
        _compare_again(handle, before)
    except OSError as error:
        raise _unreachable(error, None) from None
    finally:
        os.close(handle)


def stat_file(path: Path | str, version: str | None = None) -> os.stat_result:
    """Return `os.stat` of a file that still has the version that was listed.

    Raises `PixelFault("changed")` if it has another one, and "unreadable" if `os.stat` fails.
    """
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:
        raise _unreachable(error, version) from None
    if version is not None:
        _compare(status, version, "it was listed")
    return status


def _open(path: Path | str, version: str | None) -> tuple[int, os.stat_result]:
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError) as error:
        raise _unreachable(error, version) from None
    status = os.fstat(handle)
    if not stat.S_ISREG(status.st_mode):
        os.close(handle)
        if version is not None:
            raise changed("there is no regular file under its name any more")
        raise PixelFault("unreadable", "not a regular file")
    return handle, status


def _compare_again(handle: int, before: os.stat_result) -> None:
    now = os.fstat(handle)
    # the parts of a version: no text is made of them for every file
    if now.st_size != before.st_size or now.st_mtime_ns != before.st_mtime_ns:
        _compare(now, file_version(before), "reading began")


def _compare(status: os.stat_result, version: str, since: str) -> None:
    if file_version(status) == version:
        return
    size = version.partition("-")[0]
    if size == str(status.st_size):
        raise changed(f"its modification time is another than when {since}")
    raise changed(f"it had {size} bytes when {since} and has {status.st_size} now")


def _unreachable(error: Exception, version: str | None) -> PixelFault:
    """Return the fault for a file that cannot be opened."""
    if version is not None and isinstance(error, FileNotFoundError | NotADirectoryError):
        return changed("it was removed after it was listed")
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return PixelFault("unreadable", f"the file cannot be read ({text})")


def changed(what: str) -> PixelFault:
    """Return the fault for a file of which two versions were read; `what` describes their difference."""
    message = f"the file changed during the run: {what}; run again when nothing writes to it"
    return PixelFault("changed", message)
