"""Stops a run on Ctrl-C or SIGTERM: the first after the current step, the second at once."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Generator
from pathlib import Path
from types import FrameType

FILE = ".stop"
"""A file in a run's folder by which a process that receives signals asks one that does not to stop."""


class StopRequest:
    """Whether a signal, or `FILE`, requested a stop.

    announce: whether this process prints that and looks for `file`; true in one process of a run.
    """

    def __init__(self, file: Path, announce: bool) -> None:
        self._signalled, self._file, self._announce = False, file, announce

    @property
    def requested(self) -> bool:
        return self._signalled or (self._announce and self._file.exists())

    def handle(self, number: int, frame: FrameType | None) -> None:
        """The signal handler."""
        if self._signalled:
            raise KeyboardInterrupt
        self._signalled = True
        name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        if not self._announce:
            return
        print(f"{name}: stopping after this step (again: at once)", file=sys.stderr, flush=True)


@contextlib.contextmanager
def stop_requests(run: Path, announce: bool = True) -> Generator[StopRequest]:
    """Handle SIGINT and SIGTERM in the block by setting `requested`, as the file `FILE` in `run` does.

    Outside the main thread, where Python delivers no signals, only the file does.
    """
    request = StopRequest(run / FILE, announce)
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    kept = {number: signal.signal(number, request.handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
