"""The workers of a set, before the first image."""

import math

import pytest

from uhr.runtime.pool import Pool
from uhr.train.generate.workers import runner_of, startup_note


@pytest.mark.parametrize(
    ("options", "note"),
    [
        ((Pool(), "cpu"), "starting Ray; loading the model in 1 worker"),
        ((Pool(address="10.0.0.1:6379"), "cuda"), "starting Ray; loading the model in a worker per GPU"),
        ((Pool("local", 2), "cpu"), "loading the model in 2 workers"),
        ((Pool(workers=0), "cpu"), "loading the model"),
    ],
)
def test_a_note_says_what_happens_before_the_first_image(options, note):
    assert startup_note(runner_of(*options)) == note


def test_an_image_may_take_as_long_as_it_needs_and_its_worker_keeps_nothing_but_the_plan():
    runner = runner_of(Pool("ray", 2), "cpu")
    assert math.isinf(runner.limits.seconds)
    assert runner.carry


def test_every_module_that_a_worker_imports_early_exists():
    """A worker passes over a name that cannot be imported, and only starts more slowly."""
    import importlib

    from uhr.train.generate.work import IMPORTS

    for name in IMPORTS:
        importlib.import_module(name)
