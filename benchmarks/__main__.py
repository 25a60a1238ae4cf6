"""Runs every benchmark, or those named: `python -m benchmarks [NAME...]`. Exit code 1 if a claim fails."""

from __future__ import annotations

import importlib
import sys

from uhr.base.console import say
from uhr.base.errors import UserError, unknown

NAMES = (
    "curation",
    "growth",
    "native_resolution",
    "duplicates",
    "attention",
    "vae_tiling",
    "reader",
    "training_step",
    "manifests",
    "artifacts",
)
"""Modules next to this file with a `main()`. A new benchmark is one file and one name here."""


def run(names: list[str]) -> int:
    """Exit code: 0 where every claim holds, else 1."""
    for name in names:
        if name not in NAMES:
            raise unknown("benchmark", name, NAMES)
    failed = []
    for name in names or NAMES:
        say(f"\n== {name}")
        try:
            importlib.import_module(f"benchmarks.{name}").main()
        except SystemExit as exit:
            if exit.code:
                failed.append(name)
    say(f"\n{'not everything holds: ' + ', '.join(failed) if failed else 'every claim holds'}")
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(run(sys.argv[1:]))
    except UserError as error:
        sys.exit(f"benchmarks: {error}")
