"""How many URLs of one host are fetched at once: by all processes of a machine, and by all machines that
fetch into one object store.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import time
import uuid
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

from uhr.base.files import write_json
from uhr.base.store import ObjectStore
from uhr.manifests.sources.fetching.http import host_of

COUNTED_AGAIN = 15.0
"""Seconds after which a machine says that it still fetches, and counts the others."""

SILENT = 60.0
"""Seconds without such a sign after which a machine counts as gone."""


class Hosts:
    """The places of each host: whoever fetches from it holds one of them.

    A place is a lock on a file in `folder`, which all processes of a machine share, and the machines of a
    cluster if the folder is theirs. With `machines`, each machine has its share of the places.
    """

    def __init__(self, folder: Path, places: int, machines: Machines | None = None) -> None:
        self._folder, self._places, self._machines = folder, places, machines

    @property
    def here(self) -> int:
        """The places of a host that this machine has now."""
        return self._places if self._machines is None else self._machines.share(self._places)

    @contextlib.contextmanager
    def holding(self) -> Generator[Callable[[str], None]]:
        """Yield a function that gives back the place that was held and waits for one of a URL's host: what
        waits for the host of a redirect holds no place of the host that it came from.
        """
        held: list[int] = []
        name = ""

        def take(url: str) -> None:
            nonlocal name
            host = host_of(url) or ""
            if held and host == name:
                return
            release()
            held.append(self._wait(host))
            name = host

        def release() -> None:
            while held:
                os.close(held.pop())

        try:
            yield take
        finally:
            release()

    def _wait(self, host: str) -> int:
        """Return the handle of a place of a host."""
        self._folder.mkdir(parents=True, exist_ok=True)
        name = hashlib.sha256(host.encode()).hexdigest()[:16]
        while True:
            for place in range(self.here):
                handle = os.open(
                    self._folder / f"{name}-{place}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666
                )
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    os.close(handle)
                    continue
                return handle
            time.sleep(0.02)


class Machines:
    """The machines that fetch into a store now. Each has an object there, written again while it fetches.

    Processes with the same `folder` are one machine.
    """

    def __init__(self, store: str, folder: Path) -> None:
        self._store = ObjectStore(store)
        self._file = folder / "machine.json"
        self._found: tuple[int, int] = (0, 1)
        self._until = 0.0

    def share(self, places: int) -> int:
        """Return how many of `places` this machine has: together all of them, and each at least one."""
        if time.monotonic() >= self._until:
            self._found = self._count()
            self._until = time.monotonic() + COUNTED_AGAIN / 4
        rank, count = self._found
        return max(1, places // count + (rank < places % count))

    def _count(self) -> tuple[int, int]:
        """Return the place of this machine among all that fetch, and their number."""
        with locked(self._file.with_suffix(".lock")):
            known: dict[str, Any] = {"name": uuid.uuid4().hex, "time": 0.0}
            with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):
                known = json.loads(self._file.read_bytes())
            if not 0 <= time.time() - known["time"] < COUNTED_AGAIN:
                name = known["name"]
                self._store.write(name, b"")
                # by the clock of the store: those of the machines may differ
                written = {each: when for each, (_, when) in self._store.states().items()}
                last = max(written.values(), default=0.0)
                here = sorted({name, *(each for each, when in written.items() if when >= last - SILENT)})
                place = {"rank": here.index(name), "count": len(here)}
                write_json(self._file, known := {"name": name, "time": time.time(), **place})
        return known["rank"], known["count"]


@contextlib.contextmanager
def locked(file: Path, lasting: bool = True) -> Generator[None]:
    """Hold a lock that one process or thread has at a time. lasting: whether its file stays."""
    file.parent.mkdir(parents=True, exist_ok=True)
    handle = -1
    try:
        while handle < 0 or not (lasting or _is_of(handle, file)):
            if handle >= 0:
                os.close(handle)  # whoever had the lock has removed the file
            handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
        if not lasting:
            file.unlink(missing_ok=True)
    finally:
        if handle >= 0:
            os.close(handle)


def _is_of(handle: int, file: Path) -> bool:
    """Whether an open file is the one that has this name now."""
    try:
        return os.path.samestat(os.fstat(handle), os.stat(file))
    except FileNotFoundError:
        return False
