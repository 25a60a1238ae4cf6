"""The query by hand of `benchmarks/manifests.py` is an oracle of the slice: all rows are equal."""

from pathlib import Path

import duckdb
import pytest

from benchmarks import manifests as benchmark
from uhr.base import parquet
from uhr.manifests.selection.options import SliceOptions, Top
from uhr.manifests.selection.slicing import slice_manifest


@pytest.mark.parametrize("sample", [3, 40, 90])
def test_a_slice_is_the_query_by_hand(sample: int, tmp_path: Path) -> None:
    manifest = benchmark.generate(tmp_path / "manifest", 8000)
    top = Top(by=benchmark.SCORE, share=0.05)
    options = SliceOptions(where=benchmark.WHERE, top=(top,), stratify=benchmark.STRATA, sample=sample)
    made = slice_manifest(manifest, tmp_path / "slice", options).table()
    parts = [str(manifest.path / part.path) for part in manifest.info.parts]
    file = tmp_path / "hand.parquet"
    duckdb.connect().execute(benchmark.by_hand(parts, str(file), sample))
    assert made.num_rows == sample
    assert made.to_pylist() == parquet.read(file).to_pylist()
