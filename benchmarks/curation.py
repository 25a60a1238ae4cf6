"""Curation's claims of speed: the exact gray measures, header-only filtering, Ray against local workers.

python -m benchmarks.curation
"""

from __future__ import annotations

import sys

from benchmarks import engines, gray_pass
from uhr.base.console import say


def main() -> None:
    """Print the numbers of each part and whether each claim holds; exit code 1 if one does not."""
    found = gray_pass.claims()
    for claim in engines.CLAIMS:
        measured = claim()
        found[f"{measured.text}: {measured.measured}"] = measured.holds
    say()
    for text, holds in found.items():
        say(f"{'holds' if holds else 'FAILS'}  {text}")
    sys.exit(0 if all(found.values()) else 1)


if __name__ == "__main__":
    main()
