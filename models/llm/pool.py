"""Several requests at a time, with a bound."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from uhr.models.llm.chat import NoAnswer

T = TypeVar("T")
R = TypeVar("R")


def answers(ask: Callable[[T], R], items: Iterable[T], concurrency: int) -> list[R | NoAnswer]:
    """Call `ask` for each item, for at most `concurrency` at the same time, and return in their order what
    it returns, or the NoAnswer that it raises.

    Any other error ends the whole call: what has not started by then is not asked.
    """

    def one(item: T) -> R | NoAnswer:
        try:
            return ask(item)
        except NoAnswer as error:
            return error

    pool = ThreadPoolExecutor(concurrency)
    try:
        return list(pool.map(one, items))
    finally:
        pool.shutdown(cancel_futures=True)
