"""A thread that makes values ahead: the same values in the same order, the same errors, and an end."""

import gc
import threading
import time

import pytest

from uhr.base.errors import UserError
from uhr.train.data.prefetch import DEPTH, Prefetch


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


def wait_until(condition):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.01)


def test_values_come_in_order_and_only_a_few_are_made_ahead():
    made: list[int] = []

    def produce(number):
        made.append(number)
        return number**2

    ahead = Prefetch(produce, 3, 40)
    # those in the queue, and one that waits for a place
    wait_until(lambda: len(made) == DEPTH + 1)
    time.sleep(0.1)
    assert made == [3, 4, 5]
    assert [ahead.take(number) for number in range(3, 40)] == [number**2 for number in range(3, 40)]
    ahead.close()
    assert made == list(range(3, 40))


def test_an_error_is_raised_where_its_value_is_taken_and_is_the_same_object():
    error = UserError("a.parquet, row group 3, row 1, sample x: bad page", "copy the file again")

    def produce(number):
        if number == 2:
            raise error
        return number

    ahead = Prefetch(produce, 0, 9)
    assert [ahead.take(0), ahead.take(1)] == [0, 1]
    with pytest.raises(UserError) as caught:
        ahead.take(2)
    assert caught.value is error
    assert ahead.next is None
    wait_until(lambda: not threads())


def test_it_ends_when_it_is_closed_and_when_nothing_refers_to_it():
    for end in ("close", "forget"):
        ahead = Prefetch(lambda number: number, 0, 10**9)
        ahead.take(0)
        assert threads()
        if end == "close":
            ahead.close()
            assert not threads()
        else:
            del ahead
            gc.collect()
            wait_until(lambda: not threads())


def test_a_number_out_of_order_is_refused():
    ahead = Prefetch(lambda number: number, 0, 5)
    with pytest.raises(AssertionError, match="1 is taken where 0 is next"):
        ahead.take(1)
    ahead.close()
