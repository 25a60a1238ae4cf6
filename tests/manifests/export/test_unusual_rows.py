"""Exports of manifests with unusual rows, columns and splits, and into folders that are in use."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from uhr.base import parquet
from uhr.base.config import fingerprint
from uhr.base.errors import UserError
from uhr.base.locks import run_lock
from uhr.manifests.export import FORMATS, format_named
from uhr.manifests.export.base import ExportOptions
from uhr.manifests.export.job import WORK, ExportRequest, ExportResult, export
from uhr.manifests.manifest import Manifest
from uhr.manifests.schema import sample_id, schema_of
from uhr.manifests.sources.folder import uri_of

from ..conftest import COLUMNS

Build = Callable[..., Manifest]
SPLIT = COLUMNS["split"].field()
KEPT = {"status": "kept", "reason": None, "error": None}


@pytest.fixture
def build(make: Callable[..., Manifest], tmp_path: Path) -> Build:
    """Make a manifest of PNG files of 16 x 12 px, called `names`. `fields` are further columns; `changes` are
    values for all rows, or functions of the number of the row.
    """

    def build(
        *names: str, fields: tuple[pa.Field, ...] = (), folder: str = "set", **changes: Any
    ) -> Manifest:
        rows = []
        for number, name in enumerate(names or ("0.png", "1.png")):
            buffer = io.BytesIO()
            pixels = np.random.default_rng(number).integers(0, 256, (12, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(buffer, "PNG")
            file = tmp_path / "source" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(buffer.getvalue())
            row = {"uri": uri_of(name), "format": "PNG", "width": 16, "height": 12, **KEPT}
            row |= {"sample_id": sample_id(row["uri"]), "file_size": len(buffer.getvalue())}
            row |= {"content_hash": hashlib.sha256(buffer.getvalue()).hexdigest()}
            row |= {key: value(number) if callable(value) else value for key, value in changes.items()}
            rows.append(row)
        rows.sort(key=lambda row: row["uri"])
        schema = pa.schema([*schema_of(c for c in COLUMNS.values() if c.name != "split"), *fields])
        return make(tmp_path / folder, rows, schema=schema, root=tmp_path / "source", previews=None)

    return build


def run(to: str, parent: Manifest, out: Path, **options: Any) -> ExportResult:
    return export(ExportRequest(parent, out, format_named(to)(parent), ExportOptions(**options)))


@pytest.mark.parametrize("to", list(FORMATS))
@pytest.mark.parametrize("split", ["", "..", "a/b", "../../x", ".export", "a.json", "a\nb", "a" * 300])
def test_a_split_that_is_no_name_of_a_file_is_refused(
    to: str, split: str, build: Build, tmp_path: Path
) -> None:
    parent = build(fields=(SPLIT,), split=split)
    with pytest.raises(UserError, match=r"has a split .*cannot write") as found:
        run(to, parent, tmp_path / "below/out")
    assert "\n" not in str(found.value)
    assert {path.name for path in tmp_path.iterdir()} == {"set", "source"}


@pytest.mark.parametrize(("to", "split"), [("hf", "a-b"), ("kohya", "export"), ("simpletuner", "export")])
def test_a_split_that_the_format_would_confuse_is_refused(
    to: str, split: str, build: Build, tmp_path: Path
) -> None:
    """`data/a-*` in a dataset card would take the files of `a-b` too, and `export.json` is the record."""
    parent = build(fields=(SPLIT,), split=split)
    with pytest.raises(UserError, match=f"has a split '{split}', which --to {to} cannot write"):
        run(to, parent, tmp_path / "out")
    assert run("pairs", parent, tmp_path / "out").images == {split: 2}


@pytest.mark.parametrize("ids", [lambda n: "0" * 32, lambda n: f"../a{n}", lambda n: f"a.{n}"])
def test_sample_ids_that_are_no_names_of_files_are_refused(ids: Any, build: Build, tmp_path: Path) -> None:
    parent = build(sample_id=ids)
    for to in FORMATS:
        with pytest.raises(UserError, match=r"has the sample id .*uhr manifest verify"):
            run(to, parent, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_json_has_no_nan_and_the_bytes_of_binary_columns(build: Build, tmp_path: Path) -> None:
    fields = (pa.field("raw", pa.binary()), pa.field("some", pa.list_(pa.float64())))
    parent = build("0.png", fields=fields, raw=b"\xff\0", some=[1.0, float("nan")], entropy=float("inf"))
    for to in FORMATS:
        assert run(to, parent, tmp_path / to).images == {"train": 1}
    with tarfile.open(tmp_path / "webdataset/train-00000.tar") as tar:
        (member,) = [member for member in tar.getmembers() if member.name.endswith(".json")]
        file = tar.extractfile(member)
        assert file is not None
        texts = [file.read().decode(), (tmp_path / "folder/train/metadata.jsonl").read_text()]
    for text in texts:
        row = json.loads(text, parse_constant=pytest.fail)
        assert (row["raw"], row["some"]) == ("/wA=", [1.0, None])
        assert "entropy" not in row


ODD = ("position", "kind", "place", "n", "size", "image", "text", "file_name", "url", "options")


@pytest.mark.parametrize("to", list(FORMATS))
def test_columns_may_have_any_names(to: str, build: Build, tmp_path: Path) -> None:
    fields = tuple(pa.field(name, pa.string()) for name in ODD)
    parent = build(fields=fields, caption="a lake\r\n\u2028\0", **dict.fromkeys(ODD, "x"))
    assert run(to, parent, tmp_path / "out").images == {"train": 2}
    if to == "hf":
        (file,) = (tmp_path / "out/data").iterdir()
        for row in parquet.read(file).to_pylist():
            assert (row["text"], row["position"]) == ("a lake\r\n\u2028\0", "x")
            assert Image.open(io.BytesIO(row["image"]["bytes"])).size == (16, 12)
    if to == "folder":
        for line in (tmp_path / "out/train/metadata.jsonl").open(newline="\n"):
            row = json.loads(line)
            assert (row["text"], row["position"]) == ("a lake\r\n\u2028\0", "x")
            assert (tmp_path / "out/train" / row["file_name"]).is_file()


def test_files_with_any_names_are_found(build: Build, tmp_path: Path) -> None:
    names = ["a%41.png", os.fsdecode(b"caf\xe9.png"), "..a.png", "d/%2e%2e.png", "new\nline.png"]
    parent = build(*names)
    assert run("pairs", parent, tmp_path / "out").images == {"train": 5}
    for name in names:
        file = tmp_path / f"out/train/00000/{sample_id(uri_of(name))}.png"
        assert file.read_bytes() == (tmp_path / "source" / name).read_bytes()


@pytest.mark.parametrize("box", [[8, 8, 9, 4], [-4, 0, 8, 8], [0, 0, 0, 4], [0, 4, 4, 9]])
def test_a_patch_that_is_not_inside_of_its_image_is_left_out(
    box: list[int], build: Build, tmp_path: Path
) -> None:
    result = run("pairs", build("0.png", parent_id="p", box=box), tmp_path / "out")
    assert result.images == {}
    assert [fault["error"] for fault in result.failed] == [
        f"the patch {box} is not inside of the image of 16 x 12 px"
    ]


@pytest.mark.parametrize(
    ("to", "changes", "options", "says"),
    [
        ("kohya", {"width": lambda n: 16 if n else None}, {}, "needs width, which is null on 1 kept rows"),
        ("simpletuner", {"height": None}, {}, "needs height, which is null on 2 kept rows"),
        ("pairs", {}, {"captions": ("width",)}, "has int32, not texts.*name one of caption"),
        ("hf", {"fields": (pa.field("m", pa.map_(pa.string(), pa.int32())),)}, {}, "`datasets` cannot have"),
        ("pairs", {"fields": (pa.field("split", pa.int32()),), "split": 1}, {}, "split is int32, not a text"),
        ("os:path", {}, {}, "os:path is not a format"),
        ("collections:Counter", {}, {}, "Counter is not a format"),
    ],
)
def test_an_export_that_cannot_be_says_why(
    to: str, changes: dict[str, Any], options: dict[str, Any], says: str, build: Build, tmp_path: Path
) -> None:
    parent = build(**changes)
    with pytest.raises(UserError, match=says):
        run(to, parent, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_out_is_outside_of_manifests_and_the_source(build: Build, tmp_path: Path) -> None:
    parent = build()
    with pytest.raises(UserError, match="is inside the manifest"):
        run("pairs", parent, parent.path / "out")
    with pytest.raises(UserError, match="is inside the source"):
        run("pairs", parent, tmp_path / "source/out")
    for to in ("kohya", "simpletuner"):
        with pytest.raises(UserError, match="not UTF-8"):
            run(to, parent, tmp_path / os.fsdecode(b"caf\xe9"))
    assert {path.name for path in tmp_path.iterdir()} == {"set", "source"}


def test_two_exports_at_once_and_files_that_are_gone(build: Build, tmp_path: Path) -> None:
    parent, out = build(), tmp_path / "out"
    with run_lock.only_run(out / WORK), pytest.raises(UserError, match="another run is at work in"):
        run("webdataset", parent, out)
    (out / WORK / run_lock.NAME).unlink()
    assert run("webdataset", parent, out).images == {"train": 2}
    assert run("webdataset", parent, out).finished_before
    (out / "train-00000.tar").unlink()
    with pytest.raises(UserError, match=r"contains an export without train-00000\.tar"):
        run("webdataset", parent, out)


@pytest.mark.parametrize("to", list(FORMATS))
def test_what_a_killed_process_left_half_written_is_removed(to: str, build: Build, tmp_path: Path) -> None:
    parent, out = build(), tmp_path / "out"
    whole = run(to, parent, tmp_path / "whole")
    first = json.loads((tmp_path / "whole/export.json").read_text())
    assert whole.shards == 1
    (shard,) = first["files"]
    (out / WORK).mkdir(parents=True)
    plan = ExportRequest(parent, out, format_named(to)(parent)).plan()
    (out / WORK / "plan.json").write_text(json.dumps({"plan": fingerprint(plan)}))
    left = (out / shard).with_name(f".{Path(shard).name}.{'0' * 32}.tmp")
    if "." in Path(shard).name:
        left.parent.mkdir(exist_ok=True)
        left.write_bytes(b"half")
    else:
        left.mkdir(parents=True)
        (left / "half.png").write_bytes(b"half")
    other = left.with_name(f".mine.{'0' * 32}.tmp")
    other.write_bytes(b"not of this export")
    assert run(to, parent, out).images == {"train": 2}
    names = {str(path.relative_to(tmp_path / "whole")) for path in (tmp_path / "whole").rglob("*")}
    found = {str(path.relative_to(out)) for path in out.rglob("*")}
    assert found == names | {str(other.relative_to(out))}


def test_a_card_is_a_card_whatever_names_and_licences_are(build: Build, tmp_path: Path) -> None:
    parent = build(folder=os.fsdecode(b"caf\xe9"), license="a|b\nc")
    run("hf", parent, tmp_path / "out")
    card = (tmp_path / "out/README.md").read_text(encoding="utf-8")
    assert "# caf%E9\n" in card
    assert "| a\\|b c | 2 |" in card
