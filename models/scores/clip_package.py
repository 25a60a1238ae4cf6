"""Lets OpenAI's package `clip` be imported, on which pyiqa and ultralytics build."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Generator
from types import ModuleType


@contextlib.contextmanager
def clip_importable() -> Generator[None]:
    """Give `clip` in the block what it takes from `pkg_resources`, which newer setuptools lacks."""
    name = "pkg_resources"
    if name in sys.modules or importlib.util.find_spec(name) is not None:
        yield
        return
    import packaging.version

    substitute = ModuleType(name)
    substitute.packaging = packaging  # ty: ignore[missing-attribute]
    sys.modules[name] = substitute
    try:
        yield
    finally:
        del sys.modules[name]
