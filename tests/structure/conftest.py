"""Fixtures of the tests of the layout."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def rules() -> ModuleType:
    """`import_rules.py` beside this file: which module may import which."""
    spec = importlib.util.spec_from_file_location("import_rules", Path(__file__).with_name("import_rules.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
