"""The listing: one row per regular file, whatever the tree holds, and nothing opened that is no file."""

from __future__ import annotations

import json
import os
import shutil
import socket
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from uhr.base.errors import UserError
from uhr.manifests import sources
from uhr.manifests.sources.base import ITEMS
from uhr.manifests.sources.folder import Folder
from uhr.manifests.uris import path_of

NAMES = st.binary(min_size=1, max_size=12).filter(lambda b: b not in (b".", b"..") and not {0, 47} & set(b))


def uris(source: Path) -> list[str]:
    return Folder.at(source).list().items["uri"].to_pylist()


@given(
    files=st.dictionaries(
        st.lists(NAMES, min_size=1, max_size=3).map(tuple), st.binary(max_size=3), max_size=12
    )
)
def test_every_regular_file_is_one_row_whose_address_leads_back_to_it(tmp_path_factory, files):
    root = tmp_path_factory.mktemp("tree")
    (root / "always.jpg").touch()
    for parts, content in files.items():
        path = os.path.join(os.fsencode(root), *parts)
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "wb") as file:
                file.write(content)
        except OSError:
            continue  # a file is where this one needs a folder, or the other way round
    listing = Folder.at(root).list()
    found = [path_of(root, uri) for uri in listing.items["uri"].to_pylist()]
    sidecars = [path_of(root, uri) for cars in listing.items["sidecars"].to_pylist() for uri in cars or ()]
    walked = [Path(folder) / name for folder, _, names in os.walk(root) for name in names]
    assert sorted(map(os.fsencode, found + sidecars)) == sorted(map(os.fsencode, walked))
    assert listing.bytes == sum(path.stat().st_size for path in walked)
    assert listing.items["uri"].to_pylist() == sorted(listing.items["uri"].to_pylist())
    shutil.rmtree(root)


def test_links_are_samples_of_their_own_and_never_resolved(tmp_path):
    source = tmp_path / "source"
    (source / "real").mkdir(parents=True)
    (source / "real" / "a.jpg").write_bytes(b"12345")
    (tmp_path / "outside.jpg").write_bytes(b"123")
    (source / "inside.jpg").symlink_to(source / "real" / "a.jpg")
    (source / "outside.jpg").symlink_to(tmp_path / "outside.jpg")
    (source / "broken.jpg").symlink_to("nowhere")
    (source / "loop.jpg").symlink_to("loop.jpg")
    (source / "folder").symlink_to(source / "real")
    (source / "up").symlink_to("..")
    listing = Folder.at(source).list()
    rows = {row["uri"]: row for row in listing.items.to_pylist()}
    assert list(rows) == ["broken.jpg", "inside.jpg", "loop.jpg", "outside.jpg", "real/a.jpg"]
    assert rows["inside.jpg"]["source_version"] == rows["real/a.jpg"]["source_version"]
    assert rows["outside.jpg"]["source_version"].startswith("3-")
    assert {uri for uri, row in rows.items() if row["fault"] == "broken link"} == {"broken.jpg", "loop.jpg"}
    assert listing.not_opened["linked_folders"] == 2


def test_what_is_no_file_is_counted_and_never_opened(tmp_path, monkeypatch):
    (tmp_path / "a.jpg").touch()
    os.mkfifo(tmp_path / "pipe.jpg")  # opening it would wait for ever
    (tmp_path / "null.jpg").symlink_to("/dev/null")
    listener = socket.socket(socket.AF_UNIX)
    monkeypatch.chdir(tmp_path)  # the address of a socket may have 107 bytes
    listener.bind("socket.jpg")
    try:
        listing = Folder.at(tmp_path).list()
    finally:
        listener.close()
    assert listing.items["uri"].to_pylist() == ["a.jpg"]
    assert {name: n for name, n in listing.not_opened.items() if n} == {
        "pipes": 1,
        "devices": 1,
        "sockets": 1,
    }


def test_a_folder_that_cannot_be_read_is_counted_and_named_and_the_rest_is_listed(tmp_path):
    (tmp_path / "a.jpg").touch()
    # deeper than any path may be long: real, and unreadable for root too
    here = os.open(tmp_path, os.O_RDONLY)
    for _ in range(20):
        os.mkdir("d" * 250, dir_fd=here)
        below = os.open("d" * 250, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    listing = Folder.at(tmp_path).list()
    assert listing.items["uri"].to_pylist() == ["a.jpg"]
    assert listing.not_opened["unreadable_folders"] == 1
    assert "name too long" in listing.unreadable[0]


def test_hidden_files_are_rows_as_well(tmp_path):
    for name in (".DS_Store", ".hidden.jpg", "Thumbs.db", ".cache/x.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert uris(tmp_path) == [".DS_Store", ".cache/x.png", ".hidden.jpg", "Thumbs.db"]


@pytest.mark.parametrize(
    ("files", "rows"),
    [
        ("a.jpg a.txt", {"a.jpg": ["a.txt"]}),
        ("a.jpg a.json a.txt", {"a.jpg": ["a.json", "a.txt"]}),
        ("a.jpg a.jpg.txt a.txt", {"a.jpg": ["a.txt", "a.jpg.txt"]}),
        ("a.JPG a.TXT", {"a.JPG": ["a.TXT"]}),
        ("a.jpg a.png a.txt", {"a.jpg": ["a.txt"], "a.png": ["a.txt"]}),
        ("a.jpg b.txt", {"a.jpg": None, "b.txt": None}),
        ("a.pdf a.txt", {"a.pdf": None, "a.txt": None}),
        ("a.jpg a.md", {"a.jpg": None, "a.md": None}),
        ("a.b.jpg a.b.txt a.txt", {"a.b.jpg": ["a.b.txt"], "a.txt": None}),
        ("x/a.jpg y/a.txt", {"x/a.jpg": None, "y/a.txt": None}),
        ("é%.jpg é%.txt", {"é%25.jpg": ["é%25.txt"]}),
    ],
)
def test_sidecars_go_with_their_image_and_are_no_rows(tmp_path, files, rows):
    for name in files.split():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert {row["uri"]: row["sidecars"] for row in Folder.at(tmp_path).list().items.to_pylist()} == rows


def test_a_broken_link_beside_an_image_is_a_row_not_a_sidecar(tmp_path):
    (tmp_path / "a.jpg").touch()
    (tmp_path / "a.txt").symlink_to("nowhere")
    assert uris(tmp_path) == ["a.jpg", "a.txt"]


def test_a_changed_sidecar_or_image_changes_the_items(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"1")
    (tmp_path / "a.txt").write_bytes(b"1")
    versions = [Folder.at(tmp_path).list().items]
    for name in ("a.jpg", "a.txt"):
        (tmp_path / name).write_bytes(b"22")
        versions.append(Folder.at(tmp_path).list().items)
    assert versions[0].schema == ITEMS
    assert not versions[0].equals(versions[1])
    assert not versions[1].equals(versions[2])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.write_bytes(b""), "is a file"),
        (lambda path: path.mkdir(), "contains no file"),
        (lambda path: (path / "a" / "b").mkdir(parents=True), "contains no file"),
        (lambda path: (path.mkdir(), os.mkfifo(path / "p")), r"contains no file \(1 pipes\)"),
    ],
)
def test_a_source_without_files_is_one_clear_line(tmp_path, make, message):
    make(tmp_path / "source")
    with pytest.raises(UserError, match=message) as error:
        Folder.at(tmp_path / "source").list()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "fix"),
    [
        ("set.parquet", "write parquet:{0} or urls:{0}"),
        ("list.CSV", "write urls:{0}"),
        ("set.tar", "write webdataset:{0} or archives:{0}"),
        ("set.zip", "write archives:{0}"),
        ("image.jpg", "name the folder that contains it"),
    ],
)
def test_a_file_is_no_folder_and_the_kind_that_reads_it_is_named(tmp_path, name, fix):
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(UserError) as error:
        sources.parse(str(tmp_path / name)).check()
    assert error.value.fix == fix.format(tmp_path / name)
    if fix.startswith("write"):
        kinds = [text.partition(":")[0] for text in error.value.fix.removeprefix("write ").split(" or ")]
        assert set(kinds) <= set(sources.NAMES)


def given_of(source: Folder) -> dict[str, dict | None]:
    items = source.list().items
    values = items["given"].to_pylist() if "given" in items.schema.names else [None] * items.num_rows
    return {
        uri: value and json.loads(value) for uri, value in zip(items["uri"].to_pylist(), values, strict=True)
    }


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_the_metadata_of_an_image_folder_goes_to_its_files(tmp_path, suffix):
    rows = [{"file_name": "0.jpg", "text": "a lake"}, {"file_name": "./deep/1.jpg", "text": "é"}]
    rows += [{"file_name": "gone.jpg", "text": "no such file"}]
    (tmp_path / "train" / "deep").mkdir(parents=True)
    for name in ("train/0.jpg", "train/deep/1.jpg", "train/2.jpg", "0.jpg"):
        (tmp_path / name).touch()
    file = tmp_path / "train" / f"metadata.{suffix}"
    if suffix == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), file)
    elif suffix == "csv":
        file.write_text("file_name,text\n" + "".join(f"{r['file_name']},{r['text']}\n" for r in rows))
    else:
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8-sig")
    source = Folder.at(tmp_path)
    assert given_of(source) == {
        "0.jpg": None,
        "train/0.jpg": {"text": "a lake"},
        "train/2.jpg": None,
        "train/deep/1.jpg": {"text": "é"},
    }
    assert source.list().not_opened["unmatched_rows"] == 1


def test_metadata_that_cannot_be_read_is_a_row_that_says_why(tmp_path):
    for name, content in (("a", "{"), ("b", '{"x": 1}\n'), ("c", '{"file_name": "0.jpg", "x": 1}\n')):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.jpg").touch()
        (tmp_path / name / "metadata.jsonl").write_text(content)
    rows = {row["uri"]: row["fault_words"] for row in Folder.at(tmp_path).list().items.to_pylist()}
    assert rows.keys() == {"a/0.jpg", "a/metadata.jsonl", "b/0.jpg", "b/metadata.jsonl", "c/0.jpg"}
    assert "metadata.jsonl cannot be read" in rows["a/metadata.jsonl"]
    assert rows["b/metadata.jsonl"] is None, "a table that names no files is a file like any other"


@pytest.mark.parametrize(("on", "key"), [("name", "0.jpg"), ("stem", "0"), ("path", "in/0.jpg")])
def test_a_vendors_table_is_joined_by_its_key(tmp_path, on, key):
    (tmp_path / "set" / "in").mkdir(parents=True)
    (tmp_path / "set" / "in" / "0.jpg").touch()
    (tmp_path / "t.csv").write_text(f"Asset,Title\n{key},a lake\nother,b\n")
    table = {"path": str(tmp_path / "t.csv"), "key": "Asset", "on": on}
    source = sources.build({"kind": "folder", "path": str(tmp_path / "set"), "table": table}, "p.yaml")
    assert given_of(source) == {"in/0.jpg": {"Title": "a lake"}}
    assert source.list().not_opened["unmatched_rows"] == 1
    again = sources.build(source.origin, "manifest.json")
    assert given_of(again) == given_of(source)


def test_rows_of_a_table_that_a_later_one_replaces_are_counted(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "0.jpg").touch()
    place = str(tmp_path / "set")
    (tmp_path / "t.csv").write_text("Asset,Title\n0,a lake\n0,a lake\n0,a pond\n1,a hill\n")
    table = {"path": str(tmp_path / "t.csv"), "key": "Asset", "on": "stem"}
    joined = sources.build({"kind": "folder", "path": place, "table": table}, "p.yaml")
    assert given_of(joined) == {"0.jpg": {"Title": "a pond"}}
    assert joined.list().not_opened["replaced_rows"] == 1, "the repeated row says the same"
    rows = [{"file_name": "0.jpg", "text": text} for text in ("a lake", "a pond", "a sea")]
    (tmp_path / "set" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert given_of(Folder.at(place)) == {"0.jpg": {"text": "a sea"}}
    assert Folder.at(place).list().not_opened["replaced_rows"] == 2


def test_a_table_that_names_no_file_is_one_line(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "0.jpg").touch()
    (tmp_path / "t.csv").write_text("Asset,Title\n1.jpg,a lake\n")
    for key, message in (
        ("Asset", "its keys are '1.jpg' and the files are '0.jpg'"),
        ("Aset", "unknown column"),
    ):
        table = {"path": str(tmp_path / "t.csv"), "key": key}
        source = sources.build({"path": str(tmp_path / "set"), "table": table}, "p.yaml")
        with pytest.raises(UserError, match=message):
            source.list()
