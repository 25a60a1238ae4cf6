"""Manifests of every schema version that was ever released: `versions/N/` is one of version N, as written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from uhr.cli import main
from uhr.manifests.info import MIGRATIONS
from uhr.manifests.manifest import Manifest
from uhr.manifests.schema import SCHEMA_VERSION
from uhr.manifests.verify.verification import verify

VERSIONS = Path(__file__).parent / "versions"


def test_there_is_a_manifest_and_a_migration_of_every_version() -> None:
    assert {path.name for path in VERSIONS.iterdir()} == {str(n + 1) for n in range(SCHEMA_VERSION)}
    assert sorted(MIGRATIONS) == list(range(1, SCHEMA_VERSION))


@pytest.mark.parametrize("version", range(1, SCHEMA_VERSION + 1))
def test_every_version_opens_verifies_and_can_be_sliced(version: int, tmp_path: Path) -> None:
    folder = shutil.copytree(VERSIONS / str(version), tmp_path / "set")
    tree = json.loads((folder / "manifest.json").read_text())
    assert tree["schema_version"] == version
    manifest = Manifest.open(folder)
    assert manifest.id == tree["id"]
    assert manifest.table().num_rows == tree["counts"]["rows"] == 15
    assert len(manifest.previews(manifest.table(["sample_id"])["sample_id"].to_pylist())) == 13
    assert verify(folder).faults == []
    out = tmp_path / "slice"
    assert main(["manifest", "slice", str(folder), "--where", "entropy > 5", "--out", str(out)]) == 0
    made = Manifest.open(out)
    assert made.info.schema_version == SCHEMA_VERSION
    assert made.info.parents[0].id == tree["id"]
    assert verify(out).faults == []
