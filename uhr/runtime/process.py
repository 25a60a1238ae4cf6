"""The parent's handle of one child process: start it, observe it, kill it."""

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
class ChildSetup:
    """How a child is started.

    Args:
        path: its module search path.
        threads: its number of threads.
        environment: additional environment variables.
        imports: modules that it imports before it receives its work.
        folder: its working folder. None: that of its parent.
    """

    path: Sequence[str]
    threads: int = 1
    environment: Mapping[str, str] = field(default_factory=dict)
    imports: Sequence[str] = ()
    folder: str | None = None


class Child:
    """A started child: process, socket, shared page, and a file with its output. It waits for `begin`."""

    def __init__(self, setup: ChildSetup) -> None:
        ours, theirs = socket.socketpair()
        page = _shared_page()
        self._page = mmap.mmap(page, PAGE_BYTES)
        PAGE.pack_into(self._page, 0, 0, -1, 0, 1, 0)
        self._log = tempfile.TemporaryFile("a+b")  # noqa: SIM115 - lives as long as the child
        numbers = [str(theirs.fileno()), str(page), str(os.getpid())]
        self.process = subprocess.Popen(
            # -P: the working folder must not shadow the standard library; `path` says where to search
            [sys.executable, "-P", "-c", _BOOT, json.dumps(setup.path), *numbers, *setup.imports],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            pass_fds=(theirs.fileno(), page),
            cwd=setup.folder,
            env={
                # a thread that waits for others sleeps: spinning takes many times as long as the work if
                # other processes need the cores
                "OMP_WAIT_POLICY": "passive",
                **os.environ,
                **dict.fromkeys(_THREAD_VARIABLES, str(setup.threads)),
                **setup.environment,
            },
        )
        theirs.close()
        os.close(page)
        self.connection = Connection(ours.detach())
        self._status = psutil.Process(self.process.pid)
        self._turn, self._elapsed, self._looked = -1, 0.0, time.monotonic()
        self._threads = setup.threads

    def begin(self, place: tuple[Path, int], work: bytes) -> None:
        """Send a plan's folder and number and the pickled work, once, before the first task."""
        # if the child is dead, the socket is closed: `Worker.check` handles it
        with contextlib.suppress(ConnectionError):
            self.connection.send((place, work, self._threads))

    def turn(self) -> int:
        return PAGE.unpack_from(self._page)[0]

    def item(self) -> tuple[int, int]:
        """Return index (-1: none, -2: a batch) and step of the item that is being processed."""
        _, index, step, *_ = PAGE.unpack_from(self._page)
        return index, step

    def items(self) -> int:
        """Return how many items are being processed together: 1, or the size of the batch."""
        return PAGE.unpack_from(self._page)[3]

    def done(self) -> int:
        """Return how many items of its unit are done, as far as the work reports it."""
        return PAGE.unpack_from(self._page)[4]

    def seconds_on_item(self) -> float:
        """Return how long the child has been processing its item.

        Each call counts at most one second since the last, so that the time in which the parent itself was
        stopped (Ctrl-Z, suspend) is not counted.
        """
        now = time.monotonic()
        if self.turn() != self._turn or self.item()[0] == -1:
            self._turn, self._elapsed = self.turn(), 0.0
        else:
            self._elapsed += min(now - self._looked, 1.0)
        self._looked = now
        return self._elapsed

    def rss(self) -> int:
        """Return the resident memory in bytes; 0 if the process is gone."""
        try:
            return self._status.memory_info().rss
        except psutil.NoSuchProcess:
            return 0

    def trim_log(self) -> None:
        """Truncate a long log, so that a decoder that warns about every image does not fill the disk."""
        if os.fstat(self._log.fileno()).st_size > _LOG_BYTES:
            os.truncate(self._log.fileno(), 0)

    def last_line(self) -> str:
        """Return the last line that the child printed."""
        self._log.seek(max(0, self._log.seek(0, os.SEEK_END) - 2000))
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        return lines[-1].strip() if lines else ""

    def kill(self) -> int:
        """Kill the child and its descendants. Return the exit code, or the signal as a negative number."""
        try:
            family = self._status.children(recursive=True)
        except psutil.NoSuchProcess:
            family = []
        for process in family:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue  # it has ended in the meantime
        self.process.kill()
        self.connection.close()
        try:
            return self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            # blocked in the kernel (a dead network share): it ends when the kernel returns
            return -signal.SIGKILL


def _shared_page() -> int:
    """Return a file descriptor of one page that parent and child map."""
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
