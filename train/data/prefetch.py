"""Values that a background thread makes ahead, in order."""

from __future__ import annotations

import queue
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

T = TypeVar("T")

DEPTH = 2
"""Values that are ready at most, by default."""

_POLL = 0.05
"""Seconds after which the thread looks whether it is still needed."""


@dataclass(frozen=True)
class _Made(Generic[T]):
    number: int
    value: T | None = None
    error: Exception | None = None


class Prefetch(Generic[T]):
    """Calls `produce(first)`, `produce(first + 1)`, ... up to `stop` (exclusive) in one background thread.

    The values and their order are those of direct calls. An exception of `produce` is raised by the `take` of
    its number, after all values before it, and is the same object. The thread ends after the last number, at
    an exception, at `close`, and when the object is no longer referenced.

    depth: values that are ready at most. source: another one whose values `produce` takes, closed with this.
    """

    def __init__(
        self,
        produce: Callable[[int], T],
        first: int,
        stop: int,
        depth: int = DEPTH,
        source: Prefetch[Any] | None = None,
    ) -> None:
        self._source = source
        self._next: int | None = first
        self._ready: queue.Queue[_Made[T]] = queue.Queue(depth)
        self._over = threading.Event()
        # the thread has no reference to this object, which may therefore be collected
        self._thread = threading.Thread(
            target=_run, args=(produce, first, stop, self._ready, self._over), name="prefetch", daemon=True
        )
        self._finalizer = weakref.finalize(self, self._over.set)
        self._thread.start()

    def take(self, number: int) -> T:
        """Return the value of a number; each is taken once, in order."""
        assert number == self._next, f"{number} is taken where {self._next} is next"
        made = self._get()
        assert made.number == number
        if made.error is not None:
            self._next = None
            raise made.error
        self._next = number + 1
        return made.value  # ty: ignore[invalid-explicit-return]

    def _get(self) -> _Made[T]:
        while True:
            try:
                return self._ready.get(timeout=1)
            except queue.Empty:
                # what it put before it ended is in the queue
                assert self._thread.is_alive() or not self._ready.empty(), "the thread ended without a value"

    @property
    def next(self) -> int | None:
        """The number that is taken next; None after an exception."""
        return self._next

    def close(self) -> None:
        """End the thread, and wait until it has ended."""
        self._over.set()
        if self._source is not None:
            self._source.close()
        self._thread.join()


def _run(
    produce: Callable[[int], T],
    first: int,
    stop: int,
    ready: queue.Queue[_Made[T]],
    over: threading.Event,
) -> None:
    for number in range(first, stop):
        try:
            made = _Made(number, produce(number))
        except Exception as error:  # noqa: BLE001
            # raised where the value is taken
            made = _Made(number, error=error)
        if not _put(made, ready, over) or made.error is not None:
            return


def _put(made: _Made[T], ready: queue.Queue[_Made[T]], over: threading.Event) -> bool:
    """Put a value into the queue; False if it is no longer needed."""
    while not over.is_set():
        try:
            ready.put(made, timeout=_POLL)
        except queue.Full:
            continue
        return True
    return False
