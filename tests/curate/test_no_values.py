"""NaN and infinity are no values: not from a stage, not from a set stage, not from what a rule computes."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from uhr.curate.run.conversion import converter_for
from uhr.manifests.manifest import Manifest

STAGES = '''
import pyarrow as pa
from uhr.curate.stage import FrameStage, SetStage
from uhr.manifests.schema import Column

VALUES = {"nan": float("nan"), "inf": float("inf"), "minus": float("-inf"), "big": 1e300, "one": 1.0}


class Wild(FrameStage):
    """Gives the number that the file is called after, in double and in single precision."""

    name = "wild"
    adds = (Column("wild", pa.float64(), "a number"), Column("single", pa.float32(), "the same"))

    def annotate(self, frame):
        value = VALUES[frame.uri.partition(".")[0]]
        return {"wild": value, "single": value}


class WildSet(SetStage):
    name = "wild_set"
    adds = (Column("over", pa.float64(), "a number over 0"), Column("rows", pa.int64(), "how many"))

    def compute(self, live, workspace):
        return "SELECT sample_id, width / 0 AS over, count(*) OVER () AS rows FROM live"
'''


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    gray = np.random.default_rng(0).integers(40, 200, (64, 96)).astype("u1")
    for name in ("nan", "inf", "minus", "big", "one"):
        Image.fromarray(gray).save(folder / f"{name}.png")
    return folder


def run(uhr, pipeline: dict, source: Path, out: Path) -> Manifest:
    file = out.with_suffix(".yaml")
    file.write_text(json.dumps(pipeline))
    code, _, errors = uhr("curate", "run", file, "--source", source, "--out", out, "--workers", 0)
    assert code == 0, errors
    return Manifest.open(out)


def test_a_stage_that_gives_no_finite_number_gives_no_value(uhr, source, tmp_path, monkeypatch):
    (tmp_path / "wild_stages.py").write_text(STAGES)
    monkeypatch.syspath_prepend(str(tmp_path))
    stages = ["header", "decode", "wild_stages:Wild", "wild_stages:WildSet"]
    stages.append({"stage": "rank", "of": "wild"})
    manifest = run(uhr, {"stages": stages}, source, tmp_path / "out")
    rows = {row["uri"].partition(".")[0]: row for row in manifest.table().to_pylist()}
    assert {name: row["wild"] for name, row in rows.items()} == {
        "nan": None,
        "inf": None,
        "minus": None,
        "big": 1e300,
        "one": 1.0,
    }
    assert {name for name, row in rows.items() if row["single"] is not None} == {"one"}
    assert {(row["over"], row["rows"]) for row in rows.values()} == {(None, 5)}
    # the largest of two, where an infinity would have been the first of three
    ranks = {name: row["wild_rank"] for name, row in rows.items()}
    assert ranks == {"big": 0.0, "one": 0.5, "nan": None, "inf": None, "minus": None}


def test_a_rule_that_divides_by_zero_fails_the_row_and_says_so(uhr, source, tmp_path):
    rules = {"ratio": "clipped_fraction / dark_fraction > 2"}
    stages = ["header", "decode", "exposure", "exact_duplicates"]
    manifest = run(uhr, {"stages": stages, "rules": rules}, source, tmp_path / "out")
    assert manifest.info.counts["reasons"] == {"no value": 5}
    _, explained, _ = uhr("curate", "explain", tmp_path / "out", "one.png")
    assert "failed: no value" in explained
    assert "it is null, as a division by 0 is" in explained
    assert "fail           ratio" in explained
    # the same behind a stage over the whole set
    rules["ratio"] += " OR dup_rank / 0 > 1"
    manifest = run(uhr, {"stages": stages, "rules": rules}, source, tmp_path / "late")
    assert manifest.info.counts["failed"] == 5


@pytest.mark.parametrize("type_", [pa.float16(), pa.float32(), pa.float64()])
def test_a_float_of_any_size_takes_finite_numbers_alone(type_):
    fit = converter_for(type_)
    taken = [fit(value) for value in (1.5, np.float64(2.5), 3, None)]
    assert taken == [1.5, 2.5, 3, None]
    for value in (math.nan, math.inf, -math.inf, np.float32("nan"), np.float64("inf")):
        assert fit(value) is None
    assert (fit(1e300) is None) == (type_ != pa.float64())
