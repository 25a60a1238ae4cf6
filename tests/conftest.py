"""Fixtures that several rooms share."""

import importlib.util
import os
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import settings

# a busy machine is no failure
settings.register_profile("uhr", deadline=None)
settings.load_profile("uhr")
# tiny tensors are slower on two threads than on one, many times so where something else uses the cores
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def tiny_flux(tmp_path_factory) -> Path:
    """A tiny FLUX.1 checkpoint: diffusers folder, real classes, random weights. Read only."""
    from uhr.models.zoo import make_tiny

    return make_tiny("tiny-flux1", tmp_path_factory.mktemp("model") / "tiny flux1", seed=0)


@pytest.fixture(scope="session")
def tiny_flux2(tmp_path_factory) -> Path:
    """A tiny FLUX.2 [klein] checkpoint: diffusers folder, real classes, random weights. Read only."""
    from uhr.models.zoo import make_tiny

    return make_tiny("tiny-flux2", tmp_path_factory.mktemp("model2") / "tiny flux2", seed=0)


@pytest.fixture(scope="session")
def forge() -> ModuleType:
    """`forge.py` beside this file: pictures as bytes, in every format, mode and orientation."""
    spec = importlib.util.spec_from_file_location("forge", Path(__file__).with_name("forge.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def torture(tmp_path_factory) -> tuple[Path, list]:
    """The demo's folder of pictures and planted faults, and what each file is and becomes. Read only."""
    from uhr.demo_set import gather

    folder = tmp_path_factory.mktemp("torture") / "demo pictures"
    folder.mkdir()
    return folder, gather(folder, lambda n=1, note=None: None)
