"""The child process, which does the work and may be killed at any time; started by `worker.Worker`.

It receives tasks over a socket and sends "done" or an error back. Before it processes an item it writes the
item's index into a memory page shared with the parent, which takes a microsecond. If the child dies, the
parent reads there which item it was. What a task is given in memory the child asks for ("give"), so that the
parent never waits for a child that is still loading weights.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import mmap
import os
import pickle
import select
import signal
import struct
import sys
import threading
import traceback
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

PAGE = struct.Struct("<qqqqq")
"""Layout of the page: turn (increases with every item), index of the item in the unit (-1: none, -2: a
batch), step, number of items in the batch, number of items that are reported as done."""
PAGE_BYTES = mmap.PAGESIZE


def main(socket: int, page: int, parent: int, imports: Sequence[str]) -> None:
    """Entry point: import these modules, then process units until the parent closes the socket."""
    os.set_inheritable(socket, False)
    os.set_inheritable(page, False)
    _die_with(parent, socket)
    for name in imports:
        # errors are ignored here: the work imports the module too, and its error is sent to the parent
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    connection = Connection(socket)
    (folder, number), packed, threads = connection.recv()
    _serve(connection, mmap.mmap(page, PAGE_BYTES), (folder, number), packed, threads)


def _serve(
    connection: Connection, page: mmap.mmap, place: tuple[Path, int], packed: bytes, threads: int
) -> None:
    from uhr.runtime.heap import keep_freed_memory
    from uhr.runtime.units import UnitPlan

    keep_freed_memory()
    unit: int | None = None
    try:
        plan = UnitPlan.open(*place)
        work = pickle.loads(packed)
        work.open()
        _one_thread_each(threads)
        watch = _page_watch(page)
        while True:
            unit, faults, takes = connection.recv()
            given = None
            if takes:
                connection.send(("give", unit))
                given = connection.recv_bytes()
            watch.forget(faults)
            passed = work.do(plan, unit, watch, given)
            watch.end()
            connection.send(("done", passed is not None))
            if passed is not None:
                connection.send_bytes(passed)
            given = passed = None
    except EOFError:
        return
    except Exception as error:  # noqa: BLE001 - every error goes to the parent, which raises it there
        from uhr.runtime.inline import unit_error

        report = unit_error(error, unit, place[0])
        # the type stays here: an error of the user's own class may not be importable in the parent
        connection.send(("error", (report.what, report.fix, report.give, traceback.format_exc())))


def _page_watch(page: mmap.mmap) -> Any:
    from uhr.runtime.units import BATCH, UnitFault, Watch

    class PageWatch(Watch):
        """Writes the current item to the page that the parent reads."""

        def __init__(self) -> None:
            super().__init__()
            self._turn, self._index, self._step, self._count, self._done = 0, -1, 0, 1, 0

        def forget(self, faults: dict[int, UnitFault]) -> None:
            """Start a new unit; `faults` are its items that ended earlier attempts."""
            self._faults, self._done = faults, 0
            self._record(-1, 0)

        def end(self) -> None:
            # the next unit begins at none
            self._done = 0
            super().end()

        def done(self, count: int) -> None:
            self._done = count
            PAGE.pack_into(page, 0, self._turn, self._index, self._step, self._count, count)

        def _record(self, index: int, step: int, count: int = 1) -> None:
            if index != self._index or index == BATCH:
                self._turn += 1
                self._index = index
            self._step, self._count = step, count
            PAGE.pack_into(page, 0, self._turn, index, step, count, self._done)

    return PageWatch()


def _die_with(parent: int, socket: int) -> None:
    """End this process when the parent is gone; on Linux also during a call that does not release the
    GIL.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then kills us
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)  # the parent died before the line above
    threading.Thread(target=_exit_on_hang_up, args=(socket,), daemon=True).start()


def _exit_on_hang_up(socket: int) -> None:
    poll = select.poll()
    poll.register(socket, 0)  # only POLLHUP and POLLERR, which are always reported
    poll.poll()
    os._exit(1)


def _one_thread_each(threads: int) -> None:
    """Limit the libraries that environment variables do not reach: the worker processes use all cores."""
    import pyarrow as pa

    pa.set_cpu_count(threads)
    if "cv2" in sys.modules:
        sys.modules["cv2"].setNumThreads(threads)
