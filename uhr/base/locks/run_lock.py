"""A lock that lets one run at a time work in a folder."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Generator
from pathlib import Path

from uhr.base.errors import UserError

NAME = "lock"


@contextlib.contextmanager
def only_run(folder: Path, where: object = None) -> Generator[None]:
    """Hold the lock of `folder` while the block runs. Raises UserError if another process has it.

    The system releases the lock when the process ends, in whatever way. `where` names the place in the
    error; None is the parent of `folder`.
    """
    handle = _take(folder, folder.parent if where is None else where)
    try:
        yield
    finally:
        os.close(handle)


def is_held(folder: Path) -> bool:
    """Whether a process has the lock of `folder` now."""
    try:
        # read-only: looking must also work on a disk that is mounted read-only
        handle = os.open(folder / NAME, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        return not _locked(handle)
    finally:
        os.close(handle)


def _take(folder: Path, where: object) -> int:
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            handle = os.open(folder / NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except FileNotFoundError:
            continue  # a run that just finished removed the folder between the two lines
        if not _locked(handle):
            os.close(handle)
            raise UserError(f"another run is at work in {where}", "wait for it, or stop it")
        if _same_file(handle, folder / NAME):
            return handle
        os.close(handle)


def _locked(handle: int) -> bool:
    """Take the lock if nobody has it."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _same_file(handle: int, path: Path) -> bool:
    """Whether the name is still that of the locked file: the run before this one may have removed it."""
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False
