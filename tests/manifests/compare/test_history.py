"""`uhr manifest history`: one sample through a chain of manifests."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from uhr.base.errors import UserError
from uhr.manifests.compare.history import history
from uhr.manifests.manifest import Manifest
from uhr.manifests.schema import schema_of
from uhr.manifests.selection.options import SliceOptions
from uhr.manifests.selection.slicing import slice_manifest

from ..conftest import COLUMNS

Make = Callable[..., Manifest]
Row = Callable[..., dict[str, Any]]


@pytest.fixture
def chain(make: Make, make_row: Row, tmp_path: Path) -> tuple[Manifest, Manifest, Manifest]:
    """100 rows; the 36 kept in two splits; of these the rows with entropy >= 6."""
    whole = make(tmp_path / "whole", [make_row(number) for number in range(100)])
    halves = slice_manifest(whole, tmp_path / "halves", SliceOptions(split={"a": 0.5, "b": 0.5}))
    rich = slice_manifest(halves, tmp_path / "rich", SliceOptions(where="entropy >= 6"))
    return whole, halves, rich


def test_a_sample_is_followed_from_its_origin(chain: tuple[Manifest, Manifest, Manifest]) -> None:
    whole, halves, rich = chain
    steps = history(rich, "folder/00062.jpg")
    assert [step.path for step in steps] == [str(one.path) for one in chain]
    assert [step.id for step in steps] == [whole.id, halves.id, rich.id]
    assert all(step.present and step.status == "kept" for step in steps)
    assert steps[0].columns["entropy"] == 6.2
    assert set(steps[1].columns) == {"split"}
    assert steps[2].columns == {}


def test_a_sample_that_was_left_out_is_found_in_the_parents(
    chain: tuple[Manifest, Manifest, Manifest],
) -> None:
    whole, _, rich = chain
    steps = history(rich, "folder/00002.jpg")
    assert [step.present for step in steps] == [True, False, False]
    assert (steps[0].status, steps[0].reason, steps[0].rule) == ("rejected", "entropy", "entropy >= 4")
    with pytest.raises(UserError, match=r"no sample 'folder/99999.jpg' in .*rich"):
        history(rich, "folder/99999.jpg")
    assert history(whole, "folder/00009.jpg")[0].error == "no known image format"


def test_a_parent_that_cannot_be_reached_is_not_called_gone(
    s3: Any, make: Make, make_row: Row, tmp_path: Path, uhr: Any
) -> None:
    top = make(tmp_path / "top", [make_row(50), make_row(60)])
    there = f"s3://{s3.bucket}/middle"
    slice_manifest(top, there, SliceOptions())
    last = slice_manifest(Manifest.open(there), tmp_path / "last", SliceOptions(where="entropy > 5.5"))
    s3.fault = lambda method, path: 403 if "middle" in path else None
    (lost,) = [step for step in history(last, "folder/00060.jpg") if not step.found]
    assert lost.path == there
    assert lost.operation.startswith("cannot be reached (")
    assert "access is denied" in lost.operation
    _, printed, _ = uhr("manifest", "lineage", last.path)
    assert f"cannot be reached ({there}/manifest.json: access is denied" in printed
    assert "not found" not in printed
    _, printed, _ = uhr("manifest", "verify", last.path)
    assert f"not found at {there}, which cannot be reached" in printed
    with pytest.raises(UserError, match=rf"no sample .*last, and {there} cannot be reached"):
        history(last, "folder/00050.jpg")
    s3.fault = lambda method, path: None
    assert [step.found for step in history(last, "folder/00050.jpg")] == [True, True, True]


def test_a_damaged_parent_and_one_that_is_gone_are_distinguished(
    chain: tuple[Manifest, Manifest, Manifest], tmp_path: Path
) -> None:
    _, halves, rich = chain
    (halves.path / "manifest.json").write_text("{")
    lost, _ = history(rich, "folder/00062.jpg")
    assert lost.operation.startswith(f"cannot be read ({halves.path}/manifest.json")
    shutil.rmtree(halves.path)
    lost, _ = history(rich, "folder/00062.jpg")
    assert lost.operation == "not found any more"


def test_manifests_made_from_it_are_found_in_a_folder(
    chain: tuple[Manifest, Manifest, Manifest], make: Make, make_row: Row, tmp_path: Path
) -> None:
    whole, halves, rich = chain
    make(tmp_path / "other", [make_row(62)])
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged/manifest.json").write_text("{")
    steps = history(whole, "folder/00062.jpg", tmp_path)
    assert [step.path for step in steps] == [str(one.path) for one in (whole, halves, rich)]


def test_a_parent_that_is_gone_is_named(chain: tuple[Manifest, Manifest, Manifest]) -> None:
    whole, _, rich = chain
    shutil.rmtree(whole.path)
    first, *rest = history(rich, "folder/00062.jpg")
    assert (first.found, first.id) == (False, whole.id)
    assert all(step.present for step in rest)
    assert rest[0].columns["entropy"] == 6.2


def test_new_and_changed_values_are_distinguished(
    make: Make, make_row: Row, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A value that is a list of two is one value, and NaN has not changed into NaN."""
    from uhr.cli import main
    from uhr.manifests.info import Parent

    schema = schema_of(c for c in COLUMNS.values() if c.name != "split")
    schema = schema.append(pa.field("pair", pa.list_(pa.string())))
    row = make_row(42, entropy=float("nan")) | {"pair": ["general", "people"]}
    first = make(tmp_path / "first", [row], schema=schema)
    parent = Parent(id=first.id, path=str(first.path), role="slice of")
    second = make(tmp_path / "second", [row | {"height": 9, "author": "A"}], schema=schema, parents=[parent])
    start, after = history(second, row["uri"])
    assert start.columns["pair"] == ["general", "people"]
    assert start.changed == {}
    assert "entropy" not in start.columns
    assert after.columns == {}
    assert after.changed == {"height": (3042, 9), "author": (None, "A")}
    assert main(["manifest", "history", str(second.path), row["uri"]]) == 0
    text = capsys.readouterr().out
    assert "pair: ['general', 'people']" in text
    assert "height: 3042 -> 9" in text


def test_a_value_is_compared_with_that_of_a_parent_and_not_of_a_sibling(
    chain: tuple[Manifest, Manifest, Manifest], tmp_path: Path
) -> None:
    """`again` was made from `whole`, which has no split: nothing moved from one split to another."""
    whole, halves, rich = chain
    again = slice_manifest(whole, tmp_path / "slices" / "again", SliceOptions(split={"c": 1.0}))
    for first in (whole, halves):
        steps = {step.id: step for step in history(first, "folder/00062.jpg", tmp_path)}
        assert (steps[again.id].columns, steps[again.id].changed) == ({"split": "c"}, {})
        assert (steps[rich.id].columns, steps[rich.id].changed) == ({}, {})
        assert set(steps[halves.id].columns) == {"split"}


def test_a_folder_that_is_not_there_is_refused(
    chain: tuple[Manifest, Manifest, Manifest], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"--in .*nowhere is no folder"):
        history(chain[0], "folder/00062.jpg", tmp_path / "nowhere")


def test_the_command_prints_the_steps(
    chain: tuple[Manifest, Manifest, Manifest], capsys: pytest.CaptureFixture[str]
) -> None:
    from uhr.cli import main

    command = ["manifest", "history", str(chain[2].path), "folder/00002.jpg"]
    assert main(command) == 0
    text = capsys.readouterr().out
    assert "rejected: entropy (entropy >= 4)" in text
    assert text.count("has no row of the sample") == 2
    assert main([*command, "--json"]) == 0
    assert [step["present"] for step in json.loads(capsys.readouterr().out)] == [True, False, False]


def test_runs_that_saw_the_sample_are_named(
    chain: tuple[Manifest, Manifest, Manifest], tmp_path: Path, uhr: Callable[..., tuple[int, str, str]]
) -> None:
    _, halves, rich = chain
    for run, step, data in (
        ("runs/one", "step-10", [{"id": "encoded", "manifest_id": halves.id}]),
        ("runs/one", "step-20", [{"id": "encoded", "manifest_id": halves.id}]),
        ("runs/two", "step-10", [{"id": rich.id, "manifest_id": None}]),
        ("runs/other", "step-10", [{"id": "of another", "manifest_id": "of another"}]),
    ):
        record = tmp_path / run / "checkpoints" / step / "checkpoint.json"
        record.parent.mkdir(parents=True)
        record.write_text(json.dumps({"data": data}))
    (tmp_path / "runs/other/checkpoint.json").write_text("no record")
    steps = history(halves, "folder/00062.jpg", tmp_path)
    found = {Path(step.path).name: step.checkpoints for step in steps if step.checkpoints}
    assert found == {"one": ["step-10", "step-20"], "two": ["step-10"]}
    # it may have seen the sample
    assert [step.path for step in steps if not step.found] == [str(tmp_path / "runs/other/checkpoint.json")]
    # kept, and not among the rich: the second run did not see it
    steps = history(halves, "folder/00045.jpg", tmp_path)
    assert [Path(step.path).name for step in steps if step.checkpoints] == ["one"]
    code, printed, _ = uhr("manifest", "history", halves.path, "folder/00045.jpg", "--in", tmp_path)
    assert code == 0
    assert "trained on a manifest with it: step-10, step-20" in printed
    assert "runs/other/checkpoint.json  a checkpoint's record that cannot be read\n" in printed


def test_no_records_are_looked_for_among_the_parts_of_a_manifest(
    chain: tuple[Manifest, Manifest, Manifest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A set of a million images has thousands of them."""
    whole, _, _ = chain
    walked = []
    scan = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: walked.append(Path(path)) or scan(path))
    assert len([step for step in history(whole, "folder/00062.jpg", tmp_path) if step.present]) == 3
    assert whole.path in walked
    assert not [path for path in walked if path.name in ("samples", "previews")]
