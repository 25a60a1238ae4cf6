"""A manifest is read by other people's tools, with no code of ours."""

from pathlib import Path

import duckdb
import pandas
import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from uhr.manifests.manifest import Manifest

KEPT = 36
"""Rows of the fixture that are kept."""


def test_duckdb_reads_it(manifest: Manifest) -> None:
    query = f"SELECT count(*), min(entropy) FROM '{manifest.path}/samples/*.parquet' WHERE status = 'kept'"
    assert duckdb.connect().sql(query).fetchall() == [(KEPT, 4.0)]


def test_polars_reads_it(manifest: Manifest) -> None:
    frame = polars.read_parquet(manifest.path / "samples" / "*.parquet")
    assert frame.filter(polars.col("status") == "kept")["uri"].to_list() == _kept(manifest)
    assert frame.schema["width"] == polars.Int32


def test_pandas_reads_it(manifest: Manifest) -> None:
    frame = pandas.read_parquet(manifest.path / "samples")
    assert frame[frame.status == "kept"].uri.tolist() == _kept(manifest)


def test_hugging_face_datasets_reads_it(manifest: Manifest, tmp_path: Path) -> None:
    import datasets

    loaded = datasets.load_dataset(
        "parquet",
        data_files=str(manifest.path / "samples" / "*.parquet"),
        split="train",
        cache_dir=str(tmp_path / "cache"),
    )
    kept = loaded.filter(lambda status: status == "kept", input_columns="status")
    assert kept["uri"][:] == _kept(manifest)
    assert loaded.features["entropy"].dtype == "float64"


def test_every_column_explains_itself_in_any_reader(manifest: Manifest) -> None:
    schema = pq.read_schema(next((manifest.path / "samples").glob("*.parquet")))
    for field in schema:
        assert field.metadata[b"meaning"]
    assert schema.field("entropy").metadata[b"unit"] == b"bit"
    assert schema.field("entropy").metadata[b"range"] == b"[0, 8]"


def test_previews_are_plain_parquet_too(manifest: Manifest) -> None:
    table = pq.read_table(manifest.path / "previews")
    assert table.num_rows == 90
    assert table.schema.field("jpeg").type == pa.binary()


def _kept(manifest: Manifest) -> list[str]:
    uris = manifest.table(["uri"], where="status = 'kept'")["uri"].to_pylist()
    assert len(uris) == KEPT
    return uris


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
