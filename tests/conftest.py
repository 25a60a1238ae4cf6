"""Fixtures that several rooms share."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny_flux(tmp_path_factory) -> Path:
    """A tiny FLUX.1 checkpoint: diffusers folder, real classes, random weights. Read only."""
    from uhr.models.zoo import make_tiny

    return make_tiny("tiny-flux1", tmp_path_factory.mktemp("model") / "tiny flux1", seed=0)
