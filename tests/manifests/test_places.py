"""Manifests in an object store: everything as on disk, on a real server on the loopback."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import pytest

from uhr.base.errors import UserError
from uhr.base.files import sha256_file, user_cache
from uhr.cli import main
from uhr.manifests import places, sql
from uhr.manifests.manifest import Manifest
from uhr.manifests.schema import sample_id
from uhr.manifests.selection.options import SliceOptions
from uhr.manifests.selection.slicing import slice_manifest
from uhr.manifests.verify.verification import verify

Make = Callable[..., Manifest]


@pytest.fixture
def stored(s3: Any, manifest: Manifest) -> str:
    """The address of the manifest of 100 rows: all of them sliced into the bucket."""
    address = f"s3://{s3.bucket}/sets/all"
    slice_manifest(manifest, address, SliceOptions(status="any"))
    return address


def _keys(s3: Any, prefix: str = "") -> list[str]:
    found = boto3.client("s3").list_objects_v2(Bucket=s3.bucket, Prefix=prefix).get("Contents", [])
    return sorted(entry["Key"] for entry in found)


def test_rows_and_previews_are_those_of_the_manifest_on_disk(
    s3: Any, stored: str, manifest: Manifest, tmp_path: Path
) -> None:
    here = slice_manifest(manifest, tmp_path / "all", SliceOptions(status="any"))
    there = Manifest.open(stored)
    assert (there.id, there.name) == (here.id, stored)
    assert there.table().equals(here.table())
    ids = here.table(["sample_id"])["sample_id"].to_pylist()
    assert there.previews(ids) == here.previews(ids)
    s3.requests.clear()
    assert Manifest.open(stored).table().num_rows == 100
    assert [method for method, path in s3.requests if "part-" in path] == [], "the copy is read"
    with there.connect() as connection, pytest.raises(Exception, match="disabled by configuration"):
        connection.sql(f"SELECT * FROM read_parquet('{stored}/samples/*.parquet')")
    with sql.connect() as connection, pytest.raises(Exception, match="disabled"):
        connection.execute("LOAD httpfs")


def test_every_command_takes_an_address(
    s3: Any, stored: str, manifest: Manifest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def answer(*arguments: Any) -> Any:
        code = main(["manifest", *map(str, arguments), "--json"])
        printed = capsys.readouterr()
        assert code == 0, printed.err
        return json.loads(printed.out)

    top = f"s3://{s3.bucket}/sets/top"
    half = f"s3://{s3.bucket}/sets/half"
    call = ["slice", stored, "--top", "entropy=10", "--split", "a=0.5,b=0.5", "--materialise", "none"]
    made = answer(*call, "--out", top)
    assert made["path"] == top
    assert made["counts"]["rows"] == 10
    assert answer(*call, "--out", top) == made
    by_reference = answer("slice", top, "--sample", "4", "--materialise", "none", "--out", half)
    assert answer("show", half)["counts"] == by_reference["counts"]
    assert answer("verify", half)["faults"] == []
    assert answer("verify", top) == {**answer("verify", top), "path": top, "faults": [], "notes": []}
    chain = answer("lineage", half)
    assert [link["path"] for link in chain] == [half, top, stored, str(manifest.path)]
    sample = Manifest.open(half).table(["uri"])["uri"][0].as_py()
    assert [step["path"] for step in answer("history", half, sample)] == [
        str(manifest.path),
        stored,
        top,
        half,
    ]
    steps = answer("history", stored, sample, "--in", f"s3://{s3.bucket}/sets")
    assert [step["path"] for step in steps] == [str(manifest.path), stored, top, half]
    assert answer("diff", stored, top)["rows"] == {"only_a": 90, "only_b": 0, "both": 10, "changed": 0}


def test_of_two_writers_one_commits_and_the_other_changes_nothing(
    s3: Any, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = f"s3://{s3.bucket}/race"
    create = places.ObjectStore.create
    raced = []

    def late(self: Any, name: str, data: bytes) -> bool:
        if not raced:
            raced.append(name)
            slice_manifest(manifest, address, SliceOptions(sample=7, materialise="none"))
        return create(self, name, data)

    monkeypatch.setattr(places.ObjectStore, "create", late)
    with pytest.raises(UserError, match=r"another command has written a manifest .* meanwhile"):
        slice_manifest(manifest, address, SliceOptions(sample=5, split={"a": 1.0}, materialise="none"))
    assert Manifest.open(address).table(["entropy"]).num_rows == 7
    assert verify(address).faults == []
    assert len(_keys(s3, "race/samples")) == 1
    with pytest.raises(UserError, match="already contains a manifest"):
        slice_manifest(manifest, address, SliceOptions(sample=5))


def test_nothing_can_be_read_before_the_commit(s3: Any, manifest: Manifest) -> None:
    address = f"s3://{s3.bucket}/killed"
    s3.fault = lambda method, path: 403 if method == "PUT" and path.endswith("manifest.json") else None
    with pytest.raises(UserError, match=r"access is denied|failed"):
        slice_manifest(manifest, address, SliceOptions(sample=5))
    with pytest.raises(UserError, match="no manifest at"):
        Manifest.open(address)
    s3.fault = lambda method, path: None
    assert slice_manifest(manifest, address, SliceOptions(sample=5)).info.counts["rows"] == 5
    assert verify(address).faults == []


def test_verify_reads_the_objects_and_not_the_copy(s3: Any, stored: str) -> None:
    Manifest.open(stored)
    client = boto3.client("s3")
    (key,) = _keys(s3, "sets/all/samples")
    data = client.get_object(Bucket=s3.bucket, Key=key)["Body"].read()
    client.put_object(Bucket=s3.bucket, Key=key, Body=data[:100] + bytes([data[100] ^ 1]) + data[101:])
    (fault,) = verify(stored).faults
    assert not list(user_cache("manifests").glob("verify-*")), "the copy is removed"
    assert (fault.check, fault.where) == ("parts", key.removeprefix("sets/all/"))
    client.delete_object(Bucket=s3.bucket, Key=key)
    assert [fault.what for fault in verify(stored).faults] == ["is missing"]
    client.put_object(Bucket=s3.bucket, Key=key, Body=data)
    client.put_object(Bucket=s3.bucket, Key="sets/all/samples/part-00009.parquet", Body=data)
    assert ["belongs to no part" in fault.what for fault in verify(stored).faults] == [True]


def test_stored_pixels_are_read_from_the_bucket(s3: Any, make: Make, forge: Any, tmp_path: Path) -> None:
    file = tmp_path / "source" / "a.jpg"
    file.parent.mkdir()
    file.write_bytes(forge.encode(forge.image(48, 32), "JPEG"))
    row = {
        "uri": "a.jpg",
        "sample_id": sample_id("a.jpg"),
        "status": "kept",
        "content_hash": sha256_file(file),
    }
    parent = make(tmp_path / "set", [row])
    made = slice_manifest(parent, f"s3://{s3.bucket}/p", SliceOptions(materialise="pixels"))
    data = file.read_bytes()
    file.unlink()
    assert made.source.open(made.table().to_pylist()[0]).read() == data
    again = slice_manifest(made, tmp_path / "again", SliceOptions())
    assert again.source.open(row).read() == data
    assert verify(again.path, pixels=True).faults == []


def test_report_and_audit_are_whole_objects_or_none(
    s3: Any, stored: str, manifest: Manifest, tmp_path: Path, uhr: Callable[..., tuple[int, str, str]]
) -> None:
    def body(key: str) -> bytes:
        return boto3.client("s3").get_object(Bucket=s3.bucket, Key=key)["Body"].read()

    there = f"s3://{s3.bucket}/about"
    assert uhr("manifest", "report", manifest.path, "--out", f"{there}/a.html")[1] == f"{there}/a.html\n"
    assert uhr("manifest", "report", manifest.path, "--out", tmp_path / "a.html")[0] == 0
    assert body("about/a.html") == (tmp_path / "a.html").read_bytes()
    assert uhr("manifest", "report", stored)[1] == f"{stored}/report.html\n"
    assert b"<!doctype html>" in body("sets/all/report.html")
    for command, out in (("audit", f"{stored}/samples/a.parquet"), ("report", f"{stored}/manifest.json")):
        assert f"is inside the manifest {stored}" in uhr("manifest", command, stored, "--out", out)[2]
    for kind in ("csv", "parquet"):
        for out in (f"{there}/a.{kind}", tmp_path / f"a.{kind}"):
            assert uhr("manifest", "audit", stored, "--where", "entropy < 4", "--out", out)[0] == 0
        assert body(f"about/a.{kind}") == (tmp_path / f"a.{kind}").read_bytes()
    s3.fault = lambda method, path: 403 if method == "PUT" and "/late." in path else None
    for command, name in (("report", "late.html"), ("audit", "late.csv")):
        code, _, error = uhr("manifest", command, stored, "--out", f"{there}/{name}")
        assert (code, "Traceback" in error) == (1, False)
        assert "access is denied" in error.splitlines()[-1]
    s3.fault = lambda method, path: None
    assert _keys(s3, "about") == [f"about/a.{kind}" for kind in ("csv", "html", "parquet")]
    code, _, error = uhr("manifest", "report", manifest.path, "--out", "s3://report.html")
    assert code == 1
    assert "names no file in a bucket" in error.splitlines()[-1]


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("s3://", "not an address"),
        ("gs://bucket/x", "not an address"),
        ("s3://{bucket}/none", "no manifest at"),
    ],
)
def test_a_wrong_address_is_one_line(
    s3: Any, address: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["manifest", "show", address.format(bucket=s3.bucket)]) == 1
    line = capsys.readouterr().err
    assert says in line
    assert line.count("\n") == 1
