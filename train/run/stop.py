"""Stops a run on Ctrl-C or SIGTERM: the first after the current step, the second at once."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Generator
from types import FrameType


class StopRequest:
    """Whether a signal requested a stop."""

    def __init__(self) -> None:
        self.requested = False

    def handle(self, number: int, frame: FrameType | None) -> None:
        """The signal handler."""
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        print(f"{name}: stopping after this step (again: at once)", file=sys.stderr, flush=True)


@contextlib.contextmanager
def stop_requests() -> Generator[StopRequest]:
    """Handle SIGINT and SIGTERM in the block by setting `requested`.

    Does nothing outside the main thread, where Python delivers no signals.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    kept = {number: signal.signal(number, request.handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
