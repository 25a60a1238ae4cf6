"""Several requests at a time, with a bound."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import CancelledError, ThreadPoolExecutor
from typing import TypeVar

from uhr.models.llm.chat import NoAnswer

T = TypeVar("T")
R = TypeVar("R")


def answers(ask: Callable[[T], R], items: Iterable[T], concurrency: int) -> list[R | NoAnswer]:
    """Call `ask` for each item, for at most `concurrency` at the same time, and return in their order what
    it returns, or the NoAnswer that it raises.

    Any other error ends the whole call: calls that have not started by then are never made.
    """

    failed = threading.Event()

    def one(item: T) -> R | NoAnswer:
        if failed.is_set():
            # a thread takes the next item before the first error reaches the caller
            raise CancelledError
        try:
            return ask(item)
        except NoAnswer as error:
            return error
        except BaseException:
            failed.set()
            raise

    pool = ThreadPoolExecutor(concurrency)
    try:
        return list(pool.map(one, items))
    finally:
        pool.shutdown(cancel_futures=True)
