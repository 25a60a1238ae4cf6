"""Samples leave manifests and reports in a bucket."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import pytest

from uhr.base.errors import UserError
from uhr.base.store import ObjectStore
from uhr.manifests.forget import job
from uhr.manifests.forget.targets import ForgetRequest
from uhr.manifests.manifest import Manifest
from uhr.manifests.report import write_report
from uhr.manifests.selection.options import SliceOptions
from uhr.manifests.selection.slicing import slice_manifest
from uhr.manifests.verify.verification import verify

Make = Callable[..., Manifest]
GONE = {"b.jpg", "c.jpg"}


def test_it_works_in_a_bucket_too(s3: Any, make: Make, rows: list[dict[str, Any]], tmp_path: Path) -> None:
    top = make(tmp_path / "set", rows)
    address = f"s3://{s3.bucket}/stored"
    stored = slice_manifest(top, address, SliceOptions(materialise="pixels"))
    before = {row["uri"] for row in stored.table().to_pylist()}
    write_report(stored, f"{address}/report.html")
    elsewhere = f"s3://{s3.bucket}/pages/of stored.html"
    write_report(stored, elsewhere)
    ObjectStore(f"s3://{s3.bucket}/pages").write("empty.html", b"")
    with pytest.raises(UserError, match=r"--in .*/nothing: there is no object below it"):
        job.forget(address, ForgetRequest(ids=(rows[1]["sample_id"],)), [f"s3://{s3.bucket}/nothing"])
    done = job.forget(address, ForgetRequest(ids=(rows[1]["sample_id"],)), [f"s3://{s3.bucket}"])
    assert done.reports == [elsewhere]
    left = Manifest.open(address)
    assert {row["uri"] for row in left.table().to_pylist()} == before - GONE
    assert verify(address, pixels=True).faults == []
    client, data = boto3.client("s3"), (tmp_path / "source/b.jpg").read_bytes()
    for entry in client.list_objects_v2(Bucket=s3.bucket)["Contents"]:
        body = client.get_object(Bucket=s3.bucket, Key=entry["Key"])["Body"].read()
        assert data not in body, entry["Key"]
        assert rows[1]["sample_id"].encode() not in body, entry["Key"]
    for key in ("stored/report.html", "pages/of stored.html"):
        report = client.get_object(Bucket=s3.bucket, Key=key)["Body"].read().decode()
        assert "a.jpg" in report
        assert "b.jpg" not in report
    assert "forget.json" not in [
        entry["Key"] for entry in client.list_objects_v2(Bucket=s3.bucket)["Contents"]
    ]


def test_a_parent_that_cannot_be_read_is_not_taken_for_one_that_is_gone(
    s3: Any, make: Make, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    top = make(tmp_path / "sets/top", rows)
    middle = slice_manifest(top, f"s3://{s3.bucket}/middle", SliceOptions())
    last = slice_manifest(middle, tmp_path / "last", SliceOptions())
    request = ForgetRequest(ids=(rows[0]["sample_id"],))
    s3.fault = lambda method, path: 403 if path.endswith("/middle/manifest.json") else None
    with pytest.raises(UserError, match="access is denied"):
        job.forget(last.path, request)
    s3.fault = lambda method, path: None
    record = tmp_path / "sets/top/manifest.json"
    whole = record.read_bytes()
    record.write_bytes(whole[:-3])
    with pytest.raises(UserError, match=r"top/manifest\.json names one of these manifests"):
        job.forget(last.path, request)
    assert Manifest.open(last.path).id == last.id
    record.write_bytes(whole)
    assert [each.rows for each in job.forget(last.path, request).manifests] == [1, 1, 1]
