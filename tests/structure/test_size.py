"""Files that fit a reader's head."""

import statistics
from pathlib import Path

ROOT = Path(__file__).parents[2]


def lines_per_file() -> dict[str, int]:
    rooms = ("uhr", "curate", "manifests", "models", "train")
    files = {path.resolve() for room in rooms for path in (ROOT / room).rglob("*.py")}
    counts = {
        str(p.relative_to(ROOT.resolve())): len(p.read_text(encoding="utf-8").splitlines()) for p in files
    }
    return {name: count for name, count in counts.items() if count > 0}


def test_the_median_file_is_under_200_lines_and_none_is_over_400():
    counts = lines_per_file()
    assert statistics.median(counts.values()) < 200
    assert not {name: count for name, count in counts.items() if count > 400}
