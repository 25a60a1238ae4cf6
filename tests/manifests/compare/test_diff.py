"""`uhr manifest diff` on manifests whose differences are known."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from uhr.base.errors import UserError
from uhr.manifests.compare.diff import diff
from uhr.manifests.info import RuleInfo, StageInfo
from uhr.manifests.manifest import Manifest
from uhr.manifests.schema import REVIEW, schema_of

from ..conftest import COLUMNS

Make = Callable[..., Manifest]
Row = Callable[..., dict[str, Any]]
STRICT = (RuleInfo(name="entropy", where="entropy >= 5", seen=90, rejected=50),)


@pytest.fixture(scope="module")
def before(make: Make, make_row: Row, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """80 rows: 32 kept, 40 rejected by entropy < 4, 8 failed."""
    return make(tmp_path_factory.mktemp("diff") / "a", [make_row(n) for n in range(80)])


def test_a_manifest_does_not_differ_from_itself(before: Manifest) -> None:
    found = diff(before, before)
    assert found.same
    assert found.rows == {"only_a": 0, "only_b": 0, "both": 80, "changed": 0}


def test_a_stricter_rule_explains_the_moves(
    before: Manifest, make: Make, make_row: Row, tmp_path: Path
) -> None:
    rows = [make_row(n) for n in range(80)]
    for row in rows:
        if row["status"] == "kept" and row["entropy"] < 5:
            row |= {"status": "rejected", "reason": "entropy"}
    found = diff(before, make(tmp_path / "b", rows, rules=STRICT))
    (move,) = found.moves
    assert (move.before, move.after, move.rows) == (("kept", None), ("rejected", "entropy"), 9)
    assert move.why == {"rule entropy: entropy >= 4 -> entropy >= 5": 9}
    assert move.examples[0] == {"uri": "folder/00040.jpg", "entropy": {"a": 4.0, "b": 4.0}}
    assert len(move.examples) == 5
    assert found.columns == {"status": 9, "reason": 9}
    assert found.rows["changed"] == 9
    assert found.rules["entropy"] == "entropy >= 4 -> entropy >= 5"
    assert found.rules["aesthetic"].startswith("removed: ")
    assert not found.same


def test_another_meaning_of_null_or_channel_is_a_change_of_the_rule(
    before: Manifest, make: Make, make_row: Row, tmp_path: Path
) -> None:
    rows = [make_row(n) for n in range(80)]
    rows[40] |= {"status": "rejected", "reason": "entropy"}
    rule = RuleInfo(name="entropy", where="entropy >= 4", null="reject", channel="people", rows="images")
    found = diff(before, make(tmp_path / "b", rows, rules=(rule,)))
    change = "entropy >= 4 -> entropy >= 4 (null: reject; channel people; of images)"
    assert found.rules["entropy"] == change
    assert found.moves[0].why == {f"rule entropy: {change}": 1}


def test_another_value_explains_a_move(before: Manifest, make: Make, make_row: Row, tmp_path: Path) -> None:
    rows = [make_row(n) for n in range(80)]
    rows[40] |= {"entropy": 3.5, "status": "rejected", "reason": "entropy"}
    rows[41] |= {"status": "failed", "reason": "unreadable", "error": "decode: cut short", "entropy": None}
    stages = [StageInfo(name="entropy", version=2, fingerprint="e" * 64, adds=["entropy"])]
    found = diff(before, make(tmp_path / "b", rows, stages=stages))
    by_after = {move.after: move for move in found.moves}
    assert by_after["rejected", "entropy"].why == {"another value of entropy": 1}
    assert by_after["rejected", "entropy"].examples == [
        {"uri": "folder/00040.jpg", "entropy": {"a": 4.0, "b": 3.5}}
    ]
    failed = by_after["failed", "unreadable"]
    assert failed.examples[0]["error"] == {"a": None, "b": "decode: cut short"}
    assert failed.why["another value of entropy"] == 1
    assert found.columns["entropy"] == 2
    assert found.stages == {
        "entropy": "version 1, fingerprint ffffffffffff -> version 2, fingerprint eeeeeeeeeeee"
    }


def test_rows_and_columns_of_one_side_are_named(
    before: Manifest, make: Make, make_row: Row, tmp_path: Path
) -> None:
    left_out = {"split", "luma_mean", *(c.name for c in REVIEW)}
    columns = [c for c in COLUMNS.values() if c.name not in left_out]
    schema = schema_of(columns)
    place = schema.get_field_index("license")
    schema = schema.set(place, pa.field("license", pa.int64())).append(pa.field("mood", pa.string()))
    rows = [make_row(n, mood="calm") | {"license": n % 2} for n in range(10, 90)]
    batch = pa.RecordBatch.from_pylist(rows, schema=schema)
    other = make(tmp_path / "b", rows, schema=schema, batches=[batch])
    found = diff(before, other)
    assert found.rows == {"only_a": 10, "only_b": 10, "both": 70, "changed": 0}
    assert found.only_a == [f"folder/{n:05d}.jpg" for n in range(5)]
    assert found.only_b == [f"folder/{n:05d}.jpg" for n in range(80, 85)]
    assert (found.added, found.removed) == (["mood"], ["luma_mean"])
    assert found.retyped == {"license": ("string", "int64")}


def test_the_command_prints_what_the_python_finds(
    before: Manifest, make: Make, make_row: Row, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from uhr.cli import main

    rows = [make_row(n) for n in range(80)]
    rows[40] |= {"entropy": 3.5, "status": "rejected", "reason": "entropy"}
    other = make(tmp_path / "b", rows)
    assert main(["manifest", "diff", str(before.path), str(other.path)]) == 0
    text = capsys.readouterr().out
    assert "kept -> rejected: entropy: 1 sample\n" in text
    assert "1 x another value of entropy" in text
    assert "folder/00040.jpg  entropy 4 -> 3.5" in text
    assert main(["manifest", "diff", str(before.path), str(other.path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"]["changed"] == 1
    assert main(["manifest", "diff", str(before.path), str(before.path)]) == 0
    assert "no difference" in capsys.readouterr().out


def test_a_sample_id_that_is_there_twice_cannot_be_compared(
    before: Manifest, make: Make, make_row: Row, tmp_path: Path
) -> None:
    twice = make(tmp_path / "b", [make_row(1), make_row(1)])
    with pytest.raises(UserError, match="1 rows with a sample id that another row has"):
        diff(before, twice)
