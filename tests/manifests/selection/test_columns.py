"""A column by reference: the parent's files stay as they are, and readers see what a whole manifest has."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from uhr.base.errors import UserError
from uhr.base.files import sha256_file
from uhr.cli import main
from uhr.manifests import parts, places
from uhr.manifests.forget import job
from uhr.manifests.forget.targets import ForgetRequest
from uhr.manifests.info import Parent
from uhr.manifests.manifest import Manifest
from uhr.manifests.schema import sample_id, schema_of
from uhr.manifests.selection.options import SliceOptions
from uhr.manifests.selection.reference import stored_schema, with_added
from uhr.manifests.selection.slicing import slice_manifest
from uhr.manifests.sources.of_manifest import OfManifest
from uhr.manifests.verify.verification import verify
from uhr.manifests.writer import Provenance, write_manifest

Make = Callable[..., Manifest]

SCORE = pa.field("score", pa.float32(), metadata={"meaning": "a number", "range": "[0, 1]"})
TAGS = pa.field("tags", pa.list_(pa.field("element", pa.string())))


def extended(
    parent: Manifest, out: Path, values: dict[str, Any], field: pa.Field, *, by_reference: bool
) -> Manifest:
    """Write the manifest that adds a column to all rows of another; `values` are by sample id."""

    def column(rows: pa.RecordBatch) -> list[pa.Array]:
        return [pa.array([values.get(one) for one in rows.column("sample_id").to_pylist()], field.type)]

    schema, batches = with_added(parent, [field], column, by_reference=by_reference)
    parents = [Parent(id=parent.id, path=places.place_of(parent.path), role="column added to")]
    made = Provenance.derived(parent, {"kind": "test"}, parents)
    write_manifest(out, schema, batches, made, parent=parent if by_reference else None)
    return Manifest.open(out)


tables = st.lists(
    st.tuples(
        st.text("abc/é", min_size=1, max_size=6),
        st.sampled_from(["kept", "kept", "rejected"]),
        st.one_of(st.none(), st.integers(0, 9)),
        st.one_of(st.none(), st.floats(0, 1, width=16)),
        st.one_of(st.none(), st.lists(st.sampled_from("xyz"), max_size=2)),
    ),
    min_size=1,
    max_size=40,
    unique_by=lambda row: row[0],
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=6, deadline=None)
@given(rows=tables, groups=st.tuples(*[st.integers(1, 12)] * 4), seed=st.integers(0, 5))
def test_readers_see_what_they_see_of_a_manifest_that_was_written_whole(
    rows: list[tuple[Any, ...]],
    groups: tuple[int, ...],
    seed: int,
    make: Make,
    tmp_path_factory: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path_factory.mktemp("columns")
    sizes = iter(groups)

    def resized() -> None:
        monkeypatch.setattr(parts, "GROUP_ROWS", next(sizes))
        monkeypatch.setattr(parts, "PART_ROWS", 2 * parts.GROUP_ROWS)

    schema = schema_of([]).append(pa.field("number", pa.int64()))
    listed = [
        {"uri": uri, "sample_id": sample_id(uri), "status": status, "number": number}
        | ({"reason": "entropy"} if status == "rejected" else {})
        for uri, status, number, _, _ in sorted(rows)
    ]
    resized()
    parent = make(folder / "set", listed, schema=schema, stages=[])
    scores = {sample_id(uri): score for uri, _, _, score, _ in rows}
    tags = {sample_id(uri): tag for uri, _, _, _, tag in rows}
    split = SliceOptions(status="any", split={"a": 0.9, "b": 0.1}, sample=max(1, len(rows) - 3), seed=seed)
    found = {}
    for what in ("rows", "none"):
        monkeypatch.undo()
        by_reference = what == "none"
        made = [extended(parent, folder / what / "1", scores, SCORE, by_reference=by_reference)]
        sizes = iter(groups[1:])
        resized()
        with contextlib.suppress(UserError):  # a split of few rows may be empty
            options = split.model_copy(update={"materialise": what})
            made.append(slice_manifest(made[0], folder / what / "2", options))
        resized()
        made.append(extended(made[-1], folder / what / "3", tags, TAGS, by_reference=by_reference))
        # replaces a column of an ancestor
        other = dict.fromkeys(list(scores)[::2], 0.5)
        made.append(extended(made[-1], folder / what / "4", other, SCORE, by_reference=by_reference))
        found[what] = made
    for whole, none in zip(found["rows"], found["none"], strict=True):
        assert none.schema.equals(whole.schema, check_metadata=True)
        assert none.table().equals(whole.table())
        for columns in (["score"], ["number", "sample_id"], ["uri", *none.schema.names[-1:]]):
            assert none.table(columns).equals(whole.table(columns))
        for where in ("score > 0.4", "number >= 5 AND score IS NULL", "uri > 'b' OR status = 'rejected'"):
            assert none.table(["sample_id"], where).equals(whole.table(["sample_id"], where))
        assert none.info.counts == whole.info.counts
        places_ = np.arange(0, none.info.counts["rows"], 2)
        assert list(_rows(none.take(places_))) == list(_rows(whole.take(places_)))
        assert list(_rows(none.rows(["score", "uri"]))) == list(_rows(whole.rows(["score", "uri"])))

    assert verify(none.path).faults == verify(whole.path).faults == []


def _rows(batches: Iterator[pa.RecordBatch]) -> Iterator[dict[str, Any]]:
    for batch in batches:
        yield from batch.to_pylist()


def _state(folder: Path) -> dict[Path, tuple[str, int]]:
    return {
        file: (sha256_file(file), file.stat().st_mtime_ns) for file in folder.rglob("*") if file.is_file()
    }


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in (folder / "samples").iterdir())


def test_only_the_column_is_written_and_the_parents_files_are_left(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    count = 2000
    rows = [
        {"uri": f"{n:05d}.jpg", "sample_id": sample_id(f"{n:05d}.jpg"), "status": "kept"}
        for n in range(count)
    ]
    schema = schema_of([]).append(pa.field("embedding", pa.binary()))
    found = {}
    for width in (0, 2000):
        wide = [row | {"embedding": os.urandom(width)} for row in rows]
        parent = make(tmp_path / f"set-{width}", wide, schema=schema, stages=[], previews=None)
        before = _state(parent.path)
        made = extended(parent, tmp_path / f"{width}", {}, SCORE, by_reference=True)
        assert made.table(["embedding"]).equals(parent.table(["embedding"]))
        assert _state(parent.path) == before
        found[width] = _size(made.path)
        fat = pa.field("other", pa.binary())
        values = {row["sample_id"]: os.urandom(500) for row in rows}
        assert _size(extended(parent, tmp_path / f"{width}-f", values, fat, by_reference=True).path) == (
            pytest.approx(found[width] + 500 * count, rel=0.02)
        )
    assert _size(tmp_path / "set-2000") > 2000 * count
    assert found[0] == found[2000] < 30 * count, "a key of 32 hex digits and a position"
    assert not (tmp_path / "cache").exists()


def test_of_two_writers_one_commits(manifest: Manifest, tmp_path: Path) -> None:
    options = SliceOptions(split={"a": 0.5, "b": 0.5}, materialise="none")
    refused = []

    def second(n: int = 1, note: str | None = None) -> None:
        if not refused:
            with pytest.raises(
                UserError, match=r"another run is at work|contains something else \(lock\)"
            ) as error:
                slice_manifest(manifest, tmp_path / "out", options)
            refused.append(error)

    made = slice_manifest(manifest, tmp_path / "out", options, second)
    assert refused
    assert verify(made.path).faults == []
    with pytest.raises(UserError, match="already contains"):
        slice_manifest(manifest, tmp_path / "out", options)


def test_forgetting_keeps_the_values_of_other_samples(manifest: Manifest, tmp_path: Path) -> None:
    ids = manifest.table(["sample_id"])["sample_id"].to_pylist()
    scores = {name: number / 100 for number, name in enumerate(ids)}
    one = extended(manifest, tmp_path / "one", scores, SCORE, by_reference=True)
    two = extended(one, tmp_path / "two", {name: ["x"] for name in ids[::3]}, TAGS, by_reference=True)
    job.forget(two.path, ForgetRequest(ids=(ids[30],)))
    left = Manifest.open(two.path)
    assert left.info.redactions
    rows = left.table(["sample_id", "score", "tags"]).to_pylist()
    assert [row["sample_id"] for row in rows] == [name for name in ids if name != ids[30]]
    assert all(row["score"] == pytest.approx(scores[row["sample_id"]]) for row in rows)
    assert {row["sample_id"] for row in rows if row["tags"]} == set(ids[::3]) - {ids[30]}
    assert [verify(each).faults for each in (manifest.path, one.path, two.path)] == [[], [], []]


@pytest.mark.parametrize("shift", [1, -1, 1000])
def test_verify_finds_rows_of_other_samples(shift: int, manifest: Manifest, tmp_path: Path) -> None:
    rows = manifest.table(["sample_id"]).slice(1, 20)
    field = pa.field("score", pa.float32())
    positions = np.arange(1, 21)
    positions[7:] += shift
    ids = rows["sample_id"].combine_chunks()
    batch = pa.RecordBatch.from_arrays(
        [ids, pa.array(np.arange(1, 21)), pa.nulls(20, pa.float32())], schema=stored_schema([field])
    )
    parents = [Parent(id=manifest.id, path=places.place_of(manifest.path), role="test")]
    made = Provenance.derived(manifest, {"kind": "test"}, parents)
    good = write_manifest(tmp_path / "good", batch.schema, [batch], made, parent=manifest)
    assert verify(good.path).faults == []
    moved = batch.set_column(1, batch.schema.field(1), pa.array(positions))
    found = list(
        parts.write_parts(tmp_path / "good" / "samples", batch.schema, [moved], group_rows=5, part_rows=10)
    )
    info = good.info.model_copy(update={"parts": found})
    _commit(tmp_path / "good", info, batch.schema)
    (fault,) = verify(good.path).faults
    assert (fault.check, fault.where) == ("identity", "sample_id")
    assert "samples/part-00000.parquet row 7" in fault.what


def test_a_column_that_has_other_values_than_stated_is_found(manifest: Manifest, tmp_path: Path) -> None:
    made = extended(manifest, tmp_path / "one", {}, SCORE, by_reference=True)
    _commit(made.path, made.info.model_copy(update={"coverage": {"score": 3}}), made.stored_schema)
    (fault,) = verify(made.path).faults
    assert (fault.check, fault.where) == ("coverage", "score")
    assert "has 0 values in the parts, and manifest.json says 3" in fault.what


def test_a_column_of_the_name_of_a_key_is_the_parents(make: Make, tmp_path: Path) -> None:
    names = [f"{n}.jpg" for n in range(5)]
    rows = [{"uri": n, "sample_id": sample_id(n), "status": "kept", "position": 9} for n in names]
    schema = schema_of([]).append(pa.field("position", pa.int64()))
    parent = make(tmp_path / "set", rows, schema=schema, stages=[], previews=None)
    made = extended(parent, tmp_path / "made", {}, SCORE, by_reference=True)
    assert made.table(["position"])["position"].to_pylist() == [9] * 5
    assert verify(made.path).faults == []
    with pytest.raises(UserError, match="cannot add a column sample_id or position"):
        extended(parent, tmp_path / "no", {}, schema.field("position"), by_reference=True)


def _commit(folder: Path, info: Any, schema: pa.Schema) -> None:
    from uhr.base.files import write_json
    from uhr.manifests.info import content_id

    name = content_id(schema, info.operation, info.parents, info.parts, info.previews)
    write_json(folder / "manifest.json", info.model_copy(update={"id": name}).model_dump(mode="json"))


def test_rows_are_read_from_the_parent_by_every_command(
    manifest: Manifest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "split"
    call = ["manifest", "slice", str(manifest.path), "--status", "any", "--split", "a=0.5,b=0.5"]
    assert main([*call, "--materialise", "none", "--out", str(out)]) == 0
    assert OfManifest(path=str(out)).list().items.num_rows == manifest.info.counts["kept"]
    capsys.readouterr()
    assert main(["manifest", "show", str(out)]) == 0
    assert f"by reference to {manifest.path}; columns of its own: split" in capsys.readouterr().out
    for command in ("verify", "lineage", "report"):
        assert main(["manifest", command, str(out)]) == 0, command
    assert (
        main(
            [
                "manifest",
                "slice",
                str(out),
                "--where",
                "split = 'b' AND entropy > 5",
                "--out",
                str(tmp_path / "b"),
            ]
        )
        == 0
    )
    assert main(["manifest", "diff", str(manifest.path), str(out), "--json"]) == 0
    assert main(["manifest", "history", str(out), "folder/00003.jpg"]) == 0
    assert main(["manifest", "audit", str(out), "--out", str(tmp_path / "a.csv")]) == 0
    part = next((manifest.path / "samples").iterdir())
    part.write_bytes(part.read_bytes()[:-50])
    capsys.readouterr()
    assert main(["manifest", "show", str(out)]) == 1
    line = capsys.readouterr().err
    assert f"{part.name} has changed" in line
    assert line.count("\n") == 1
