"""The built wheel contains the packages themselves and works beside anybody's `train.py` and `models/`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The wheel, built from this tree and installed alone into a folder."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder / "dist"), "."]
    subprocess.run(pip + build, cwd=_copy_of_tree(folder), check=True, capture_output=True, text=True)
    (wheel,) = (folder / "dist").glob("uhr-*.whl")
    target = folder / "site"
    subprocess.run([*pip, "install", "--no-deps", "--target", str(target), str(wheel)], check=True)
    return target


def _copy_of_tree(folder: Path) -> Path:
    """What git would hand out: building in place would leave `build/` behind."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True,
    )  # fmt: skip
    tree = folder / "tree"
    for name in filter(None, listed.stdout.decode().split("\0")):
        source, copy = ROOT / name, tree / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        if source.is_symlink():
            copy.symlink_to(os.readlink(source))
        elif source.exists():
            copy.write_bytes(source.read_bytes())
    return tree


def test_the_wheel_works_beside_a_decoy_train_and_models(installed, tmp_path):
    (tmp_path / "train.py").write_text("raise SystemExit('the decoy train.py was imported')")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "__init__.py").write_text("raise SystemExit('the decoy models was imported')")
    code = (
        "import uhr.curate.cli, uhr.manifests.cli, uhr.models.cli, uhr.train.cli, uhr.cli;"
        "print(uhr.curate.cli.__file__); raise SystemExit(uhr.cli.main(['curate', 'show', 'quickstart']))"
    )
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(installed))
    assert "entropy" in done.stdout


def test_the_wheel_holds_presets_templates_and_no_tests(installed):
    assert list(installed.glob("uhr/curate/presets/*.yaml"))
    assert list(installed.glob("uhr/manifests/report/*.html"))
    assert list(installed.glob("uhr/manifests/browse/*.js"))
    assert not (installed / "tests").exists()
    assert not (installed / "curate").exists()
