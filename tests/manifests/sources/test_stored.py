"""Stored bytes: each content once, found by its hash, in parts that any Parquet reader reads."""

from __future__ import annotations

import hashlib

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from uhr.manifests.sources import stored
from uhr.manifests.sources.folder import Folder


@pytest.fixture
def folder(tmp_path, forge):
    """A folder with twelve images, two of them alike, and the batch of their rows."""
    place = tmp_path / "in"
    place.mkdir()
    rows = []
    for number in range(12):
        data = forge.encode(forge.image(90, 60, seed=number % 11), "JPEG", quality=90)
        (place / f"{number}.jpg").write_bytes(data)
        status = "rejected" if number == 3 else "kept"
        rows.append(
            {"content_hash": hashlib.sha256(data).hexdigest(), "uri": f"{number}.jpg", "status": status}
        )
    rows.append({"content_hash": None, "uri": "none.jpg", "status": "kept"})
    return Folder.at(place), pa.RecordBatch.from_pylist(rows)


def nothing(count=1, note=None) -> None:
    """Count nothing."""


@pytest.mark.parametrize("sizes", [(100, 2**24, 2**30), (2, 2**24, 2**30), (100, 5000, 9000)])
@pytest.mark.parametrize("everything", [False, True])
def test_each_content_is_stored_once_and_found_by_its_hash(folder, tmp_path, monkeypatch, sizes, everything):
    for name, value in zip(("GROUP_ROWS", "GROUP_BYTES", "PART_BYTES"), sizes, strict=True):
        monkeypatch.setattr(stored, name, value)
    source, batch = folder
    parts, lost = stored.write_pixels(tmp_path, [batch], source, everything, nothing)
    assert (sum(part.rows for part in parts), lost) == (11 if everything else 10, 0)
    assert (len(parts) > 1) == (sizes[2] == 9000)
    store = stored.PixelStore(str(tmp_path), [part.path for part in parts])
    for row in batch.to_pylist():
        if row["content_hash"] is None:
            continue
        found = store.read(row["content_hash"])
        expected = source.open(row).read() if everything or row["status"] == "kept" else None
        assert found == expected
    assert store.read("0" * 64) is store.read("f" * 64) is None
    again = stored.write_pixels(tmp_path, [batch], source, everything, nothing)
    assert again.parts == parts, "the same content gives the same bytes"


def test_a_file_that_changed_is_left_out_and_counted(folder, tmp_path):
    source, batch = folder
    (source.place / "1.jpg").write_bytes(b"another")
    (source.place / "2.jpg").unlink()
    parts, lost = stored.write_pixels(tmp_path, [batch], source, False, nothing)
    assert (sum(part.rows for part in parts), lost) == (8, 2)


def test_datasets_reads_the_parts_as_images(folder, tmp_path):
    source, batch = folder
    parts, _ = stored.write_pixels(tmp_path, [batch], source, True, nothing)
    files = [str(tmp_path / part.path) for part in parts]
    rows = datasets.Dataset.from_parquet(files, cache_dir=str(tmp_path / "cache"))
    rows = rows.cast_column("image", datasets.Image())
    assert rows[0]["image"].size == (90, 60)
    assert pq.ParquetFile(files[0]).schema_arrow.names == ["content_hash", "image"]
