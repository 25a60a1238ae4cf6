"""Photographs and generated images for the metrics of artifacts."""

import numpy as np
import pytest

from benchmarks import artifacts


@pytest.fixture(scope="session")
def photos() -> dict[str, np.ndarray]:
    """Five photographs of scikit-image without anything twice."""
    names = ("astronaut.png", "camera.png", "chelsea.png", "coffee.png", "retina.jpg")
    return artifacts.photographs(*names)


@pytest.fixture(scope="session")
def discs() -> np.ndarray:
    """1024 px of opaque discs of all sizes."""
    return artifacts.leaves(np.random.default_rng(0), 1024, 1024)
