"""An S3 bucket as a source, on a real server on the loopback."""

from __future__ import annotations

import boto3
import pytest

from uhr.base.errors import UserError
from uhr.base.store import StoreError
from uhr.manifests import sources
from uhr.manifests.manifest import Manifest
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
    with pytest.raises((StoreError, UserError), match=r"no such bucket|contains no object"):
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
