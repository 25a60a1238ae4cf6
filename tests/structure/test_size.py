"""No file and no folder is so large that it must contain more than one concept."""

from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[2]

PACKAGES = ("uhr", "curate", "manifests", "models", "train")

FOLDERS = (*PACKAGES, "tests", "benchmarks")

MOST_LINES = 500

MOST_MODULES = 15


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


def too_full(root: Path) -> dict[str, int]:
    """The folders of the packages with more than `MOST_MODULES` modules, and how many each has."""
    folders = Counter(
        str(path.parent.relative_to(root)) for name in PACKAGES for path in (root / name).rglob("*.py")
    )
    return {name: count for name, count in folders.items() if count > MOST_MODULES}


def test_no_folder_has_more_than_15_modules():
    assert too_full(ROOT) == {}


def test_a_full_folder_is_found_in_every_package(tmp_path):
    for package in PACKAGES:
        for number in range(16):
            (tmp_path / package / "deep").mkdir(parents=True, exist_ok=True)
            (tmp_path / package / "deep" / f"m{number}.py").touch()
        (tmp_path / package / "a.py").touch()
    assert too_full(tmp_path) == {f"{package}/deep": 16 for package in PACKAGES}
