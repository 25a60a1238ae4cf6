"""The demo's folder of images is as users have them: each planted fault ends as expected, and planting is
deterministic.
"""

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from uhr.demo.faults import plant
from uhr.demo.scenes import SCENES
from uhr.manifests.manifest import Manifest


@pytest.fixture(scope="module")
def folder(walked) -> Path:
    """The images of the demo."""
    return walked.folder / "demo" / "pictures"


@pytest.fixture(scope="module")
def curated(walked) -> dict[str, dict]:
    """The rows of the demo's manifest, by name."""
    rows = Manifest.open(walked.folder / "demo" / "manifest").table().to_pylist()
    return {row["uri"]: row for row in rows}


def test_every_file_is_one_row_and_sidecars_are_none(walked, folder, curated) -> None:
    assert set(curated) == {file.name for file in walked.planted}
    sidecars = [p for p in folder.rglob("*") if p.suffix in (".txt", ".json") and p.name != "notes.txt"]
    assert len(sidecars) >= 15


def test_each_file_has_the_result_that_it_was_planted_for(walked, curated) -> None:
    expected = {file.name: (file.status, file.reason) for file in walked.planted}
    assert {name: (row["status"], row["reason"]) for name, row in curated.items()} == expected
    assert {status for status, _ in expected.values()} == {"kept", "rejected", "failed"}


def test_faults_are_described_in_words(curated) -> None:
    for row in curated.values():
        assert (row["status"] == "failed") == bool(row["error"])


def test_sidecars_are_in_their_images_rows(folder, curated) -> None:
    cat = curated["photographs/chelsea.png"]
    sidecar = json.loads((folder / "photographs" / "chelsea.json").read_text())
    assert (cat["caption"], cat["author"], cat["license"]) == tuple(
        sidecar[key] for key in ("caption", "author", "license")
    )
    scene = curated["scenes/marble-2160x3840.jpg"]
    assert scene["caption"] == (folder / "scenes" / "marble-2160x3840.txt").read_text().strip()


def test_what_was_enlarged_shows_and_what_is_native_does_not(curated) -> None:
    assert 2.5 < curated["planted/enlarged.jpg"]["upscale_ratio"] < 5
    for name, row in curated.items():
        if name.startswith("scenes/"):
            assert row["upscale_ratio"] < 1.3, name
    assert curated["scenes/marble-2160x3840.jpg"]["megapixels"] >= 8.2944


def test_every_scene_of_the_demo_is_of_4k() -> None:
    for name, _, _, height, width in SCENES:
        assert height * width >= 3840 * 2160
        assert f"-{width}x{height}." in name


def test_a_rotated_image_has_its_displayed_size(curated) -> None:
    row = curated["planted/rotated.jpg"]
    assert (row["width"], row["height"], row["orientation"]) == (600, 500, 6)


def test_planting_again_gives_the_same_bytes(folder, tmp_path) -> None:
    shutil.copytree(folder / "photographs", tmp_path / "photographs")
    plant(tmp_path / "planted", tmp_path / "photographs", lambda n=1, note=None: None)
    assert _hashes(tmp_path / "planted") == _hashes(folder / "planted")


def _hashes(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir() if p.is_file()}
