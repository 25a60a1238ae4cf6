"""`uhr manifest audit`: a line per image and rule."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from uhr.cli import main
from uhr.curate.explain import explain_row
from uhr.manifests.info import Parent, RuleInfo, StageInfo
from uhr.manifests.manifest import Manifest
from uhr.manifests.schema import schema_of
from uhr.manifests.selection.options import SliceOptions
from uhr.manifests.selection.slicing import slice_manifest
from uhr.manifests.verify.audit import audit
from uhr.manifests.verify.verification import verify

from ..conftest import COLUMNS

Make = Callable[..., Manifest]
Row = Callable[..., dict[str, Any]]

RULES = (
    RuleInfo(name="entropy", where="entropy >= 4", seen=4, rejected=1),
    RuleInfo(name="wide", where="width >= 4000 AND height > 10", null="reject", rows="images"),
    RuleInfo(name="aesthetic", where="artimuse >= 50", state="not evaluated", why="no weights"),
)
STAGES = (
    StageInfo(name="entropy", version=3, fingerprint="e" * 64, adds=["entropy"]),
    StageInfo(name="header", version=2, fingerprint="h" * 64, adds=["width", "height"]),
)


@pytest.fixture
def judged(make: Make, make_row: Row, tmp_path: Path) -> Manifest:
    rows = [make_row(number) for number in (10, 49, 50, 51)]
    rows[3] |= {"width": None, "source_url": "https://example.org/51", "license": "CC-BY-4.0"}
    return make(
        tmp_path / "set",
        rows,
        rules=RULES,
        stages=STAGES,
        weights={"entropy/model": "w" * 8, "other/model": "x" * 8},
    )


def _lines(path: Path) -> list[dict[str, Any]]:
    return pq.read_table(path).to_pylist()


def test_each_line_says_what_a_rule_came_to_on_an_image_and_why(judged: Manifest, tmp_path: Path) -> None:
    out = tmp_path / "audit.parquet"
    made = slice_manifest(judged, tmp_path / "slice", SliceOptions(status="any"))
    assert main(["manifest", "audit", str(made.path), "--out", str(out)]) == 0
    lines = _lines(out)
    outcomes = {(line["uri"][-8:-4], line["rule"]): line["outcome"] for line in lines}
    assert outcomes == {
        ("0010", "entropy"): "rejected",
        ("0010", "wide"): "passed",
        ("0049", "entropy"): "not reached",
        ("0049", "wide"): "not reached",
        ("0050", "entropy"): "passed",
        ("0050", "wide"): "passed",
        ("0051", "entropy"): "passed",
        ("0051", "wide"): "no value",
        **{(name, "aesthetic"): "not evaluated: no weights" for name in ("0010", "0049", "0050", "0051")},
    }
    line = lines[0]
    assert (line["threshold"], json.loads(line["value"])) == ("entropy >= 4", {"entropy": 1.0})
    assert json.loads(line["stages"]) == {"entropy": {"version": 3, "fingerprint": "e" * 64}}
    assert json.loads(line["weights"]) == {"entropy/model": "w" * 8}
    assert line["decided"] == judged.info.created, "by the curation, not by the slice"
    assert lines[1]["missing"] == "reject"
    assert json.loads(lines[1]["value"]) == {"height": 3010, "width": 4000}
    assert (lines[-1]["source_url"], lines[-1]["license"]) == ("https://example.org/51", "CC-BY-4.0")


def test_rules_after_the_verdict_are_not_reached_as_explain_says(
    make: Make, make_row: Row, tmp_path: Path
) -> None:
    """Otherwise `dup_group IS NULL` passes every image whose duplicates nobody looked for."""
    failed = {"status": "failed", "entropy": None}
    rows = [
        make_row(50),
        make_row(10),
        make_row(51, **failed, reason="truncated", error="decode: it ends early"),
        make_row(52, **failed, reason="no value", error="rule 'entropy' (entropy >= 4): no value"),
        make_row(53, **failed, reason="not an image", error="header: unknown", width=None, height=None),
        make_row(54, status="rejected", reason="single", dup_group="x"),
        make_row(59),
    ]
    rules = (
        RuleInfo(name="wide", where="width >= 4000"),
        RuleInfo(name="entropy", where="entropy >= 4"),
        RuleInfo(name="single", where="dup_group IS NULL"),
    )
    named = (("header", "width"), ("decode", "notes"), ("entropy", "entropy"), ("groups", "dup_group"))
    stages = [StageInfo(name=name, version=1, fingerprint="f" * 64, adds=[adds]) for name, adds in named]
    schema = schema_of(column for column in COLUMNS.values() if column.name != "rejected_by")
    made = make(tmp_path / "set", rows, rules=rules, stages=stages, schema=schema)
    audit(made, tmp_path / "a.parquet")
    found = {(line["sample_id"], line["rule"]): line["outcome"] for line in _lines(tmp_path / "a.parquet")}
    explained = {
        (row["sample_id"], rule["rule"]): rule["outcome"]
        for row in rows
        for rule in explain_row(made, made.row(row["sample_id"]))["rules"]
    }
    assert {key for key, outcome in found.items() if outcome == "not reached"} == {
        key for key, outcome in explained.items() if outcome == "not reached"
    }
    reached = [outcome for (_, rule), outcome in found.items() if rule == "single"]
    assert reached == ["passed", *["not reached"] * 4, "rejected", "not reached"]
    assert len({rule for (_, rule), outcome in found.items() if outcome == "no value"}) == 1


def test_with_all_rules_what_was_not_measured_on_a_rejected_row_has_not_passed(
    make: Make, make_row: Row, tmp_path: Path
) -> None:
    """Stages over the set see only kept rows: `dup_group IS NULL` is true of every row rejected before."""
    rows = [
        make_row(10, rejected_by=["entropy", "dark"], luma_mean=3.0),
        make_row(11, rejected_by=["entropy"], luma_mean=50.0),
        make_row(50, status="rejected", reason="single", rejected_by=["single"], dup_group="x"),
        make_row(51, luma_mean=50.0),
    ]
    rules = (
        RuleInfo(name="entropy", where="entropy >= 4"),
        RuleInfo(name="dark", where="luma_mean > 9"),
        RuleInfo(name="single", where="dup_group IS NULL"),
    )
    named = (("entropy", "entropy"), ("exposure", "luma_mean"), ("groups", "dup_group"))
    stages = [StageInfo(name=name, version=1, fingerprint="f" * 64, adds=[adds]) for name, adds in named]
    schema = schema_of(COLUMNS.values())
    made = make(tmp_path / "set", rows, rules=rules, stages=stages, schema=schema)
    audit(made, tmp_path / "a.parquet")
    found = [line["outcome"] for line in _lines(tmp_path / "a.parquet")]
    assert found[:3] == ["rejected", "rejected", "not measured"]
    assert found[3:6] == ["rejected", "passed", "not measured"]
    assert found[8:] == ["rejected", "passed", "passed", "passed"]
    explained = [
        [rule["outcome"] for rule in explain_row(made, made.row(row["sample_id"]))["rules"]] for row in rows
    ]
    assert explained[0] == ["fail", "fail", "not measured"]
    assert explained[1] == ["fail", "pass", "not measured"]
    assert explained[3] == ["pass", "pass", "pass"]


def test_stages_of_columns_from_a_parent_are_those_of_the_parent(
    judged: Manifest, make: Make, make_row: Row, tmp_path: Path
) -> None:
    """A curation of a manifest has rules over columns that it did not measure again."""
    parents = [Parent(id=judged.id, path=str(judged.path), role="columns added to")]
    header = StageInfo(name="header", version=9, fingerprint="n" * 64, adds=["width", "height"])
    stages, weights = [header], {"header/table": "t" * 8}
    again = make(
        tmp_path / "again", [make_row(50)], rules=RULES[:2], stages=stages, weights=weights, parents=parents
    )
    audit(again, tmp_path / "a.parquet")
    entropy, wide = _lines(tmp_path / "a.parquet")
    assert json.loads(entropy["stages"]) == {"entropy": {"version": 3, "fingerprint": "e" * 64}}
    assert json.loads(entropy["weights"]) == {"entropy/model": "w" * 8}
    assert json.loads(wide["stages"]) == {"header": {"version": 9, "fingerprint": "n" * 64}}
    assert json.loads(wide["weights"]) == {"header/table": "t" * 8}


def test_an_audit_never_overwrites_a_part(
    judged: Manifest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (part,) = (judged.path / "samples").glob("*.parquet")
    before = part.read_bytes()
    assert main(["manifest", "audit", str(judged.path), "--out", str(part)]) == 1
    assert f"is inside the manifest {judged.path}: name a place outside it\n" in capsys.readouterr().err
    assert part.read_bytes() == before


def test_a_condition_chooses_images_and_csv_has_the_same_lines(
    judged: Manifest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = ["--where", "status = 'kept'"]
    for name in ("a.csv", "a.parquet"):
        capsys.readouterr()
        call = ["manifest", "audit", str(judged.path), *chosen, "--out", str(tmp_path / name), "--json"]
        assert main(call) == 0
        answer = json.loads(capsys.readouterr().out)
        assert (answer["images"], answer["lines"]) == (2, 6)
    with (tmp_path / "a.csv").open(newline="", encoding="utf-8") as file:
        found = list(csv.DictReader(file))
    expected = _lines(tmp_path / "a.parquet")
    assert len(found) == len(expected) == 6
    assert [line["value"] for line in found] == [line["value"] or "" for line in expected]


def test_progress_counts_the_rows(judged: Manifest, tmp_path: Path) -> None:
    counted: list[int] = []
    audit(judged, tmp_path / "a.csv", None, counted.append)
    assert sum(counted) == judged.info.counts["rows"]


def test_images_without_rules_have_one_line(make: Make, make_row: Row, tmp_path: Path) -> None:
    made = make(tmp_path / "none", [make_row(50)], rules=())
    assert main(["manifest", "audit", str(made.path), "--out", str(tmp_path / "x.parquet")]) == 0
    (line,) = _lines(tmp_path / "x.parquet")
    assert (line["rule"], line["status"]) == (None, "kept")


def test_a_review_needs_name_time_and_reason(
    make: Make, make_row: Row, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = {"review": "accepted", "review_by": "A", "review_time": "2026-01-01", "review_reason": "sharp"}
    rows = [make_row(50) | whole, make_row(51), make_row(52) | whole | {"review_reason": " "}]
    schema = schema_of(COLUMNS.values())
    made = make(tmp_path / "set", rows[:2], schema=schema)
    out = tmp_path / "x.parquet"
    assert main(["manifest", "audit", str(made.path), "--out", str(out)]) == 0
    assert _lines(out)[0]["review_by"] == "A"
    lacking = make(tmp_path / "lacking", rows, schema=schema)
    assert main(["manifest", "audit", str(lacking.path), "--out", str(tmp_path / "y.csv")]) == 1
    assert "the review of 1 rows, such as folder/00052.jpg, lacks one of" in capsys.readouterr().err
    assert not (tmp_path / "y.csv").exists()
    (fault,) = verify(lacking.path).faults
    assert (fault.where, fault.what[:24]) == ("review", "has no review_reason: fo")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--out", "x.txt"], "neither .parquet nor .csv"),
        (["--out", "x.csv", "--where", "1; DROP TABLE x"], "is not an SQL condition"),
        (["--out", "x.csv", "--where", "entropi > 1"], "did you mean entropy"),
    ],
)
def test_wrong_options_are_one_line(
    options: list[str],
    says: str,
    judged: Manifest,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: Any,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["manifest", "audit", str(judged.path), *options]) == 1
    line = capsys.readouterr().err
    assert says in line
    assert line.count("\n") == 1
