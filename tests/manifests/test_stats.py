import math
import statistics
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from uhr.manifests.manifest import Manifest
from uhr.manifests.stats import FEW_VALUES, QUANTILES, compute

Make = Callable[..., Manifest]
Row = Callable[..., dict[str, Any]]


def test_quantiles_and_coverage_are_those_of_numpy(manifest: Manifest) -> None:
    found = {column.name: column for column in compute(manifest).numeric}["entropy"]
    values = [row["entropy"] for row in manifest.table().to_pylist() if row["entropy"] is not None]
    assert found.coverage == len(values) / 100
    assert (found.least, found.greatest) == (min(values), max(values))
    assert list(found.quantiles.values()) == pytest.approx(list(np.quantile(values, QUANTILES)))
    assert found.quantiles["p50"] == pytest.approx(statistics.median(values))
    assert found.unit == "bit"


def test_numbers_that_are_none_are_not_counted(make: Make, make_row: Row, tmp_path: Path) -> None:
    values = [1.0, math.nan, math.inf, None]
    rows = [make_row(50 + i, entropy=value) for i, value in enumerate(values)]
    found = {c.name: c for c in compute(make(tmp_path / "set", rows)).numeric}
    assert (found["entropy"].coverage, found["entropy"].greatest) == (0.25, 1.0)
    assert found["blockiness"].coverage == 0
    assert found["blockiness"].quantiles == {"p1": None} | dict.fromkeys(found["blockiness"].quantiles)


def test_text_columns_with_few_values_are_counted(manifest: Manifest) -> None:
    found = {column.name: column for column in compute(manifest).text}
    assert found["license"].top == {"CC0": 50, "CC1": 50}
    assert found["status"].top == {"rejected": 54, "kept": 36, "failed": 10}
    assert found["format"].coverage == 0.9
    assert "uri" not in found
    assert "sample_id" not in found


def test_what_names_single_rows_is_not_listed_by_value(make: Make, make_row: Row, tmp_path: Path) -> None:
    rows = [make_row(n, caption=f"image {n}", author=f"a{n % 2}") for n in range(12)]
    names = {column.name for column in compute(make(tmp_path / "set", rows)).text}
    assert names >= {"author", "license", "status"}
    assert not names & {"caption", "content_hash", "sample_id", "uri"}


def test_a_text_column_with_one_value_too_many_is_left_out(make: Make, make_row: Row, tmp_path: Path) -> None:
    for extra, listed in ((0, True), (1, False)):
        rows = [make_row(n, author=f"a{n % (FEW_VALUES + extra)}") for n in range(200)]
        names = {column.name for column in compute(make(tmp_path / str(extra), rows)).text}
        assert ("author" in names) is listed


def test_the_funnel_and_the_aspects_add_up(manifest: Manifest) -> None:
    stats = compute(manifest)
    assert [(rule["name"], rule["left"]) for rule in stats.rules] == [("entropy", 60), ("aesthetic", 0)]
    rows = manifest.table(["aspect_bucket", "status"]).to_pylist()
    expected = Counter(row["aspect_bucket"] for row in rows if row["aspect_bucket"])
    kept = Counter(row["aspect_bucket"] for row in rows if row["status"] == "kept")
    assert {a["bucket"]: (a["rows"], a["kept"]) for a in stats.aspects} == {
        bucket: (count, kept[bucket]) for bucket, count in expected.items()
    }
    assert stats.counts == manifest.info.counts
