"""The steps of a slice against a plain reading of what they promise, in Python."""

import hashlib
import math
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import uhr.manifests
from uhr.base.errors import UserError
from uhr.manifests.manifest import Manifest
from uhr.manifests.schema import Column, schema_of
from uhr.manifests.selection.options import SliceOptions, Top, parse_columns, parse_top
from uhr.manifests.selection.select import select

from ..conftest import COLUMNS

Make = Callable[..., Manifest]
Row = Callable[..., dict[str, Any]]
KEPT = {"status": "kept", "reason": None, "error": None}


@pytest.fixture(scope="module")
def rows(make_row: Row) -> list[dict[str, Any]]:
    """300 kept rows of three aspects (200, 90, 10) and two licences, with ties and nulls in the score."""
    draw = random.Random(7)
    made = []
    for number in range(300):
        aspect = "3:2" if number < 200 else "1:1" if number < 290 else "21:9"
        score = None if number % 13 == 0 else float(draw.randrange(40))
        changes = {"aspect_bucket": aspect, "upscale_ratio": score, "license": f"L{number % 2}"}
        changes |= {"height": 3000 + number % 50}
        made.append(make_row(number, **KEPT, **changes))
    return made


@pytest.fixture(scope="module")
def parent(rows: list[dict[str, Any]], make: Make, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return make(tmp_path_factory.mktemp("steps") / "set", rows)


def chosen(parent: Manifest, **steps: Any) -> list[str]:
    return select(parent, SliceOptions(**steps)).ids.to_pylist()


def highest(rows: list[dict[str, Any]], count: int) -> set[str]:
    scored = [row for row in rows if row["upscale_ratio"] is not None]
    scored.sort(key=lambda row: (-row["upscale_ratio"], row["sample_id"]))
    return {row["sample_id"] for row in scored[:count]}


def key(seed: int, sample: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}:sample:{sample}".encode()).digest()[:8])


def by(rows: list[dict[str, Any]], *names: str) -> dict[Any, list[dict[str, Any]]]:
    groups: dict[Any, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in names), []).append(row)
    return groups


@pytest.mark.parametrize("count", [1, 7, 100])
def test_top_takes_the_highest_with_ties_by_id(count: int, parent: Manifest, rows: list) -> None:
    assert set(chosen(parent, top=(Top(by="upscale_ratio", rows=count),))) == highest(rows, count)


@pytest.mark.parametrize("share", [0.001, 0.05, 0.3333, 1.0])
def test_a_share_is_of_the_rows_that_have_a_value(share: float, parent: Manifest, rows: list) -> None:
    valued = sum(row["upscale_ratio"] is not None for row in rows)
    count = max(1, math.floor(valued * share + 0.5))
    assert set(chosen(parent, top=(Top(by="upscale_ratio", share=share),))) == highest(rows, count)


def test_per_takes_the_highest_of_each_value(parent: Manifest, rows: list) -> None:
    top = Top(by="upscale_ratio", share=0.1, per=("aspect_bucket", "license"))
    expected: set[str] = set()
    for group in by(rows, "aspect_bucket", "license").values():
        valued = sum(row["upscale_ratio"] is not None for row in group)
        expected |= highest(group, max(1, math.floor(valued * 0.1 + 0.5)))
    assert set(chosen(parent, top=(top,))) == expected


def test_two_tops_are_applied_one_after_the_other(parent: Manifest, rows: list) -> None:
    first = highest(rows, 60)
    left = [row for row in rows if row["sample_id"] in first]
    left.sort(key=lambda row: (-row["height"], row["sample_id"]))
    tops = (Top(by="upscale_ratio", rows=60), Top(by="height", rows=9))
    assert set(chosen(parent, top=tops)) == {row["sample_id"] for row in left[:9]}


@settings(max_examples=10, deadline=None)
@given(count=st.integers(1, 299), seed=st.integers(0, 2**40))
def test_a_stratified_sample_keeps_shares_and_only_grows(count: int, seed: int, parent: Manifest) -> None:
    names = ("aspect_bucket", "license")
    table = parent.table(["sample_id", *names]).to_pylist()
    stratum = {row["sample_id"]: (row["aspect_bucket"], row["license"]) for row in table}
    sizes = Counter(stratum.values())
    some, more = (set(chosen(parent, stratify=names, sample=n, seed=seed)) for n in (count, count + 1))
    assert len(some) == count
    assert some < more
    found = Counter(stratum[sample] for sample in some)
    for name, size in sizes.items():
        assert abs(found[name] - count * size / len(table)) <= 1
        keys = sorted((s for s in stratum if stratum[s] == name), key=lambda s: (key(seed, s), s))
        assert {s for s in some if stratum[s] == name} == set(keys[: found[name]])


def test_balance_without_sample_takes_the_smallest_count_of_each(parent: Manifest, rows: list) -> None:
    taken = set(chosen(parent, balance="aspect_bucket", seed=3))
    for group in by(rows, "aspect_bucket").values():
        keys = sorted((key(3, row["sample_id"]), row["sample_id"]) for row in group)
        assert taken & {row["sample_id"] for row in group} == {sample for _, sample in keys[:10]}


def test_balance_draws_equally_and_says_which_value_runs_out(
    parent: Manifest, rows: list, capsys: pytest.CaptureFixture[str]
) -> None:
    aspect = {row["sample_id"]: row["aspect_bucket"] for row in rows}
    taken = Counter(aspect[sample] for sample in chosen(parent, balance="aspect_bucket", sample=29))
    assert sorted(taken.values()) == [9, 10, 10]
    assert capsys.readouterr().err == ""
    taken = Counter(aspect[sample] for sample in chosen(parent, balance="aspect_bucket", sample=101))
    assert taken == {"21:9": 10, "1:1": 45, "3:2": 46} or taken == {"21:9": 10, "1:1": 46, "3:2": 45}
    assert "1 value has too few rows, and the others have more: 21:9 10" in " ".join(
        capsys.readouterr().err.split()
    )


def test_balance_with_strata_keeps_the_shares_within_each_value(parent: Manifest, rows: list) -> None:
    names = {row["sample_id"]: (row["license"], row["aspect_bucket"]) for row in rows}
    taken = Counter(
        names[sample] for sample in chosen(parent, balance="license", stratify=("aspect_bucket",), sample=60)
    )
    for licence in ("L0", "L1"):
        assert sum(n for (value, _), n in taken.items() if value == licence) == 30
        for aspect, share in (("3:2", 2 / 3), ("1:1", 0.3), ("21:9", 1 / 30)):
            assert abs(taken[licence, aspect] - 30 * share) <= 1


def test_a_stratum_without_a_row_is_named(parent: Manifest, capsys: pytest.CaptureFixture[str]) -> None:
    chosen(parent, stratify=("aspect_bucket",), sample=4)
    assert "1 stratum is too small for a row in this sample: 21:9" in " ".join(
        capsys.readouterr().err.split()
    )


def test_null_is_a_stratum_and_no_value_to_balance(
    make: Make, make_row: Row, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    licences = ["A"] * 8 + [None] * 8 + ["B"] * 4
    made = make(
        tmp_path / "set", [make_row(n, **KEPT, license=licence) for n, licence in enumerate(licences)]
    )
    value = {row["sample_id"]: row["license"] for row in made.table(["sample_id", "license"]).to_pylist()}
    taken = Counter(value[sample] for sample in chosen(made, stratify=("license",), sample=5))
    assert taken == {"A": 2, None: 2, "B": 1}
    taken = Counter(value[sample] for sample in chosen(made, balance="license"))
    assert taken == {"A": 4, "B": 4}
    assert "--balance license is null on 8 of 20 rows" in " ".join(capsys.readouterr().err.split())


def test_what_is_selected_does_not_depend_on_parts_or_order(
    rows: list, parent: Manifest, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = {
        "top": (Top(by="upscale_ratio", share=0.5, per=("license",)),),
        "stratify": ("aspect_bucket",),
        "balance": "license",
        "sample": 40,
        "seed": 5,
    }
    moved = [
        row | {"uri": f"{place:03d}"} for place, row in enumerate(sorted(rows, key=lambda r: r["height"] % 7))
    ]
    monkeypatch.setattr("uhr.manifests.writer.part_files.GROUP_ROWS", 16)
    monkeypatch.setattr("uhr.manifests.writer.part_files.PART_ROWS", 64)
    other = make(tmp_path / "set", moved)
    assert len(other.info.parts) == 5
    assert sorted(chosen(other, **steps)) == sorted(chosen(parent, **steps))


def test_exact_copies_and_their_patches_are_in_one_split(make: Make, make_row: Row, tmp_path: Path) -> None:
    made = []
    for number in range(60):
        group = f"{number // 3:064x}" if number < 45 else None
        whole = make_row(number, **KEPT, dup_group=group)
        made.append(whole)
    for number, whole in enumerate(list(made)):
        patch = f"{int(whole['sample_id'], 16) ^ 1:032x}"
        of_patch = {"sample_id": patch, "parent_id": whole["sample_id"], "box": [0, 0, 8, 8]}
        if number % 2:
            of_patch["dup_group"] = None
        made.append(whole | of_patch)
    made.sort(key=lambda row: (row["uri"], row["sample_id"]))
    found = select(make(tmp_path / "set", made), SliceOptions(split={"a": 0.5, "b": 0.5}))
    assert found.splits is not None
    sides: dict[Any, set[str]] = {}
    row_of = {row["sample_id"]: row for row in made}
    for sample, side in zip(found.ids.to_pylist(), found.splits.to_pylist(), strict=True):
        row = row_of[sample]
        whole = row_of[row.get("parent_id") or sample]
        sides.setdefault(whole["dup_group"] or whole["sample_id"], set()).add(side)
    assert all(len(found) == 1 for found in sides.values())
    assert len({side for found in sides.values() for side in found}) == 2


@pytest.mark.parametrize("seed", range(3))
def test_rows_that_are_linked_in_any_way_are_in_one_split(
    seed: int, make: Make, make_row: Row, tmp_path: Path
) -> None:
    """By equal bytes, by a group of duplicates of any kind, as patches, and by chains of these."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    random = np.random.default_rng(seed)
    groups = ("dup_group", "near_group", "semantic_group")
    rows = []
    for number in range(150):
        changes = {name: f"{random.integers(400):032x}" for name in groups if random.random() < 0.3}
        changes["content_hash"] = f"{random.integers(1000):064x}" if number % 7 else None
        rows.append(make_row(number, **KEPT, **changes))
    for whole in rows[::10]:
        patch = {"sample_id": f"{int(whole['sample_id'], 16) ^ 1:032x}", "parent_id": whole["sample_id"]}
        rows.append(whole | patch | {"box": [0, 0, 8, 8], "near_group": f"{random.integers(400):032x}"})
    rows.sort(key=lambda row: (row["uri"], row["sample_id"]))
    links = [
        {f"{name}{row[name]}" for name in ("content_hash", *groups) if row.get(name)}
        | {f"image{row.get('parent_id') or row['sample_id']}"}
        for row in rows
    ]
    names = sorted(set().union(*links))
    pairs = np.array([(n, names.index(link)) for n, own in enumerate(links) for link in own])
    matrix = coo_matrix((np.ones(len(pairs)), pairs.T), (len(rows), len(names))).tocsr()
    _, component = connected_components(matrix @ matrix.T, directed=False)

    schema = schema_of([*(c for c in COLUMNS.values() if c.name != "split"), *map(_group, groups[1:])])
    whole = make(tmp_path / "set", rows, schema=schema)
    shares = {"a": 0.5, "b": 0.5}
    found = select(whole, SliceOptions(split=shares))
    assert found.splits is not None
    sides = np.array(found.splits.to_pylist())
    assert {len(set(sides[component == each])) for each in set(component)} == {1}
    assert 0.2 < (sides == "a").mean() < 0.8
    # of some of the rows too, where the rows that link them are not chosen
    some = select(whole, SliceOptions(split=shares, where="width is not null and height % 3 > 0"))
    assert some.splits is not None
    assert some.splits.to_pylist() == sides[some.positions].tolist()


def test_a_row_stays_in_its_split_when_copies_of_it_are_added(
    make: Make, make_row: Row, tmp_path: Path
) -> None:
    rows = [make_row(number, **KEPT) for number in range(60) if number % 10 < 9]
    copies = [row | {"uri": f"a/{n:02d}", "sample_id": f"{n:032x}"} for n, row in enumerate(rows)]
    more = [row | {"dup_group": row["content_hash"]} for row in (*copies, *rows)]
    sides = []
    for name, each in (("one", rows), ("two", more)):
        found = select(make(tmp_path / name, each), SliceOptions(split={"a": 0.5, "b": 0.5}))
        assert found.splits is not None
        sides.append(dict(zip(found.ids.to_pylist(), found.splits.to_pylist(), strict=True)))
    assert {sample: sides[1][sample] for sample in sides[0]} == sides[0]


def _group(name: str) -> Column:
    return Column(name, pa.string(), "a group of images")


def test_a_slice_in_python_is_the_slice_of_its_options(parent: Manifest, tmp_path: Path) -> None:
    query = (
        uhr.manifests.open(parent.path)
        .split(train=0.5, val=0.5)
        .where("entropy >= 1")
        .where("entropy < 7")
        .top("upscale_ratio", share=0.5, per=["license"])
        .stratify("aspect_bucket")
        .balance("license")
        .sample(40)
        .seed(5)
    )
    options = SliceOptions(
        where="(entropy >= 1) AND (entropy < 7)",
        top=(Top(by="upscale_ratio", share=0.5, per=("license",)),),
        stratify=("aspect_bucket",),
        balance="license",
        sample=40,
        split={"train": 0.5, "val": 0.5},
        seed=5,
    )
    made = query.write(tmp_path / "slice")
    assert made.info.operation == options.operation()
    assert query.count() == 40
    assert query.table().equals(made.table())


@pytest.mark.parametrize(
    ("steps", "says"),
    [
        ({"top": (Top(by="upscale_rati", rows=3),)}, "--top upscale_rati: .*did you mean upscale_ratio"),
        ({"top": (Top(by="uri", rows=3),)}, "uri is string, not a number"),
        ({"top": (Top(by="clipped_fraction", rows=3),)}, "none of the 300 rows that are left has a value"),
        ({"stratify": ("license",)}, "--stratify without --sample"),
        ({"stratify": ("upscale_ratio",), "sample": 3}, "nearly every row would be a group"),
        ({"balance": "box"}, "box is .*makes no groups"),
        ({"balance": "author"}, "--balance author: none of the 300 rows"),
        ({"balance": "license", "sample": 301}, "301 is more than the 300 rows that are left"),
        ({"split": {"a": 0.5, "b": 0.2}}, "adds up to 0.7"),
        ({"top": (Top(by="license", rows=3, per=("license",)),)}, "license is string, not a number"),
    ],
)
def test_a_step_that_cannot_be_applied_says_why(steps: dict[str, Any], says: str, parent: Manifest) -> None:
    with pytest.raises(UserError, match=says):
        chosen(parent, **steps)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda one: one.split(**{"../a": 0.5, "b": 0.5}), "has the name '../a'"),
        (lambda one: one.split(**{"": 0.5, "b": 0.5}), "has the name ''"),
        (lambda one: one.split(a=-0.5, b=1.5), "has the share -0.5 of 'a'"),
        (lambda one: one.split(a=float("nan")), "split"),
        (lambda one: one.top("height"), "give either rows or share"),
        (lambda one: one.status("keep"), "'status' should be 'kept', 'rejected'"),
        (lambda one: one.diverse(0), "'diverse' should be greater than or equal to 1"),
        (lambda one: one.where("height > 0) OR (height < 1").where("width > 0"), "not an SQL condition"),
    ],
)
def test_an_invalid_step_in_python_is_an_error_of_one_line(call: Any, says: str, parent: Manifest) -> None:
    with pytest.raises(UserError, match=says) as found:
        call(uhr.manifests.open(parent.path))
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    "text", ["", "upscale_ratio", "upscale_ratio=", "=5", "a=0", "a=0%", "a=101%", "a=1.5", "a=-1"]
)
def test_an_invalid_top_says_how_to_write_one(text: str) -> None:
    with pytest.raises(UserError, match=r"artimuse=5%"):
        parse_top([text])


def test_top_is_read_as_a_share_or_a_number_of_rows() -> None:
    assert parse_top(["a=5%", "b=0.25", "c=10"], "x, y") == (
        Top(by="a", share=0.05, per=("x", "y")),
        Top(by="b", share=0.25, per=("x", "y")),
        Top(by="c", rows=10, per=("x", "y")),
    )
    with pytest.raises(UserError, match="--per is a part of --top"):
        parse_top([], "x")
    with pytest.raises(UserError, match="empty or repeated"):
        parse_columns("a,,b", "--stratify")
