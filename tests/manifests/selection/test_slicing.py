import hashlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uhr.base.errors import UserError
from uhr.manifests.manifest import Manifest
from uhr.manifests.schema import patch_id
from uhr.manifests.selection.options import SliceOptions, parse_split
from uhr.manifests.selection.slicing import slice_manifest

Make = Callable[..., Manifest]
Row = Callable[..., dict[str, Any]]
seeds = st.integers(-(2**40), 2**40)


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory, make: Make, make_row: Row) -> Manifest:
    """500 rows, 216 of them kept."""
    folder = tmp_path_factory.mktemp("parent")
    return make(folder / "set", [make_row(number) for number in range(500)])


@pytest.fixture
def cut(parent: Manifest, tmp_path: Path) -> Callable[..., Manifest]:
    """A slice of `parent` by keyword arguments of `SliceOptions`."""
    return lambda **steps: slice_manifest(
        parent, tmp_path / f"s{len(list(tmp_path.iterdir()))}", SliceOptions(**steps)
    )


def test_a_slice_holds_exactly_the_rows_that_where_takes(
    parent: Manifest, cut: Callable[..., Manifest]
) -> None:
    made = cut(where="entropy >= 6 AND aspect_bucket = '4:3'")
    rows = [row for row in parent.table().to_pylist() if row["status"] == "kept"]
    assert made.table().to_pylist() == [
        row for row in rows if row["entropy"] >= 6 and row["aspect_bucket"] == "4:3"
    ]
    assert made.schema.equals(parent.schema, check_metadata=True)
    assert made.info.parents[0].id == parent.id
    assert made.info.stages == parent.info.stages
    assert made.info.rules == parent.info.rules
    ids = made.table(["sample_id"])["sample_id"].to_pylist()
    assert made.previews(ids) == parent.previews(ids)
    assert sum(part.rows for part in made.info.previews) == len(ids)


@pytest.mark.parametrize("status", ["kept", "rejected", "failed", "any"])
def test_status_comes_first(status: str, parent: Manifest, cut: Callable[..., Manifest]) -> None:
    expected = [r for r in parent.table().to_pylist() if status in ("any", r["status"])]
    assert cut(status=status).table().to_pylist() == expected


def test_rows_where_the_condition_is_null_are_left_out(
    cut: Callable[..., Manifest], parent: Manifest
) -> None:
    made = cut(status="any", where="entropy < 4 OR entropy >= 4")
    assert made.info.counts["failed"] == 0, "failed rows have no entropy"
    assert made.info.counts["rows"] == parent.info.counts["rows"] - parent.info.counts["failed"]


@settings(max_examples=8)
@given(seed=seeds, count=st.integers(1, 215))
def test_a_sample_is_the_prefix_of_a_larger_one(seed: int, count: int, parent: Manifest) -> None:
    with tempfile.TemporaryDirectory() as folder:
        some, more = (_ids(_slice(parent, folder, sample=n, seed=seed)) for n in (count, count + 1))
    assert len(some) == count
    assert some < more


@settings(max_examples=8)
@given(seed=seeds)
def test_samples_and_splits_are_those_of_the_hashes(seed: int, parent: Manifest) -> None:
    def key(use: str, sample: str) -> int:
        return int.from_bytes(hashlib.sha256(f"{seed}:{use}:{sample}".encode()).digest()[:8])

    kept = parent.table(["sample_id"], where="status = 'kept'")["sample_id"].to_pylist()
    with tempfile.TemporaryDirectory() as folder:
        made = _slice(parent, folder, sample=50, split={"train": 0.7, "val": 0.3}, seed=seed)
        rows = made.table(["sample_id", "content_hash", "split"]).to_pylist()
    assert {r["sample_id"] for r in rows} == set(sorted(kept, key=lambda s: key("sample", s))[:50])
    for row in rows:
        draw = (key("split", row["content_hash"]) >> 11) / 2**53
        assert row["split"] == ("train" if draw < 0.7 else "val")


@settings(max_examples=4)
@given(order=st.permutations(range(40)), seed=seeds)
def test_what_is_drawn_does_not_depend_on_row_order_or_on_other_rows(
    order: list[int], seed: int, make: Make, make_row: Row
) -> None:
    # uris that sort in another order, for the same sample ids
    rows = [make_row(40 + n) | {"status": "kept", "reason": None, "error": None} for n in range(40)]
    moved = [row | {"uri": f"{place:03d}"} for place, row in zip(order, rows, strict=True)]
    moved.sort(key=lambda row: str(row["uri"]))
    with tempfile.TemporaryDirectory() as folder:
        one, two = make(Path(folder) / "1", rows), make(Path(folder) / "2", moved)
        half = make(Path(folder) / "3", rows[::2])
        drawn = {"split": {"a": 0.5, "b": 0.5}, "seed": seed}
        splits = [_split(_slice(m, folder, **drawn)) for m in (one, two, half)]
        samples = [_ids(_slice(m, folder, sample=9, seed=seed)) for m in (one, two)]
    assert splits[0] == splits[1]
    assert splits[2] == {sample: splits[0][sample] for sample in splits[2]}
    assert samples[0] == samples[1]


@settings(max_examples=8)
@given(seed=seeds)
def test_splits_are_disjoint_cover_all_and_have_about_their_shares(seed: int, parent: Manifest) -> None:
    with tempfile.TemporaryDirectory() as folder:
        made = _slice(parent, folder, status="any", split={"train": 0.6, "val": 0.3, "test": 0.1}, seed=seed)
        splits = list(_split(made).values())
    assert len(splits) == 500
    assert set(splits) == {"train", "val", "test"}
    for name, share in (("train", 0.6), ("val", 0.3), ("test", 0.1)):
        spread = (share * (1 - share) / 500) ** 0.5
        assert abs(splits.count(name) / 500 - share) < 6 * spread


def test_patches_of_one_image_are_never_split(make: Make, make_row: Row, tmp_path: Path) -> None:
    rows = []
    for number in range(40, 80):
        whole = make_row(number, status="kept", reason=None, error=None)
        rows.append(whole)
        for x in (0, 512, 1024):
            box = (x, 0, 512, 512)
            patch = patch_id(whole["sample_id"], box)
            rows.append(whole | {"sample_id": patch, "parent_id": whole["sample_id"], "box": list(box)})
    made = slice_manifest(
        make(tmp_path / "set", rows), tmp_path / "s", SliceOptions(split={"a": 0.5, "b": 0.5})
    )
    found: dict[str, set[str]] = {}
    for row in made.table(["uri", "split"]).to_pylist():
        found.setdefault(row["uri"], set()).add(row["split"])
    assert all(len(splits) == 1 for splits in found.values())


def test_another_seed_draws_other_rows(cut: Callable[..., Manifest]) -> None:
    assert _ids(cut(sample=50, seed=0)) != _ids(cut(sample=50, seed=1))


def test_a_slice_of_a_slice_is_the_slice_of_both_conditions(
    parent: Manifest, cut: Callable, tmp_path: Path
) -> None:
    first = cut(where="entropy >= 5", split={"train": 0.8, "val": 0.2})
    second = slice_manifest(first, tmp_path / "second", SliceOptions(where="split = 'train' AND width > 10"))
    assert _ids(second) == {sample for sample, split in _split(first).items() if split == "train"}
    again = slice_manifest(second, tmp_path / "third", SliceOptions(split={"x": 1.0}))
    assert set(_split(again).values()) == {"x"}
    assert again.schema.names.count("split") == 1


def test_the_seed_is_in_the_id_only_where_it_was_used(cut: Callable[..., Manifest]) -> None:
    assert cut(where="entropy > 5", seed=1).id == cut(where="entropy > 5", seed=2).id
    assert cut(sample=216, seed=1).id != cut(sample=216, seed=2).id


@pytest.mark.parametrize(
    ("steps", "says"),
    [
        ({"sample": 217}, "217 is more than the 216 rows that are left"),
        (
            {"sample": 100, "where": "entropy >= 7.5"},
            r"more than the \d\d rows that are left .*500 rows",
        ),
        ({"sample": 0}, "draw at least 1"),
        ({"where": "entropy > 100"}, "nothing is left .*500 rows, 216 of status kept, 0 of them where"),
        ({"where": "entropi > 100"}, "did you mean entropy"),
        ({"where": "(SELECT true)"}, "subquery"),
        ({"where": "CAST(uri AS INTEGER) = 1"}, "--where.*CAST"),
        ({"sample": 2, "split": {"train": 0.99999, "val": 0.00001}}, "val=1e-05 of 2 rows came out empty"),
    ],
)
def test_a_slice_that_cannot_be_says_how_many_there_are(
    steps: dict[str, Any], says: str, cut: Callable[..., Manifest], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=says):
        cut(**steps)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "text",
    ["", "train", "train=", "train=0.5", "train=0.5,train=0.5", "a=1.5,b=-0.5", "a=x", "a=0,b=1", "a=nan"],
)
def test_an_invalid_split_says_how_to_write_one(text: str) -> None:
    with pytest.raises(UserError, match=r"train=0\.9,val=0\.1"):
        parse_split(text)


def test_a_split_is_read_as_shares() -> None:
    assert parse_split("train=0.9, val=0.1") == {"train": 0.9, "val": 0.1}
    assert sum(parse_split("a=0.3333333,b=0.3333333,c=0.3333334").values()) == pytest.approx(1)


def _counter() -> Iterator[int]:
    number = 0
    while True:
        yield number
        number += 1


_NUMBERS = _counter()


def _slice(parent: Manifest, folder: str, **steps: Any) -> Manifest:
    return slice_manifest(parent, Path(folder) / f"slice{next(_NUMBERS)}", SliceOptions(**steps))


def _ids(manifest: Manifest) -> set[str]:
    return set(manifest.table(["sample_id"])["sample_id"].to_pylist())


def _split(manifest: Manifest) -> dict[str, str]:
    table: pa.Table = manifest.table(["sample_id", "split"])
    return dict(zip(table["sample_id"].to_pylist(), table["split"].to_pylist(), strict=True))
