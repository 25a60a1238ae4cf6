import itertools
import json
import os
import random
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uhr.base.errors import UserError
from uhr.manifests import parts
from uhr.manifests.info import Parent, is_manifest
from uhr.manifests.manifest import Manifest
from uhr.manifests.report import write_report
from uhr.manifests.schema import SCHEMA_VERSION, sample_id
from uhr.manifests.selection.slicing import SliceOptions, slice_manifest
from uhr.manifests.stats import compute

from .conftest import COLUMNS, SCHEMA

Make = Callable[..., Manifest]
Row = Callable[..., dict[str, Any]]


def test_what_was_written_is_read_back(manifest: Manifest, make_row: Row) -> None:
    again = Manifest.open(manifest.path)
    assert again.info == manifest.info
    assert again.schema.equals(SCHEMA, check_metadata=True)
    rows = again.table().to_pylist()
    assert [{k: v for k, v in row.items() if v is not None} for row in rows] == [
        {k: v for k, v in make_row(number).items() if v is not None} for number in range(100)
    ]
    assert pa.Table.from_batches(again.rows()).to_pylist() == rows
    assert again.info.counts["rows"] == 100
    assert again.info.counts["reasons"] == {"entropy": 54, "not an image": 10}
    assert {c.name: c for c in again.columns}["entropy"] == COLUMNS["entropy"]


def test_a_table_takes_columns_condition_and_limit(manifest: Manifest) -> None:
    table = manifest.table(["entropy", "uri"], where="entropy >= 7 AND status = 'kept'", limit=3)
    assert table.column_names == ["entropy", "uri"]
    assert table["uri"].to_pylist() == [f"folder/{n:05d}.jpg" for n in (70, 71, 72)]
    with pytest.raises(UserError, match="did you mean entropy"):
        manifest.table(["entropi"])
    with pytest.raises(UserError, match="did you mean entropy"):
        manifest.table(where="entropi > 1")


def test_a_sample_is_found_by_id_prefix_or_uri(manifest: Manifest) -> None:
    uri = "folder/00042.jpg"
    for name in (uri, sample_id(uri), sample_id(uri)[:12]):
        assert manifest.row(name)["uri"] == uri
    with pytest.raises(UserError, match="several"):
        manifest.row("")
    for near in ("00042.JPG", "Folder/00042.jpg"):
        with pytest.raises(UserError, match=r"did you mean folder/00042.jpg\?"):
            manifest.row(near)
    with pytest.raises(UserError, match=r"no sample 'nothing'.*name a sample_id"):
        manifest.row("nothing")
    with pytest.raises(UserError, match="no sample"):
        manifest.row("' OR 1=1 --")


def test_previews_come_by_sample(manifest: Manifest, make_row: Row) -> None:
    ids = [make_row(number)["sample_id"] for number in (3, 9, 64)]
    found = manifest.previews([*ids, "unknown"])
    assert set(found) == {ids[0], ids[2]}, "row 9 has failed and has none"
    assert found[ids[2]].endswith(b"folder/00064.jpg")


@settings(max_examples=15)
@given(cuts=st.lists(st.integers(0, 300), max_size=6), seed=st.integers(0, 99))
def test_bytes_do_not_depend_on_how_the_rows_came(
    cuts: list[int], seed: int, make: Make, make_row: Row
) -> None:
    rows = [make_row(number) for number in range(300)]
    whole = pa.RecordBatch.from_pylist(rows, schema=SCHEMA)
    edges = [0, *sorted(cuts), 300]
    pieces = [whole.slice(a, b - a) for a, b in itertools.pairwise(edges)]
    if seed % 2:  # the same rows without shared buffers
        pieces = [pa.RecordBatch.from_pylist(p.to_pylist(), schema=SCHEMA) for p in pieces]
    with tempfile.TemporaryDirectory() as folder:
        one = make(Path(folder) / "one", rows, batches=[whole])
        two = make(Path(folder) / "two", rows, batches=pieces)
        assert one.id == two.id
        assert _bytes(one) == _bytes(two)


def test_parts_and_row_groups_are_cut_where_they_should(tmp_path: Path) -> None:
    schema = pa.schema([("n", pa.int32())])
    batches = [pa.record_batch({"n": pa.array(range(i, i + 7), pa.int32())}) for i in range(0, 105, 7)]
    written = list(parts.write_parts(tmp_path / "s", schema, batches, group_rows=10, part_rows=40))
    assert [part.rows for part in written] == [40, 40, 25]
    files = [pq.ParquetFile(tmp_path / part.path) for part in written]
    groups = [[f.metadata.row_group(g).num_rows for g in range(f.num_row_groups)] for f in files]
    assert groups == [[10] * 4, [10] * 4, [10, 10, 5]]
    assert pa.concat_tables(f.read() for f in files)["n"].to_pylist() == list(range(105))


def test_a_table_keeps_the_order_across_parts(
    make: Make, make_row: Row, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "GROUP_ROWS", 64)
    monkeypatch.setattr(parts, "PART_ROWS", 256)
    made = make(tmp_path / "set", [make_row(number) for number in range(2000)])
    assert len(made.info.parts) == 8
    uris = made.table(["uri"])["uri"].to_pylist()
    assert uris == sorted(uris)
    chosen = made.table(["uri"], where="width % 2 = 0 AND height % 3 <> 0")["uri"].to_pylist()
    assert chosen == sorted(chosen)


def test_the_id_changes_with_the_content_and_with_nothing_else(
    make: Make, make_row: Row, tmp_path: Path
) -> None:
    rows = [make_row(number) for number in range(20)]
    base = make(tmp_path / "a", rows).id
    same = make(tmp_path / "elsewhere" / "b", rows, versions={"ray": "9"}, source={"pipes": 3}, root="/other")
    assert same.id == base

    changed = {
        "value": make(tmp_path / "c", [make_row(0, license="other"), *rows[1:]]),
        "fewer": make(tmp_path / "d", rows[:-1]),
        "operation": make(tmp_path / "e", rows, operation={"kind": "other"}),
        "parent": make(tmp_path / "f", rows, parents=[Parent(id="1" * 64, path="p", role="slice of")]),
        "previews": make(tmp_path / "g", rows, previews=None),
        "schema": make(tmp_path / "h", rows, schema=SCHEMA.append(pa.field("extra", pa.int8()))),
    }
    ids = {name: made.id for name, made in changed.items()}
    assert len({base, *ids.values()}) == 1 + len(changed), ids


def test_a_manifest_is_never_overwritten(manifest: Manifest, make: Make, make_row: Row) -> None:
    before = _bytes(manifest)
    with pytest.raises(UserError, match="already contains"):
        make(manifest.path, [make_row(1)])
    assert _bytes(Manifest.open(manifest.path)) == before


class Killed(BaseException):
    """Raised as if the process were killed: no handler catches it."""


@pytest.mark.parametrize("step", range(1, 13))
def test_a_writer_killed_at_any_step_leaves_no_manifest_and_can_start_again(
    step: int, make: Make, make_row: Row, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [make_row(number) for number in range(300)]
    monkeypatch.setattr(parts, "GROUP_ROWS", 50)
    monkeypatch.setattr(parts, "PART_ROWS", 100)
    whole = make(tmp_path / "whole", rows)
    calls = {"n": 0}

    def dying(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            calls["n"] += 1
            if calls["n"] == step:
                raise Killed
            return function(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", dying(os.replace))
        patch.setattr(os, "fsync", dying(os.fsync))
        patch.setattr(Path, "unlink", lambda self, missing_ok=False: None)  # SIGKILL runs no finally
        with pytest.raises(Killed):
            make(tmp_path / "set", rows)
    assert not is_manifest(tmp_path / "set")
    with pytest.raises(UserError, match="unfinished"):
        Manifest.open(tmp_path / "set")
    again = make(tmp_path / "set", rows)
    assert again.id == whole.id
    assert sorted(_bytes(again)) == sorted(_bytes(whole)), "no leftover is beside the parts"


KILLED_WRITER = """
import os, sys
from pathlib import Path
import pyarrow as pa
from uhr.manifests.schema import BASE, schema_of, sample_id
from uhr.manifests.writer import Provenance, write_manifest
schema = schema_of(BASE)
def rows():
    for n in range(10**9):
        if n == 3:
            os.kill(os.getpid(), 9)
        uri = f"{n:09d}"
        row = {"uri": uri, "sample_id": sample_id(uri), "status": "kept"}
        yield pa.RecordBatch.from_pylist([row] * 150_000, schema=schema)
write_manifest(Path(sys.argv[1]), schema, rows(), Provenance("/", {"kind": "test"}))
"""


def test_a_writer_that_is_really_killed_leaves_no_manifest(tmp_path: Path, make: Make, make_row: Row) -> None:
    out = tmp_path / "set"
    done = subprocess.run([sys.executable, "-c", KILLED_WRITER, str(out)], check=False)
    assert done.returncode == -9
    assert list((out / "samples").iterdir()), "it was in the middle of a part"
    assert not is_manifest(out)
    assert make(out, [make_row(1)]).info.counts["rows"] == 1
    assert [file.name for file in (out / "samples").iterdir()] == ["part-00000.parquet"]


@pytest.mark.parametrize(
    "name", ["photo.jpg", "part-00000.parquet", ".part-0.parquet.tmp", "part-00000.parquet/x"]
)
def test_files_of_others_are_never_cleared(name: str, tmp_path: Path, make: Make, make_row: Row) -> None:
    precious = tmp_path / "set" / "samples" / name
    precious.parent.mkdir(parents=True)
    if name == "part-00000.parquet":
        pq.write_table(pa.table({"mine": [1]}), precious)
    else:
        precious.write_text("precious")
    before = precious.read_bytes()
    with pytest.raises(UserError, match="is in the way of the manifest"):
        make(tmp_path / "set", [make_row(1)])
    assert precious.read_bytes() == before


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda path: (path / "manifest.json").unlink(), "unfinished"),
        (lambda path: (path / "manifest.json").write_text("{"), "cannot be read"),
        (lambda path: (path / "manifest.json").write_text("[1]"), "not a JSON object"),
        (
            lambda path: _edit(path, schema_version=SCHEMA_VERSION + 1),
            f"schema version {SCHEMA_VERSION + 1}.*this uhr reads {SCHEMA_VERSION}: install a newer uhr",
        ),
        (
            lambda path: _edit(path, schema_version=SCHEMA_VERSION + 1, unheard_of=1),
            f"schema version {SCHEMA_VERSION + 1}",
        ),
        (lambda path: _edit(path, unheard_of=1), "unknown key 'unheard_of'"),
        (lambda path: _edit(path, parts=[]), "'parts' list should have at least 1 item"),
        (lambda path: _edit(path, counts={"rows": "many"}), "'counts': has no number of rows"),
        (lambda path: _edit(path, parts=[OUTSIDE]), "is not inside of the manifest's folder"),
        (lambda path: _retyped(path, "status"), "the column status is binary, not string"),
        (lambda path: (path / "samples/part-00000.parquet").unlink(), "is missing"),
        (lambda path: (path / "samples/part-00000.parquet").write_bytes(b"PAR1"), "has changed"),
    ],
)
def test_a_manifest_that_cannot_be_read_says_why_in_one_line(
    damage: Callable[[Path], Any], says: str, manifest: Manifest
) -> None:
    damage(manifest.path)
    with pytest.raises(UserError, match=says) as error:
        Manifest.open(manifest.path)
    assert "\n" not in str(error.value)
    assert error.value.fix


def test_where_there_is_nothing_the_error_names_the_place(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(UserError, match=str(path)):
            Manifest.open(path)


def test_programming_errors_do_not_become_manifests(make: Make, make_row: Row, tmp_path: Path) -> None:
    rows = [make_row(number) for number in range(4)]
    shuffled = [pa.RecordBatch.from_pylist([row], schema=SCHEMA) for row in reversed(rows)]
    with pytest.raises(AssertionError, match="out of order"):
        make(tmp_path / "a", rows, batches=shuffled)
    with pytest.raises(AssertionError, match="status"):
        make(tmp_path / "b", [make_row(1, status="maybe")])
    with pytest.raises(AssertionError, match="columns"):
        make(
            tmp_path / "c",
            rows,
            batches=[pa.record_batch({"uri": ["a"], "status": ["kept"], "reason": [""]})],
        )
    with pytest.raises(AssertionError, match="schema lacks"):
        make(tmp_path / "d", rows, schema=SCHEMA.remove(SCHEMA.get_field_index("entropy")))
    assert not any(is_manifest(tmp_path / name) for name in "abcd")


OUTSIDE = {"path": "../samples/part-00000.parquet", "rows": 1, "bytes": 1, "sha256": ""}


def _retyped(path: Path, name: str) -> None:
    """Give a column another type, and make manifest.json agree."""
    file = path / "samples/part-00000.parquet"
    table = pq.read_table(file)
    place = table.schema.get_field_index(name)
    pq.write_table(table.set_column(place, name, table[name].cast(pa.binary())), file)
    part = json.loads((path / "manifest.json").read_text())["parts"][0]
    _edit(path, parts=[part | {"bytes": file.stat().st_size}])


def _edit(path: Path, **changes: Any) -> None:
    file = path / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def _bytes(manifest: Manifest) -> dict[str, bytes]:
    files = [*manifest.path.glob("samples/*"), *manifest.path.glob("previews/*")]
    random.shuffle(files)
    return {str(file.relative_to(manifest.path)): file.read_bytes() for file in files}


@pytest.mark.parametrize("folder", ["samples", "previews"])
@pytest.mark.parametrize("place", ["middle", "footer", "end"])
def test_a_damaged_part_is_named_by_whatever_reads_it(
    folder: str, place: str, manifest: Manifest, tmp_path: Path
) -> None:
    ids = manifest.table(["sample_id"])["sample_id"].to_pylist()
    part = manifest.path / folder / "part-00000.parquet"
    data = bytearray(part.read_bytes())
    footer = int.from_bytes(data[-8:-4], "little")
    start = {"middle": 4, "footer": len(data) - 8 - footer, "end": len(data) - 4}[place]
    stop = {"middle": len(data) - 8 - footer, "footer": len(data) - 8, "end": len(data)}[place]
    data[start:stop] = bytes(255 - byte for byte in data[start:stop])
    part.write_bytes(data)
    says = f"{part} is damaged: see 'uhr manifest verify {manifest.path}'"
    readers: list[Callable[[Manifest], Any]] = [lambda each: each.previews(ids)]
    if folder == "samples":
        readers = [
            lambda each: each.table(where="entropy > 5"),
            lambda each: each.table(),
            lambda each: list(each.rows()),
            lambda each: each.row("folder/00001.jpg"),
            compute,
            lambda each: slice_manifest(each, tmp_path / "s", SliceOptions(where="entropy > 5")),
            lambda each: write_report(each, tmp_path / "r.html"),
        ]
    for read in readers:
        with pytest.raises(UserError, match=re.escape(says)):
            read(Manifest.open(manifest.path))
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_a_wrong_condition_on_a_sound_manifest_is_not_called_damage(manifest: Manifest) -> None:
    with pytest.raises(UserError, match="CAST"):
        manifest.table(where="CAST(uri AS INTEGER) = 1")
