"""Images and tiny checkpoints for the tests of scorers."""

import numpy as np
import pytest


@pytest.fixture(scope="session")
def images() -> list[np.ndarray]:
    """Five images of several sizes and contents, uint8 [H, W, 3]."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:90, 0:120]
    waves = np.stack([127 + 120 * np.sin(x / 9 + c) * np.cos(y / 7) for c in range(3)], axis=2)
    return [
        rng.integers(0, 256, (64, 64, 3), dtype=np.uint8),
        np.stack([np.full((70, 50), c) for c in (250, 20, 90)], axis=2).astype(np.uint8),
        waves.astype(np.uint8),
        np.repeat(np.repeat(rng.integers(0, 256, (8, 6, 3), dtype=np.uint8), 12, 0), 12, 1),
        (waves[::-1] // 2).astype(np.uint8),
    ]
