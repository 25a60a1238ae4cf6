"""Claims of benchmarks, and the end of those that print them."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NoReturn

from uhr.base.console import say


@dataclass(frozen=True)
class Claim:
    """A claim, the measured value, and whether it holds; None where it is a comparison without an aim."""

    text: str
    measured: str
    holds: bool | None


def conclude(found: Mapping[str, bool | None]) -> NoReturn:
    """Print whether each claim holds, and end with exit code 1 if one does not."""
    say()
    for text, holds in found.items():
        say(f"{'FAILS' if holds is False else 'holds'}  {text}")
    sys.exit(1 if False in found.values() else 0)
