"""The import directions of the house (docs/decisions/0001) and the names that nobody may import."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("curate", "manifests", "models", "train")

MAY_IMPORT = {
    "uhr.base": {"uhr.base"},
    "uhr.pixels": {"uhr.base", "uhr.pixels"},
    "uhr.runtime": {"uhr.base", "uhr.runtime"},
    "uhr.manifests": {"uhr.base", "uhr.pixels", "uhr.manifests"},
    "uhr.models": {"uhr.base", "uhr.pixels", "uhr.models"},
    "uhr.curate": {"uhr.base", "uhr.pixels", "uhr.runtime", "uhr.manifests", "uhr.models", "uhr.curate"},
    "uhr.train": {"uhr.base", "uhr.pixels", "uhr.runtime", "uhr.manifests", "uhr.models", "uhr.train"},
}


def sources(package: str) -> list[Path]:
    return sorted((ROOT / "uhr" / package.removeprefix("uhr.")).rglob("*.py"))


def imported(path: Path, everywhere: bool = True) -> set[str]:
    """Full names that a file imports; only at module level with `everywhere` off (TYPE_CHECKING left out)."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = ast.walk(tree) if everywhere else iter(tree.body)
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module or ""}
    return names


def within(name: str, packages: set[str]) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_a_room_imports_only_the_rooms_it_may(package):
    files = sources(package)
    assert files
    for path in files:
        ours = {name for name in imported(path) if within(name, {"uhr"})} - {"uhr", "uhr.__version__"}
        wrong = {name for name in ours if not within(name, MAY_IMPORT[package])}
        assert not wrong, f"{path} imports {wrong}"


def test_nothing_imports_the_rooms_by_their_bare_names():
    for path in [*ROOT.glob("uhr/**/*.py"), *ROOT.glob("tests/**/*.py"), *ROOT.glob("benchmarks/*.py")]:
        bare = {name for name in imported(path) if within(name, set(ROOMS))}
        assert not bare, f"{path} imports {bare}"


HEAVY = {"PIL", "cv2", "numba", "ray", "torch", "diffusers", "transformers", "ultralytics", "pyiqa"}


def test_manifests_loads_picture_and_cluster_packages_only_inside_functions():
    for path in sources("uhr.manifests"):
        heavy = {name for name in imported(path, everywhere=False) if within(name, HEAVY)}
        assert not heavy, f"{path} imports {heavy} at module level"


def test_the_command_starts_without_any_heavy_package():
    code = (
        f"import sys, uhr.cli; print(sorted(set(sys.modules) & {HEAVY | {'duckdb', 'pyarrow', 'numpy'}!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_four_rooms_are_relative_links_to_the_top_level():
    for room in ROOMS:
        assert os.readlink(ROOT / "uhr" / room) == f"../{room}"
