"""Unions and differences of manifests by sample id."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from uhr.base.errors import UserError
from uhr.cli import main
from uhr.manifests.info import RuleInfo
from uhr.manifests.manifest import Manifest
from uhr.manifests.schema import patch_id, schema_of
from uhr.manifests.selection.options import SliceOptions
from uhr.manifests.selection.sets import difference, union
from uhr.manifests.selection.slicing import slice_manifest
from uhr.manifests.verify.verification import verify

Make = Callable[..., Manifest]
Row = Callable[..., dict[str, Any]]
numbers = st.sets(st.integers(0, 30), min_size=1, max_size=12)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=8)
@given(first=numbers, second=numbers, third=numbers)
def test_unions_and_differences_are_those_of_the_sets_of_rows(
    first: set[int], second: set[int], third: set[int], make: Make, make_row: Row, tmp_path_factory: Any
) -> None:
    folder = tmp_path_factory.mktemp("sets")

    def made(name: str, chosen: set[int]) -> Manifest:
        return make(folder / name, [make_row(number) for number in sorted(chosen)], root="/nowhere")

    a, b, c = made("a", first), made("b", second), made("c", third)
    both = union([a, b, c], folder / "union")
    expected = made("expected", first | second | third)
    assert both.table().equals(expected.table())
    ids = expected.table(["sample_id"])["sample_id"].to_pylist()
    assert both.previews(ids) == expected.previews(ids)
    assert both.info.parts[0].sha256 == expected.info.parts[0].sha256
    assert verify(both.path).faults == []
    if first <= second:
        with pytest.raises(UserError, match="nothing is left"):
            difference(a, b, folder / "rest")
        return
    rest = difference(a, b, folder / "rest")
    assert rest.table().equals(made("rest-expected", first - second).table())
    assert verify(rest.path).faults == []


def test_patches_of_one_image_stay_in_their_order(make: Make, make_row: Row, tmp_path: Path) -> None:
    whole = make_row(50)

    def patch(x: int) -> dict[str, Any]:
        box = (x, 0, 512, 512)
        own = {"sample_id": patch_id(whole["sample_id"], box), "parent_id": whole["sample_id"]}
        return whole | own | {"box": list(box)}

    a = make(tmp_path / "a", [whole, patch(0), patch(7), make_row(60)], previews=None)
    b = make(tmp_path / "b", [patch(7), patch(3), whole], previews=None)
    boxes = union([a, b], tmp_path / "u").table(["box"])["box"].to_pylist()
    assert boxes == [None, [0, 0, 512, 512], [7, 0, 512, 512], [3, 0, 512, 512], None]


def test_rows_that_disagree_are_named_or_the_first_is_preferred(
    make: Make, make_row: Row, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [make_row(number) for number in (50, 51, 52)]
    a = make(tmp_path / "a", rows)
    b = make(tmp_path / "b", [rows[0], rows[1] | {"license": "other", "width": 7}, rows[2]])
    call = ["manifest", "union", str(a.path), str(b.path), "--out", str(tmp_path / "u")]
    assert main(call) == 1
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert "disagree about 1 row: folder/00051.jpg" in line
    assert "license, width" in line or "width, license" in line
    assert not (tmp_path / "u").exists()
    assert main([*call, "--prefer", "first", "--json"]) == 0
    printed = capsys.readouterr()
    answer = json.loads(printed.out)
    assert answer["counts"]["rows"] == 3
    assert "union: 3/3 rows" in printed.err, "6 rows were read"
    assert Manifest.open(tmp_path / "u").table().equals(a.table())
    assert main([*call, "--prefer", "first"]) == 0
    assert "is already finished" in capsys.readouterr().out
    assert main([*call, "--prefer", "last"]) == 1
    assert "unknown value 'last': known: first" in capsys.readouterr().err


def test_columns_of_one_manifest_are_added_to_the_rows_of_all(
    make: Make, make_row: Row, tmp_path: Path
) -> None:
    names = ("entropy", "flat_fraction", "width", "height", "aspect_bucket", "format")
    from ..conftest import COLUMNS

    small = schema_of(COLUMNS[name] for name in names[:1])
    rows = [make_row(number) for number in (50, 51)]
    less = [{k: v for k, v in row.items() if k not in names[1:]} for row in rows]
    a = make(tmp_path / "a", [*less, make_row(52)], schema=small)
    b = make(tmp_path / "b", [rows[1]])
    found = {row["uri"]: row["width"] for row in union([a, b], tmp_path / "u").table().to_pylist()}
    assert found == {"folder/00050.jpg": None, "folder/00051.jpg": 4000, "folder/00052.jpg": None}


def test_slices_of_slices_unite_and_subtract_to_their_parent(manifest: Manifest, tmp_path: Path) -> None:
    low = slice_manifest(manifest, tmp_path / "low", SliceOptions(status="any", where="uri < 'folder/00040'"))
    high = slice_manifest(
        manifest, tmp_path / "high", SliceOptions(status="any", where="uri >= 'folder/00030'")
    )
    inner = slice_manifest(high, tmp_path / "inner", SliceOptions(status="any", where="uri < 'folder/00040'"))
    both = union([low, high], tmp_path / "both")
    assert both.table().equals(manifest.table())
    rest = difference(both, inner, tmp_path / "rest")
    assert rest.info.counts["rows"] == 90
    assert [parent.id for parent in rest.info.parents] == [both.id, inner.id]


def test_a_manifest_unites_with_one_that_adds_columns_to_it(
    make: Make, make_row: Row, tmp_path: Path
) -> None:
    """Its source is the first manifest: its images are the same files."""
    rows = [make_row(number) for number in (50, 51, 52)]
    first = make(tmp_path / "first", rows)
    more = [{**row, "author": "A"} for row in rows[:2]]
    source = {"kind": "manifest", "path": str(first.path)}
    added = make(tmp_path / "added", more, root=first.path, origin=source)
    both = union([added, first], tmp_path / "both", prefer="first")
    assert [row["author"] for row in both.table().to_pylist()] == ["A", "A", None]
    rest = difference(first, added, tmp_path / "rest")
    assert [row["uri"] for row in rest.table().to_pylist()] == [rows[2]["uri"]]
    for each in (both, rest):
        assert verify(each.path).faults == []
        assert str(each.source.open(rows[2]).path) == str(tmp_path / "source" / rows[2]["uri"])
    other = make(tmp_path / "other", rows, root="/elsewhere")
    with pytest.raises(UserError, match="from different sources"):
        union([added, other], tmp_path / "not")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"root": "/elsewhere"}, "from different sources"),
        ({"rules": [RuleInfo(name="entropy", where="entropy >= 5")]}, "the rule entropy is"),
    ],
)
def test_manifests_that_do_not_fit_are_refused(
    changes: dict[str, Any], says: str, make: Make, make_row: Row, tmp_path: Path
) -> None:
    a = make(tmp_path / "a", [make_row(50)], root="/nowhere")
    b = make(tmp_path / "b", [make_row(51)], **({"root": "/nowhere"} | changes))
    with pytest.raises(UserError, match=says):
        union([a, b], tmp_path / "u")
    assert not (tmp_path / "u").exists()
