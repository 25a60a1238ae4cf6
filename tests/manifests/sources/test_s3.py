"""An S3 bucket as a source, on a real server on the loopback."""

from __future__ import annotations

from pathlib import Path

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from uhr.base.errors import UserError
from uhr.base.store import StoreError
from uhr.manifests import sources
from uhr.manifests.manifest import Manifest
from uhr.manifests.sources import tables
from uhr.manifests.sources.base import check_no_overlap
from uhr.pixels.types import PixelFault


@pytest.fixture
def bucket(s3, forge):
    """A client's `put(key, bytes)` for the bucket; three images are in it, two of them with sidecars."""
    client = boto3.client("s3")

    def put(key: str, data: bytes) -> None:
        client.put_object(Bucket=s3.bucket, Key=key, Body=data)

    for number in range(3):
        put(f"set/in/é %{number}.jpg", forge.encode(forge.image(480, 320, seed=number), "JPEG", quality=95))
    put("set/in/é %0.txt", b"a lake")
    put("set/in/é %1.json", b'{"license": "CC0"}')
    put("set/empty/", b"")
    put("other/x.jpg", b"1")
    return put


def test_objects_are_listed_with_sidecars_and_versions(s3, bucket):
    source = sources.parse(f"s3://{s3.bucket}/set")
    rows = {row["uri"]: row["sidecars"] for row in source.list().items.to_pylist()}
    assert rows == {
        "in/é %250.jpg": ["in/é %250.txt"],
        "in/é %251.jpg": ["in/é %251.json"],
        "in/é %252.jpg": None,
    }


def test_a_header_is_one_request_for_a_range(s3, bucket):
    source = sources.parse(f"s3://{s3.bucket}/set")
    listing = source.list()
    row = listing.items.to_pylist()[0]
    s3.requests.clear()
    blob = source.open(row)
    assert (blob.header().width, blob.size) == (480, len(blob.read()))
    assert [method for method, _ in s3.requests] == ["GET", "GET"]
    assert len(blob.at(5, 10)) == 10
    assert listing.bytes > blob.size
    assert source.open({"uri": row["uri"]}).size == blob.size, "also without its version"


def test_objects_that_changed_or_are_gone_are_faults(s3, bucket):
    source = sources.parse(f"s3://{s3.bucket}/set")
    first, second, third = source.list().items.to_pylist()
    bucket("set/in/é %0.jpg", b"another")
    boto3.client("s3").delete_object(Bucket=s3.bucket, Key="set/in/é %1.jpg")
    for row, message in ((first, "its ETag is another"), (second, "it was removed after it was listed")):
        with pytest.raises(PixelFault, match=message) as fault:
            source.open(row).header()
        assert fault.value.kind == "changed"
    with pytest.raises(PixelFault, match="there is no such object"):
        source.open({"uri": second["uri"]}).read()
    s3.fault = lambda method, path: 403 if method == "GET" else None
    with pytest.raises(PixelFault, match="access is denied"):
        source.open(third).read()


def test_a_prefix_without_objects_and_a_missing_bucket_are_one_line(s3):
    with pytest.raises(UserError, match="contains no object"):
        sources.parse(f"s3://{s3.bucket}/nothing").list()
    with pytest.raises(StoreError, match="there is no such bucket"):
        sources.parse(f"s3://{s3.bucket}-nowhere/x").list()
    with pytest.raises(UserError, match="names no bucket"):
        sources.parse("s3://").check()


def test_a_bucket_is_curated_in_worker_processes_and_verified(s3, bucket, tmp_path, uhr_command):
    arguments = ("--source", f"s3://{s3.bucket}/set", "--out", tmp_path / "out", "--engine", "local")
    code, _, errors = uhr_command("curate", "run", "quickstart", *arguments, "--workers", 1)
    assert code == 0, errors
    rows = Manifest.open(tmp_path / "out").table().to_pylist()
    assert [(row["width"], row["caption"], row["license"]) for row in rows] == [
        (480, "a lake", None),
        (480, None, "CC0"),
        (480, None, None),
    ]
    assert all(row["content_hash"] for row in rows)
    code, printed, errors = uhr_command("manifest", "verify", tmp_path / "out", "--pixels")
    assert code == 0, printed + errors
    bucket("set/in/é %2.jpg", b"another")
    assert uhr_command("manifest", "verify", tmp_path / "out", "--pixels")[0] == 1


@pytest.fixture
def uhr_command(capfd):
    """Run a command as a user would type it: exit code, standard output, standard error."""

    def call(*arguments: object) -> tuple[int, str, str]:
        from uhr.cli import main

        capfd.readouterr()
        code = main([str(argument) for argument in arguments])
        return code, *capfd.readouterr()

    return call


LISTS = {"part-0.parquet": ["http://e.org/0.jpg", None], "sub/part-1.parquet": ["http://e.org/1.jpg"]}


@pytest.fixture
def lists(s3, tmp_path):
    """A folder of lists of URLs, and its copy in the bucket; a CSV with a licence for each image."""
    folder, client = tmp_path / "lists", boto3.client("s3")
    for name, urls in LISTS.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        sizes = [4000 + number for number in range(len(urls))]
        pq.write_table(pa.table({"url": urls, "width": sizes, "height": sizes}), folder / name)
        client.upload_file(str(folder / name), s3.bucket, f"lists/{name}")
    client.put_object(Bucket=s3.bucket, Key="lists/LICENSE.txt", Body=b"no list")
    client.put_object(Bucket=s3.bucket, Key="bad.csv", Body=b"url,b\n1\n")
    client.put_object(Bucket=s3.bucket, Key="vendor.csv", Body="name,license\né %0,CC0\né %2,MIT\n".encode())
    return folder


@pytest.mark.parametrize("place", ["", "/part-0.parquet", "/part-*.parquet", "/"])
def test_a_list_of_urls_in_a_bucket_is_that_of_its_copy(s3, lists, place):
    here = sources.parse(f"urls:{lists}{place}").list().items
    there = sources.parse(f"urls:s3://{s3.bucket}/lists{place}")
    assert there.list().items == here
    assert here.num_rows == (3 if place in ("", "/") else 2)
    again = sources.build(there.origin, "manifest.json")
    assert (again, again.place) == (there, f"s3://{s3.bucket}/lists{place}")
    if place == "":
        with pytest.raises(UserError, match=r"and the source s3://\S+/lists overlap"):
            check_no_overlap(there, f"s3://{s3.bucket}/lists/out")


def test_one_table_of_a_bucket_is_on_this_disk_at_a_time(s3, lists):
    with tables.opened(f"s3://{s3.bucket}/lists") as files:
        for at, (file, name) in enumerate(zip(files, sorted(LISTS), strict=True)):
            folder = Path(file.as_posix().removesuffix(name))
            assert [path for path in folder.rglob("*") if path.is_file()] == [file], at
    assert not folder.exists()


def test_a_vendors_table_in_a_bucket_is_joined(s3, bucket, lists):
    table = {"path": f"s3://{s3.bucket}/vendor.csv", "key": "name", "on": "stem"}
    listing = sources.build({"kind": "s3", "path": f"s3://{s3.bucket}/set", "table": table}, "p.yaml").list()
    assert listing.items["given"].to_pylist() == ['{"license": "CC0"}', None, '{"license": "MIT"}']


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("urls:s3://BUCKET/bad.csv", r"the table s3://BUCKET/bad\.csv cannot be read \(line 2"),
        ("urls:s3://BUCKET/no.csv", r"there is no table at s3://BUCKET/no\.csv"),
        ("urls:s3://BUCKET", r"BUCKET//\S+/away\.csv has a name that leads out of the folder of its copy"),
        ("urls:s3://BUCKET/up", r"BUCKET/up/\.\./\S+/away\.csv has a name that leads out of the folder"),
        ("urls:s3://x.csv", r"s3://x\.csv"),
        ("urls:s3://BUCKET/other", r"there is no table at s3://BUCKET/other"),
        ("manifest:s3://BUCKET/set", "s3://BUCKET/set"),
        ("webdataset:s3://BUCKET/set", r"there is no \.tar file at s3://BUCKET/set"),
        ("archives:s3://BUCKET/no.zip", r"there is no \.tar or \.zip file at s3://BUCKET/no\.zip"),
        ("archives:s3://x.zip", r"the source s3://x\.zip names no object"),
        ("parquet:s3://BUCKET/lists", r"s3://BUCKET/lists/part-0\.parquet has no column .*urls:s3://BUCKET"),
        ("parquet:s3://BUCKET/bad.csv", r"there is no Parquet|is no Parquet file"),
        ("folder:s3://BUCKET/set", "is a URL, not a path: name a folder or s3://bucket/prefix"),
        ("s3://BUCKET/bad.csv", r"contains no object: write urls:s3://BUCKET/bad\.csv"),
        ("hf:s3://BUCKET/nothing", "s3://BUCKET/nothing contains nothing"),
    ],
)
def test_what_cannot_be_read_from_a_bucket_is_one_line(s3, bucket, lists, tmp_path, source, message):
    for name in (f"{tmp_path}/away.csv", f"up/{'../' * 20}{tmp_path}/away.csv"):
        boto3.client("s3").put_object(Bucket=s3.bucket, Key=name, Body=b"url\nhttp://e.org/a.jpg\n")
    with pytest.raises(UserError, match=message.replace("BUCKET", s3.bucket)) as error:
        sources.parse(source.replace("BUCKET", s3.bucket)).list()
    assert "\n" not in str(error.value)
    assert not (tmp_path / "away.csv").exists()
