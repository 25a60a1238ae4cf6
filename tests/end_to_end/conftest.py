"""The demo, once, in a folder with a space in its path: the road that the other tests walk on."""

import os
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass
class Walked:
    """Where the demo ran, what it printed and how it ended."""

    folder: Path
    code: int
    printed: str


@pytest.fixture(scope="session")
def walked(tmp_path_factory) -> Walked:
    """`uhr demo` in this process, from a working folder of its own."""
    import contextlib
    import io

    from uhr.cli import main

    folder = tmp_path_factory.mktemp("a newcomer's folder")
    before = Path.cwd()
    printed = io.StringIO()
    os.chdir(folder)
    try:
        with contextlib.redirect_stdout(printed):
            code = main(["demo"])
    finally:
        os.chdir(before)
    return Walked(folder, code, printed.getvalue())
