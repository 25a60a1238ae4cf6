"""Ctrl-C and SIGTERM: the first one asks to stop after the step, the second one stops at once."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Generator
from types import FrameType


class StopRequest:
    """Whether somebody asked to stop."""

    def __init__(self) -> None:
        self.asked = False

    def handle(self, number: int, frame: FrameType | None) -> None:
        """The signal handler."""
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        print(f"{name}: stopping after this step (again: at once)", file=sys.stderr, flush=True)


@contextlib.contextmanager
def stop_requests() -> Generator[StopRequest]:
    """Within it SIGINT and SIGTERM set `asked`. Outside the main thread, where Python delivers no signals, it
    does nothing.
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
