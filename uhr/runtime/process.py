"""The parent's handle on one child process: start it, look at it, kill it."""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

import psutil

from uhr.runtime.child import PAGE, PAGE_BYTES

_BOOT = (
    "import sys, json; sys.path[:] = json.loads(sys.argv[1]); "
    "from uhr.runtime.child import main; main(*map(int, sys.argv[2:5]), sys.argv[5:])"
)
_THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "OPENCV_FOR_THREADS_NUM",
    "ARROW_NUM_THREADS",
)
_LOG_BYTES = 1 << 20


@dataclass(frozen=True)
class Surroundings:
    """What a child finds when it starts: where modules are searched, how many threads it has, variables of
    its environment, modules that it imports before it is told what to do, and its working folder, which
    relative paths start from (None: that of its parent)."""

    path: Sequence[str]
    threads: int = 1
    environment: Mapping[str, str] = field(default_factory=dict)
    imports: Sequence[str] = ()
    folder: str | None = None


class Child:
    """A started child: process, socket, shared page, and a file for what it prints. It has nothing to do
    before `begin`."""

    def __init__(self, around: Surroundings) -> None:
        ours, theirs = socket.socketpair()
        page = _shared_page()
        self._page = mmap.mmap(page, PAGE_BYTES)
        PAGE.pack_into(self._page, 0, 0, -1, 0)
        self._log = tempfile.TemporaryFile("a+b")  # noqa: SIM115 - lives as long as the child
        numbers = [str(theirs.fileno()), str(page), str(os.getpid())]
        self.process = subprocess.Popen(
            # -P: the working folder must not shadow the standard library; `path` says where to search
            [sys.executable, "-P", "-c", _BOOT, json.dumps(around.path), *numbers, *around.imports],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            pass_fds=(theirs.fileno(), page),
            cwd=around.folder,
            env={
                # a thread that waits for others sleeps: spinning costs many times the work itself where
                # other processes want the cores
                "OMP_WAIT_POLICY": "passive",
                **os.environ,
                **dict.fromkeys(_THREAD_VARIABLES, str(around.threads)),
                **around.environment,
            },
        )
        theirs.close()
        os.close(page)
        self.connection = Connection(ours.detach())
        self._status = psutil.Process(self.process.pid)
        self._turn, self._elapsed, self._looked = -1, 0.0, time.monotonic()
        self._threads = around.threads

    def begin(self, folder: Path, work: bytes) -> None:
        """Give it a plan's folder and the pickled work, once, before its first unit."""
        # one that is gone already leaves a closed socket: `Worker.check` meets it and says so
        with contextlib.suppress(ConnectionError):
            self.connection.send((folder, work, self._threads))

    def turn(self) -> int:
        return PAGE.unpack_from(self._page)[0]

    def item(self) -> tuple[int, int]:
        """Index (-1: none) and step of the item that is being touched."""
        _, index, step = PAGE.unpack_from(self._page)
        return index, step

    def seconds_on_item(self) -> float:
        """How long the child has been at its item. A parent that was itself stopped (Ctrl-Z, a closed lid)
        saw nothing of that time, so no look counts for more than a second.
        """
        now = time.monotonic()
        if self.turn() != self._turn or self.item()[0] < 0:
            self._turn, self._elapsed = self.turn(), 0.0
        else:
            self._elapsed += min(now - self._looked, 1.0)
        self._looked = now
        return self._elapsed

    def rss(self) -> int:
        """Resident bytes; 0 once the process is gone."""
        try:
            return self._status.memory_info().rss
        except psutil.NoSuchProcess:
            return 0

    def trim_log(self) -> None:
        """A decoder that complains of every image must not fill the disk."""
        if os.fstat(self._log.fileno()).st_size > _LOG_BYTES:
            os.truncate(self._log.fileno(), 0)

    def last_words(self) -> str:
        """The last line that the child printed."""
        self._log.seek(max(0, self._log.seek(0, os.SEEK_END) - 2000))
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        return lines[-1].strip() if lines else ""

    def kill(self) -> int:
        """SIGKILL to the child and to whatever it started; afterwards nothing of it runs. How it ended: a
        signal as a negative number, or an exit code.
        """
        try:
            family = self._status.children(recursive=True)
        except psutil.NoSuchProcess:
            family = []
        for process in family:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue  # it ended on its own in the meantime, which is what we want
        self.process.kill()
        self.connection.close()
        try:
            return self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            # stuck inside the kernel (a dead network share): it is left to die when it can
            return -signal.SIGKILL


def _shared_page() -> int:
    """A file descriptor of one page that parent and child map."""
    if hasattr(os, "memfd_create"):
        page = os.memfd_create("uhr-item")
    else:
        with tempfile.TemporaryFile() as file:
            page = os.dup(file.fileno())
    os.truncate(page, PAGE_BYTES)
    return page


def how_it_ended(code: int) -> str:
    if code >= 0:
        return f"ended itself with exit code {code}"
    name = signal.Signals(-code).name
    if name == "SIGKILL":
        return "was killed (SIGKILL; most often because the machine ran out of memory)"
    return f"crashed ({name})"
