"""No file is so long that it must hold more than one concept."""

from pathlib import Path

ROOT = Path(__file__).parents[2]

FOLDERS = ("uhr", "curate", "manifests", "models", "train", "tests", "benchmarks")

MOST_LINES = 500


def too_long(root: Path) -> dict[str, int]:
    """The files with more than `MOST_LINES` lines, and how many each has."""
    files = [path for folder in FOLDERS for path in (root / folder).rglob("*.py")]
    lines = {str(path.relative_to(root)): len(path.read_text("utf-8").splitlines()) for path in files}
    return {name: count for name, count in lines.items() if count > MOST_LINES}


def test_no_file_has_more_than_500_lines():
    assert too_long(ROOT) == {}


def test_a_long_file_is_found_in_every_folder(tmp_path):
    for folder in FOLDERS:
        (tmp_path / folder / "deep").mkdir(parents=True)
        (tmp_path / folder / "deep" / "a.py").write_text("x = 1\n" * 501)
        (tmp_path / folder / "b.py").write_text("x = 1\n" * 500)
    assert too_long(tmp_path) == {f"{folder}/deep/a.py": 501 for folder in FOLDERS}
