"""The names of a run's data sets on the command line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from uhr.base.paths import anywhere

_NAMED = re.compile(r"([A-Za-z][A-Za-z0-9_-]*)=(.+)", re.DOTALL)


class NamedPath(NamedTuple):
    """A folder of encoded data or its address, and the name that the user gave it; None leaves the name to
    the recipe.
    """

    name: str | None
    path: Path | str


def named_path(text: str) -> NamedPath:
    """Read `NAME=DIR` or `DIR`. A text that is a path of this machine is a path, also with `=` in it.

    Raises UserError for a URL that is not `s3://bucket/prefix`.
    """
    match = _NAMED.fullmatch(text)
    if match is None or Path(text).exists():
        return NamedPath(None, anywhere("--data")(text))
    return NamedPath(match[1], anywhere("--data")(match[2]))
