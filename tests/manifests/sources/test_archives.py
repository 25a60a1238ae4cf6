"""Archives and WebDataset shards: every member is found, and opened at its place."""

from __future__ import annotations

import io
import json
import os
import tarfile
import zipfile
from pathlib import Path

import pytest

from uhr.base.errors import UserError
from uhr.manifests import sources
from uhr.pixels.types import PixelFault


def tar(path: Path, files: dict[str, bytes], **options) -> Path:
    with tarfile.open(path, "w", **options) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def zipped(path: Path, files: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


@pytest.fixture(scope="module")
def image(forge) -> bytes:
    return forge.encode(forge.image(300, 200), "JPEG", quality=95)


def rows_of(source) -> dict[str, dict]:
    return {row["uri"]: row for row in source.list().items.to_pylist()}


LONG = "x" * 300


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("with_version", [True, False])
def test_members_of_a_tar_are_opened_at_their_place(tmp_path, image, format, with_version):
    names = ["a.jpg", "deep/er/b.jpg", "é%.jpg", *([f"{LONG}.jpg"] if format != tarfile.USTAR_FORMAT else [])]
    tar(tmp_path / "s.tar", {name: image + name.encode() for name in names}, format=format)
    source = sources.parse(f"webdataset:{tmp_path / 's.tar'}")
    rows = rows_of(source)
    assert sorted(rows) == sorted(f"s.tar/{name.replace('%', '%25')}" for name in names)
    for uri, row in rows.items():
        blob = source.open(row if with_version else {"uri": uri})
        name = uri.removeprefix("s.tar/").replace("%25", "%")
        assert blob.read() == image + name.encode()
        assert (blob.size, blob.head(3), blob.header().width) == (
            len(image) + len(name.encode()),
            image[:3],
            300,
        )
        assert blob.at(len(image), 1000) == name.encode(), "no byte of the next member"


def test_the_header_of_a_member_needs_only_its_first_bytes(tmp_path, image, monkeypatch):
    source = sources.parse(f"webdataset:{tar(tmp_path / 's.tar', {'a.jpg': image + bytes(5_000_000)})}")
    row = source.list().items.to_pylist()[0]
    read, pread = [], os.pread

    def counted(*given):
        read.append(len(data := pread(*given)))
        return data

    monkeypatch.setattr(os, "pread", counted)
    assert source.open(row).header().height == 200
    assert sum(read) <= 20_000


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("with_version", [True, False])
def test_members_of_a_zip_are_read_stored_or_deflated(tmp_path, image, method, with_version):
    data = image + bytes(3_000_000)
    zipped(tmp_path / "z.zip", {"in/a.jpg": data, "in/a.txt": b"a lake", "é.jpg": image}, method)
    source = sources.parse(f"archives:{tmp_path}")
    rows = rows_of(source)
    assert {uri: row["sidecars"] for uri, row in rows.items()} == {
        "z.zip/in/a.jpg": ["z.zip/in/a.txt"],
        "z.zip/é.jpg": None,
    }
    row = rows["z.zip/in/a.jpg"]
    blob = source.open(row if with_version else {"uri": row["uri"]})
    assert blob.read() == data
    assert (blob.size, blob.head(2), blob.header().width) == (len(data), b"\xff\xd8", 300)
    assert blob.at(len(image), 5) == bytes(5)
    caption = source.open({"uri": row["sidecars"][0], "source_version": row["sidecar_versions"]})
    assert caption.read() == b"a lake"


def test_samples_of_a_webdataset_are_grouped_by_key(tmp_path, image):
    files = {
        "0.jpg": image,
        "0.txt": b"caption",
        "0.json": json.dumps({"author": "Ada"}).encode(),
        "0.cls": b"3",
        "0.seg.png": image,
        "0#1?.jpg": image,
        "0#1?.cls": b"3",
        "1.npy": b"no image",
        "2.txt": b"text alone",
        "b/0.jpg": image,
    }
    source = sources.parse(f"webdataset:{tar(tmp_path / 's.tar', files)}")
    listing = source.list()
    rows = {row["uri"]: row["sidecars"] for row in listing.items.to_pylist()}
    assert rows == {
        "s.tar/0.jpg": ["s.tar/0.json", "s.tar/0.txt"],
        "s.tar/0.seg.png": None,
        "s.tar/0#1?.jpg": None,
        "s.tar/1.npy": None,
        "s.tar/2.txt": None,
        "s.tar/b/0.jpg": None,
    }
    assert listing.not_opened == {"other_members": 2}


def test_shards_are_named_by_braces_patterns_and_folders(tmp_path, image):
    (tmp_path / "train").mkdir()
    for number in range(12):
        tar(tmp_path / "train" / f"s-{number:03d}.tar", {"a.jpg": image})
    braces = sources.parse(f"webdataset:{tmp_path}/train/s-{{000..010}}.tar")
    assert braces.list().items["uri"].to_pylist() == [f"s-{n:03d}.tar/a.jpg" for n in range(11)]
    assert sources.parse(f"webdataset:{tmp_path}/train/s-00*.tar").list().items.num_rows == 10
    folder = sources.parse(f"webdataset:{tmp_path}")
    assert folder.list().items["uri"].to_pylist()[0] == "train/s-000.tar/a.jpg"
    for source in (braces, folder):
        item = source.list().items.to_pylist()[3]
        assert source.open({"uri": item["uri"]}).read() == image


def test_shards_that_braces_name_and_are_absent_are_an_error(tmp_path, image):
    for number in (0, 1, 3):
        tar(tmp_path / f"s-{number}.tar", {"a.jpg": image})
    message = r"2 of the 5 archives at .*/s-\{0\.\.4\}\.tar do not exist \(.*/s-2\.tar, \.\.\.\)"
    with pytest.raises(UserError, match=message):
        sources.parse(f"webdataset:{tmp_path}/s-{{0..4}}.tar").list()


def test_members_of_one_name_are_rows_of_their_own(tmp_path, image):
    path = tmp_path / "s.tar"
    with tarfile.open(path, "w") as archive:
        for data in (image, image + b"2"):
            info = tarfile.TarInfo("a.jpg")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    source = sources.parse(f"webdataset:{path}")
    rows = rows_of(source)
    assert list(rows) == ["s.tar/a.jpg", "s.tar/a.jpg#2"]
    assert (
        source.open({"uri": "s.tar/a.jpg#2"}).read()
        == source.open(rows["s.tar/a.jpg#2"]).read()
        == image + b"2"
    )


def test_a_truncated_tar_lists_what_is_there_and_says_so(tmp_path, image):
    path = tar(tmp_path / "s.tar", {"a.jpg": image, "b.jpg": image})
    path.write_bytes(path.read_bytes()[: 1024 + 2 * len(image) - 2000])
    source = sources.parse(f"webdataset:{path}")
    listing = source.list()
    rows = {row["uri"]: row for row in listing.items.to_pylist()}
    assert rows["s.tar"]["fault"] == "unreadable"
    assert "cannot be read to its end" in rows["s.tar"]["fault_words"]
    assert len(listing.unreadable) == 1
    assert source.open(rows["s.tar/a.jpg"]).read() == image
    with pytest.raises(PixelFault, match="the archive ends inside of this member"):
        source.open(rows["s.tar/b.jpg"]).read()


@pytest.mark.parametrize("make", [tar, zipped])
def test_damage_in_the_middle_is_a_row_that_fails(tmp_path, image, make):
    suffix = ".tar" if make is tar else ".zip"
    path = make(tmp_path / f"s{suffix}", {"a.jpg": image, "b.jpg": image, "c.jpg": image})
    data = bytearray(path.read_bytes())
    place = data.index(b"b.jpg")
    data[place - (0 if make is tar else 30) : place + 200] = b"\x7f" * (200 if make is tar else 230)
    path.write_bytes(data)
    rows = rows_of(sources.parse(f"archives:{path}"))
    assert rows[f"s{suffix}"]["fault"] == "unreadable"
    assert f"s{suffix}/a.jpg" in rows


def test_a_deflated_member_that_is_damaged_or_claims_too_little_is_a_fault(tmp_path, image):
    path = zipped(tmp_path / "z.zip", {"a.jpg": bytes(100_000) + image}, zipfile.ZIP_DEFLATED)
    source = sources.parse(f"archives:{path}")
    row = source.list().items.to_pylist()[0]
    data = bytearray(path.read_bytes())
    data[60:120] = os.urandom(60)
    status = path.stat()
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(PixelFault) as fault:
        source.open(row).read()
    assert fault.value.kind in ("corrupt", "truncated")


def test_an_archive_that_changed_after_it_was_listed_is_a_fault(tmp_path, image):
    path = tar(tmp_path / "s.tar", {"a.jpg": image})
    source = sources.parse(f"webdataset:{path}")
    row = source.list().items.to_pylist()[0]
    tar(path, {"b.jpg": b"1", "a.jpg": image})
    for read in (lambda blob: blob.header(), lambda blob: blob.read(), lambda blob: blob.check_unchanged()):
        with pytest.raises(PixelFault, match="the file changed"):
            read(source.open(row))
    assert source.open({"uri": row["uri"]}).read() == image, "by its name it is found in the new version"
    with pytest.raises(PixelFault, match=r"has no member c\.jpg"):
        source.open({"uri": "s.tar/c.jpg"}).read()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("s.tar.gz", "is compressed"),
        ("s.tgz", "is compressed"),
        ("s.txt", "is not a .tar"),
        (None, "there is no"),
    ],
)
def test_what_is_no_archive_is_one_line(tmp_path, name, message):
    if name:
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(UserError, match=message):
        sources.parse(f"webdataset:{tmp_path / (name or '*.tar')}").list()


def test_an_address_outside_of_the_archives_is_refused(tmp_path, image):
    source = sources.parse(f"webdataset:{tar(tmp_path / 's.tar', {'a.jpg': image})}")
    for uri in ("a.jpg", "../s.tar/a.jpg", "t.tar/a.jpg"):
        with pytest.raises(UserError, match="no archive of"):
            source.open({"uri": uri})


def test_a_member_named_as_a_numbered_one_is_not_lost(tmp_path, image):
    with tarfile.open(tmp_path / "s.tar", "w") as archive:
        for number, name in enumerate(["x.jpg", "x.jpg", "x.jpg#2"]):
            info = tarfile.TarInfo(name)
            info.size = len(image) + number
            archive.addfile(info, io.BytesIO(image + bytes(number)))
    source = sources.parse(f"archives:{tmp_path / 's.tar'}")
    sizes = {uri: source.open(row).size - len(image) for uri, row in rows_of(source).items()}
    assert sizes == {"s.tar/x.jpg": 0, "s.tar/x.jpg#2": 1, "s.tar/x.jpg#2#2": 2}


def test_what_the_standard_library_cannot_read_is_a_row_that_fails(tmp_path, image):
    path = zipped(tmp_path / "new.zip", {"a.jpg": image})
    data = bytearray(path.read_bytes())
    data[data.rfind(b"PK\1\2") + 6] = 99  # the version of zip that is needed
    path.write_bytes(data)
    header = tarfile.TarInfo("p")
    header.type = tarfile.XHDTYPE
    (tmp_path / "deep.tar").write_bytes(header.tobuf(tarfile.USTAR_FORMAT) * 2000 + bytes(1024))
    rows = rows_of(sources.parse(f"archives:{tmp_path}"))
    assert {uri: row["fault"] for uri, row in rows.items()} == dict.fromkeys(
        ["deep.tar", "new.zip"], "unreadable"
    )
