"""Images for the tests of metrics."""

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
