"""Files of this machine that can be made again at any time, up to a limit, shared by its processes."""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
import time
import uuid
import zlib
from collections.abc import Callable, Generator
from pathlib import Path

from uhr.base.files import saving

_ABANDONED = 3600.0
"""Seconds after which a file that is not finished is one of a process that was killed."""

PROCESSES = 16
"""Processes that may fill the folder at one time without exceeding the limit: each looks at what is there
when it has written this part of what was free."""

_LOCKS = 64
_FULL = "free space there, move the cache by XDG_CACHE_HOME, or lower its limit"


class DiskCache:
    """A folder of files whose names end with `-SIZE`, their bytes on disk. Those that were used longest ago
    are removed first.

    A file is made by one process at a time, and the others wait for it. It appears whole, and may be removed
    by another process at any time; who has it open or mapped keeps it.

    limit: of all files together, in bytes; one file may be larger.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder, limit
        self._free = 0
        self._lock = threading.Lock()

    def get(self, name: str, make: Callable[[Path], None]) -> Path:
        """Return the file of a name. If there is none, `make` writes it to the path that it is given; it must
        not use the cache.

        Raises UserError if the disk is full; what `make` raises passes unchanged.
        """
        path = self.folder / name
        if not _touched(path):
            with saving(self.folder, _FULL):
                self.folder.mkdir(parents=True, exist_ok=True)
                with self._only(f"lock-{zlib.crc32(name.encode()) % _LOCKS:02d}"):
                    if not _touched(path):
                        self._reserve(_size(name))
                        _write(path, make)
        return path

    def remove(self, name: str) -> bool:
        """Remove a file; return whether there was one."""
        try:
            (self.folder / name).unlink()
        except FileNotFoundError:
            return False
        return True

    def _reserve(self, size: int) -> None:
        """Remove files until another one of this size is within the limit."""
        with self._lock:
            self._free -= size
            if self._free >= 0:
                return
            with self._only("lock-all"):
                files = sorted(_files(self.folder))
                total = size + sum(each for _, each, _ in files)
                if total > self.limit:
                    for _, each, path in files:
                        # below it, so that not every file is followed by a look at all others
                        if total <= self.limit * 9 // 10:
                            break
                        path.unlink(missing_ok=True)
                        total -= each
            self._free = max(0, self.limit - total) // PROCESSES

    @contextlib.contextmanager
    def _only(self, name: str) -> Generator[None]:
        """Be the only thread of this machine in this block for the name."""
        with open(self.folder / f".{name}", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _write(path: Path, make: Callable[[Path], None]) -> None:
    # not `files.atomic`: what a crash of the machine damages is fetched again, and nobody waits for the disk
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        make(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _touched(path: Path) -> bool:
    """Note that a file is used; return whether it exists."""
    try:
        os.utime(path)
    except FileNotFoundError:
        return False
    return True


def _files(folder: Path) -> Generator[tuple[float, int, Path]]:
    """When each file was used last, its size, and its path. What killed processes have left is among them."""
    for entry in os.scandir(folder):
        with contextlib.suppress(FileNotFoundError):
            used, is_hidden = entry.stat().st_mtime, entry.name.startswith(".")
            if not is_hidden:
                yield used, _size(entry.name), Path(entry)
            elif entry.name.endswith(".tmp") and time.time() - used > _ABANDONED:
                yield used, _size(entry.name.split(".")[1]), Path(entry)


def _size(name: str) -> int:
    return int(name.rpartition("-")[2])
