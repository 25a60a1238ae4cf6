"""Small manifests with known content, and a way to run `uhr manifest` in this process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from uhr.curate.stages import example
from uhr.manifests import schema
from uhr.manifests.info import RuleInfo, StageInfo
from uhr.manifests.manifest import Manifest
from uhr.manifests.parts import PREVIEW_SCHEMA
from uhr.manifests.schema import REVIEW, sample_id, schema_of
from uhr.manifests.writer import Provenance, write_manifest

MEASURED = ("fetch", "header", "decode", "geometry", "flatness", "entropy", "exposure", "sharpness")
MEASURED += ("native_resolution", "exact_duplicates")
"""The stages whose columns the rows have."""

COLUMNS = schema.COLUMNS | {c.name: c for stage in MEASURED for c in example(stage).adds}
"""The columns of this package and of these stages."""

SCHEMA = schema_of(c for c in COLUMNS.values() if c.name != "split" and c not in REVIEW)
RULES = (
    RuleInfo(name="entropy", where="entropy >= 4", seen=100, rejected=40),
    RuleInfo(name="aesthetic", where="artimuse >= 50", state="not evaluated", why="no weights"),
)
JPEG = bytes.fromhex("ffd8ffe000104a46494600010100000100010000ffd9")


def make_row(number: int, **changes: Any) -> dict[str, Any]:
    """One consistent row: entropy runs from 0 to 7.9, below 4 is rejected; every 10th has failed."""
    uri = f"folder/{number:05d}.jpg"
    entropy = (number % 80) / 10
    row: dict[str, Any] = {"uri": uri, "sample_id": sample_id(uri), "license": f"CC{number % 2}"}
    if number % 10 == 9:
        row |= {"status": "failed", "reason": "not an image", "error": "no known image format"}
    else:
        kept = entropy >= 4
        row |= {"status": "kept" if kept else "rejected", "reason": None if kept else "entropy"}
        row |= {"entropy": entropy, "flat_fraction": entropy / 8, "width": 4000, "height": 3000 + number}
        row |= {
            "aspect_bucket": "4:3" if number % 3 else "1:1",
            "format": "JPEG",
            "content_hash": f"{number:064x}",
        }
    return row | changes


def make(out: Path, rows: Sequence[dict[str, Any]], **changes: Any) -> Manifest:
    """A committed manifest of these rows, with a preview of every row that did not fail."""
    batch = pa.RecordBatch.from_pylist(list(rows), schema=changes.get("schema", SCHEMA))
    shown = [
        {"sample_id": row["sample_id"], "jpeg": JPEG + row["uri"].encode(), "width": 320, "height": 240}
        for row in rows
        if row["status"] != "failed"
    ]
    written: dict[str, Any] = {
        "schema": SCHEMA,
        "batches": [batch],
        "previews": [pa.RecordBatch.from_pylist(shown, schema=PREVIEW_SCHEMA)],
    }
    written |= {name: changes.pop(name) for name in written.keys() & changes.keys()}
    provenance: dict[str, Any] = {
        "root": out.parent / "source",
        "operation": {"kind": "curate", "pipeline": {"name": "test"}},
        "stages": [StageInfo(name="entropy", version=1, fingerprint="f" * 64, adds=["entropy"])],
        "rules": RULES,
    }
    return write_manifest(out, provenance=Provenance(**(provenance | changes)), **written)


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    """100 rows in `tmp_path/set`: 36 kept, 54 rejected by entropy, 10 failed."""
    return make(tmp_path / "set", [make_row(number) for number in range(100)])


@pytest.fixture(scope="session", name="make_row")
def make_row_fixture() -> Callable[..., dict[str, Any]]:
    return make_row


@pytest.fixture(scope="session", name="make")
def make_fixture() -> Callable[..., Manifest]:
    return make
