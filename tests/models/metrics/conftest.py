"""Images for the tests of metrics."""

import contextlib
import logging
import warnings

import numpy as np
import pytest


@pytest.fixture(scope="session")
def noise() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)


@pytest.fixture(scope="session")
def squares() -> np.ndarray:
    """96 x 72 px of squares, each of one colour."""
    rng = np.random.default_rng(0)
    rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    return np.repeat(np.repeat(rng.integers(0, 256, (8, 6, 3), dtype=np.uint8), 12, 0), 12, 1)


@pytest.fixture
def said():
    """`with said() as lines:` collects what transformers logs in the block, and all warnings."""

    @contextlib.contextmanager
    def collect():
        from transformers.utils import logging as transformers_logging

        lines = []
        handler = logging.Handler()
        handler.emit = lambda record: lines.append(record.getMessage())
        logger = logging.getLogger("transformers")
        # it says some things once in a process
        transformers_logging.warning_once.cache_clear()
        logger.addHandler(handler)
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                yield lines
            lines += [str(each.message) for each in caught]
        finally:
            logger.removeHandler(handler)

    return collect
