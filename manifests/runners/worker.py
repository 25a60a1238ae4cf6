"""The parent's side of one killable child: what every runner uses, so that a fault means the same on each.

A picture that hangs, crashes or eats memory costs its row, not the run: the parent sees it in the shared
page, kills the child, starts another, and does the unit again with that item marked.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_any
from pathlib import Path

import psutil

from uhr.base.errors import UserError
from uhr.base.files import human_bytes
from uhr.manifests.runners.child import PAGE, PAGE_BYTES
from uhr.manifests.units import CRASH, MEMORY_LIMIT, TIME_LIMIT, Fault, Limits, Work

POLL_SECONDS = 0.05
"""How often a child's time and memory are looked at."""

_BOOT = (
    "import sys, json; sys.path[:] = json.loads(sys.argv[1]); "
    "from uhr.manifests.runners.child import main; main(*map(int, sys.argv[2:]))"
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


def cores() -> int:
    """CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def search_path() -> list[str]:
    """This process's module search path with absolute folders: what a user's own class is found on in a
    child.
    """
    return [os.path.abspath(folder) for folder in sys.path]


class Worker:
    """One child process at a time, and the unit that it is at."""

    def __init__(
        self,
        folder: Path,
        work: Work | bytes,
        limits: Limits,
        path: list[str] | None = None,
        threads: int = 1,
    ) -> None:
        self._order = (folder.absolute(), work if isinstance(work, bytes) else pickle.dumps(work), threads)
        self._limits = limits
        self._path = search_path() if path is None else path
        self._threads = threads
        self._child: _Child | None = None
        self.unit: int | None = None

    def assign(self, unit: int) -> None:
        """Give the child its next unit; starts a child where there is none."""
        assert self.unit is None
        self.unit = unit
        self._faults: dict[int, Fault] = {}
        self._deaths: Counter[int] = Counter()
        self._send()

    def check(self) -> int | None:
        """The unit, once it is finished. Called again and again: this is also where limits are kept.

        Errors: what the work raised, or a child that keeps dying while it touches no item.
        """
        assert self.unit is not None
        child = self._child
        assert child is not None
        try:
            while child.connection.poll():
                kind, value = child.connection.recv()
                if kind == "error":
                    self.close()
                    what, fix, trace = value
                    error = UserError(what, fix)
                    error.add_note(trace)
                    raise error
                if kind == "done":
                    return self._finish(child)
        except (EOFError, ConnectionResetError):
            self._died(child)
            return None
        child.trim_log()
        overdue = child.seconds_on_item() > self._limits.seconds
        if overdue or child.rss() > self._limits.memory:
            self._kill(child, overdue)
        return None

    @property
    def connection(self) -> Connection:
        """What becomes ready when `check` has news."""
        assert self._child is not None
        return self._child.connection

    def finish(self) -> int:
        """Wait for the unit."""
        while (unit := self.check()) is None:
            wait_any([self.connection], timeout=POLL_SECONDS)
        return unit

    def close(self) -> None:
        """End the child, at once; its unfinished unit leaves nothing behind."""
        if self._child is not None:
            self._child.kill()
        self._child = None
        self.unit = None

    def _send(self) -> None:
        if self._child is None:
            self._child = _Child(self._order, self._path, self._threads)
        try:
            self._child.connection.send((self.unit, self._faults))
        except (BrokenPipeError, ConnectionResetError):
            self._died(self._child)

    def _finish(self, child: _Child) -> int | None:
        unit, self.unit = self.unit, None
        if child.rss() > self._limits.memory / 2:
            # what earlier units left behind must not count against the next one's items
            child.kill()
            self._child = None
        return unit

    def _kill(self, child: _Child, overdue: bool) -> None:
        turn = child.turn()
        child.kill()
        if child.turn() == turn or not overdue:
            limit = f"{self._limits.seconds:g} s" if overdue else human_bytes(self._limits.memory)
            kind = TIME_LIMIT if overdue else MEMORY_LIMIT
            words = f"took longer than {limit}" if overdue else f"needed more than {limit} of memory"
            self._blame(child, kind, words, tries=1 if overdue else 2)
        self._child = None
        self._send()

    def _died(self, child: _Child) -> None:
        code = child.kill()
        self._blame(child, CRASH, _how_it_ended(code), tries=2)
        self._child = None
        self._send()

    def _blame(self, child: _Child, kind: str, words: str, tries: int) -> None:
        """Mark the item that the child was at when it has ended `tries` children.

        One death may have come from outside (the system's memory killer, an operator), or from what earlier
        items left behind: the second one, in a fresh process, is the item's own.
        """
        index, step = child.item()
        self._deaths[index] += 1
        if index >= 0 and self._deaths[index] >= tries:
            self._faults[index] = Fault(kind, words, step)
        elif self._deaths[index] >= 3:
            tail = child.last_words()
            self.close()
            words = f"a worker process {words} three times while it touched no item"
            raise UserError(
                words + (f"; it said: {tail}" if tail else ""), "--workers 0 --debug shows the trace"
            )


class _Child:
    """A started child: process, socket, shared page, and a file for what it prints."""

    def __init__(self, order: tuple[Path, bytes, int], path: list[str], threads: int) -> None:
        ours, theirs = socket.socketpair()
        page = _shared_page()
        self._page = mmap.mmap(page, PAGE_BYTES)
        PAGE.pack_into(self._page, 0, 0, -1, 0)
        self._log = tempfile.TemporaryFile("a+b")  # noqa: SIM115 - lives as long as the child
        numbers = [str(theirs.fileno()), str(page), str(os.getpid())]
        self.process = subprocess.Popen(
            # -P: the working folder must not shadow the standard library; `path` says where to search
            [sys.executable, "-P", "-c", _BOOT, json.dumps(path), *numbers],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            pass_fds=(theirs.fileno(), page),
            env={**os.environ, **dict.fromkeys(_THREAD_VARIABLES, str(threads))},
        )
        theirs.close()
        os.close(page)
        self.connection = Connection(ours.detach())
        self._status = psutil.Process(self.process.pid)
        self._turn, self._elapsed, self._looked = -1, 0.0, time.monotonic()
        # one that is gone already leaves a closed socket: `Worker.check` meets it and says so
        with contextlib.suppress(ConnectionError):
            self.connection.send(order)

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
        """A decoder that complains of every picture must not fill the disk."""
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
        return self.process.wait()


def _shared_page() -> int:
    """A file descriptor of one page that parent and child map."""
    if hasattr(os, "memfd_create"):
        page = os.memfd_create("uhr-item")
    else:
        with tempfile.TemporaryFile() as file:
            page = os.dup(file.fileno())
    os.truncate(page, PAGE_BYTES)
    return page


def _how_it_ended(code: int) -> str:
    if code >= 0:
        return f"ended itself with exit code {code}"
    name = signal.Signals(-code).name
    if name == "SIGKILL":
        return "was killed (SIGKILL; most often because the machine ran out of memory)"
    return f"crashed ({name})"
