"""Exports into an object store: what a library reads there, what a killed one leaves, and who commits."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import pytest

from uhr.base.errors import UserError
from uhr.base.files import user_cache
from uhr.base.locks import lease
from uhr.base.store import ObjectStore
from uhr.manifests.export import format_named
from uhr.manifests.export.base import ExportOptions
from uhr.manifests.export.destination import RECORD, WORK
from uhr.manifests.export.job import ExportRequest, ExportResult, export
from uhr.manifests.manifest import Manifest
from uhr.manifests.selection.options import SliceOptions
from uhr.manifests.selection.slicing import slice_manifest


def run(to: str, parent: Manifest, out: Path | str, **options: Any) -> ExportResult:
    chosen = ExportOptions(**{"shard_bytes": 6000, **options})
    return export(ExportRequest(parent, out, format_named(to)(parent), chosen))


def objects(s3: Any, prefix: str) -> dict[str, bytes]:
    """All objects below a prefix, by name."""
    client = boto3.client("s3")
    found = client.list_objects_v2(Bucket=s3.bucket, Prefix=f"{prefix}/").get("Contents", [])
    return {
        entry["Key"].removeprefix(f"{prefix}/"): client.get_object(Bucket=s3.bucket, Key=entry["Key"])[
            "Body"
        ].read()
        for entry in found
    }


def files(folder: Path) -> dict[str, bytes]:
    found = (file for file in folder.rglob("*") if file.is_file())
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in found}


def without_dates(found: dict[str, bytes]) -> dict[str, Any]:
    """The files with their record as a tree, without what differs from one export to the next."""
    record = json.loads(found[RECORD])
    return {**found, RECORD: {key: record[key] for key in record.keys() - {"created"}}}


@pytest.mark.parametrize("to", ["webdataset", "hf", "folder"])
def test_the_objects_are_the_files_of_a_folder(to: str, s3: Any, images: Manifest, tmp_path: Path) -> None:
    there, here = f"s3://{s3.bucket}/sets/a", tmp_path / "sets/a"
    result = run(to, images, there)
    assert (result.path, result.images) == (there, {"train": 13})
    assert run(to, images, here).images == result.images
    assert without_dates(objects(s3, "sets/a")) == without_dates(files(here))
    s3.requests.clear()
    assert run(to, images, there).finished_before
    assert s3.puts("") == []
    assert [path for path in user_cache("stores").rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("to", ["kohya", "simpletuner"])
def test_paths_of_trainers_are_relative_in_a_store(
    to: str, s3: Any, images: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy of the prefix is read by a program that is started in it."""
    import tomllib

    import pyarrow.parquet as pq

    run(to, images, f"s3://{s3.bucket}/sets/a")
    for name, data in objects(s3, "sets/a").items():
        (tmp_path / "copy" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "copy" / name).write_bytes(data)
    monkeypatch.chdir(tmp_path / "copy")
    if to == "kohya":
        (subset,) = tomllib.loads(Path("train.toml").read_text())["datasets"][0]["subsets"]
        names = json.loads(Path(subset["metadata_file"]).read_text())
        folder = "train"
        named = [str(Path(subset["image_dir"], name)) for name in names]  # as sd-scripts joins them
    else:
        backend, _ = json.loads(Path("train.json").read_text())
        assert backend["id"] == "a-train"
        folder = backend["instance_data_dir"]
        named = [
            f"{folder}/{name}" for name in pq.read_table(backend["parquet"]["path"])["filename"].to_pylist()
        ]
    found = [str(file) for file in Path(folder).rglob("*") if file.suffix in (".jpg", ".png", ".webp")]
    assert sorted(named) == sorted(found)
    assert len(found) == 13


def test_datasets_reads_the_bucket_itself(
    s3: Any, images: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "DOWNLOADED_DATASETS_PATH", tmp_path / "cache/downloads")
    halves = slice_manifest(images, tmp_path / "halves", SliceOptions(split={"train": 0.6, "val": 0.4}))
    rows = {row["sample_id"]: row for row in halves.table(where="status = 'kept'").to_pylist()}
    address = f"s3://{s3.bucket}/hf"
    storage = {"storage_options": {"endpoint_url": os.environ["AWS_ENDPOINT_URL"]}}
    counts = run("hf", halves, address).images
    parts = {split: f"{address}/data/{split}-*.parquet" for split in counts}
    read = datasets.load_dataset("parquet", data_files=parts, **storage)
    assert {split: len(part) for split, part in read.items()} == counts
    for part in read.values():
        for one in part:
            row = rows.pop(one["sample_id"])
            assert (one["text"], one["uri"]) == (row["caption"] or "", row["uri"])
            assert sorted(one["image"].size) == sorted((row["width"], row["height"]))
    assert rows == {}

    run("webdataset", images, f"s3://{s3.bucket}/wds", shard_bytes=10**9)
    keys = set()
    for tar in sorted(name for name in objects(s3, "wds") if name.endswith(".tar")):
        files = f"s3://{s3.bucket}/wds/{tar}"
        for one in datasets.load_dataset("webdataset", data_files=files, split="train", **storage):
            keys.add(one["__key__"])
    assert keys == set(images.table(["sample_id"], where="status = 'kept'")["sample_id"].to_pylist())


@pytest.mark.parametrize("to", ["webdataset", "pairs"])
def test_a_killed_export_resumes_and_shows_no_record_before(
    to: str, s3: Any, images: Manifest, tmp_path: Path
) -> None:
    address = f"s3://{s3.bucket}/sets/a"
    run(to, images, tmp_path / "sets/a")
    whole = without_dates(files(tmp_path / "sets/a"))
    shards = json.loads((tmp_path / "sets/a" / RECORD).read_bytes())["files"]
    assert len(shards) > 2
    failing = shards[2]
    s3.fault = lambda method, path: 403 if method == "PUT" and f"/{failing}" in path else None
    with pytest.raises(UserError, match="access is denied"):
        run(to, images, address)
    s3.fault = lambda method, path: None
    left = objects(s3, "sets/a")
    assert RECORD not in left
    assert {name for name in left if name.startswith(f"{WORK}/train-")} == {
        f"{WORK}/train-{number:05d}.json" for number in (0, 1)
    }
    with pytest.raises(UserError, match="contains an unfinished export of something else"):
        run("hf", images, address)
    if to == "pairs":
        # of an image that could be read then, and cannot any more
        ObjectStore(address).write(f"{failing}/{'0' * 32}.jpg", b"x")
    s3.requests.clear()
    run(to, images, address)
    assert not any(f"/{shard}" in path for shard in shards[:2] for path in s3.puts("/sets/a/"))
    assert without_dates(objects(s3, "sets/a")) == whole


def test_of_two_machines_the_first_record_is_kept(
    s3: Any, images: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = f"s3://{s3.bucket}/race"
    create, raced = ObjectStore.create, []

    def late(self: ObjectStore, name: str, data: bytes) -> str | None:
        if name == RECORD and not raced:
            raced.append(name)
            assert create(self, name, data.replace(b'"uhr"', b'"first": 1, "uhr"'))
        return create(self, name, data)

    monkeypatch.setattr(ObjectStore, "create", late)
    assert run("webdataset", images, address).finished_before
    found = objects(s3, "race")
    assert json.loads(found[RECORD])["first"] == 1
    assert not any(name.startswith(WORK) for name in found)


def test_one_machine_at_a_time_exports_and_a_dead_one_only_until_its_lease_ends(
    s3: Any, images: Manifest
) -> None:
    address = f"s3://{s3.bucket}/sets/a"
    store = ObjectStore(address)

    def claimed(until: float, token: str = "other") -> None:
        claim = lease.Claim("somebody@elsewhere (process 7)", until, token)
        store.write(f"{WORK}/{lease.NAME}", json.dumps(vars(claim)).encode())

    claimed(time.time() + 60)
    with pytest.raises(UserError, match=f"{address} is in use by somebody@elsewhere .process 7. until"):
        run("webdataset", images, address)
    assert objects(s3, "sets/a").keys() == {f"{WORK}/{lease.NAME}"}
    # one that was killed on this machine left its token, and holds nobody out here
    note = store.work_folder() / "export" / "lease-token"
    note.parent.mkdir(parents=True)
    note.write_text("this machine")
    claimed(time.time() + 60, "this machine")
    assert run("webdataset", images, address).images == {"train": 13}
    assert not note.exists()
    assert not any(name.startswith(WORK) for name in objects(s3, "sets/a"))
    address = f"s3://{s3.bucket}/sets/b"
    store = ObjectStore(address)
    claimed(time.time() - 1)
    assert run("webdataset", images, address).images == {"train": 13}


def test_a_machine_that_waited_for_another_takes_its_export(
    s3: Any, images: Manifest, tmp_path: Path
) -> None:
    """It was finished after this one looked, and before it had the lease."""
    address = f"s3://{s3.bucket}/sets/a"
    take, others = lease._Lease.take, []

    def late(self: Any) -> None:
        with pytest.MonkeyPatch.context() as other_machine:
            other_machine.setattr(lease._Lease, "take", take)
            other_machine.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
            others.append(run("webdataset", images, address))
        take(self)

    with pytest.MonkeyPatch.context() as this_machine:
        this_machine.setattr(lease._Lease, "take", late)
        done = run("webdataset", images, address)
    assert done.finished_before
    assert not others[0].finished_before
    assert done.images == others[0].images
    assert not any(name.startswith(WORK) for name in objects(s3, "sets/a"))


def test_an_address_that_cannot_be_written_is_one_line(
    s3: Any, images: Manifest, tmp_path: Path, uhr: Callable[..., tuple[int, str, str]]
) -> None:
    slice_manifest(images, f"s3://{s3.bucket}/set", SliceOptions())
    ObjectStore(f"s3://{s3.bucket}/mine").write("photo.jpg", b"x")
    for out, says in (
        (f"s3://{s3.bucket}/set/export", f"is inside the manifest s3://{s3.bucket}/set"),
        (f"s3://{s3.bucket}/mine", "already contains something else (photo.jpg)"),
        ("s3://no-such-bucket/x", "no such bucket"),
        ("s3://", "not an address"),
    ):
        code, _, error = uhr("manifest", "export", images.path, "--to", "pairs", "--out", out)
        assert code == 1
        assert says in error.splitlines()[-1]
    assert objects(s3, "mine") == {"photo.jpg": b"x"}
    run("pairs", images, f"s3://{s3.bucket}/pairs")
    with pytest.raises(UserError, match=r"contains another export: name another prefix"):
        run("hf", images, f"s3://{s3.bucket}/pairs")


@pytest.mark.parametrize("to", ["webdataset", "kohya"])
def test_forget_takes_samples_out_of_exports_in_a_store(
    to: str, s3: Any, images: Manifest, tmp_path: Path
) -> None:
    from uhr.manifests.forget import job
    from uhr.manifests.forget.targets import ForgetRequest

    made = Manifest.open(shutil.copytree(images.path, tmp_path / "set"))
    address = f"s3://{s3.bucket}/sets/a"
    before = run(to, made, address).images["train"]
    others = objects(s3, "sets/a")
    gone = made.row("a/0.jpg")["sample_id"]
    box = made.table(["sample_id"], where=f"parent_id = '{gone}'")["sample_id"][0].as_py()
    done = job.forget(made.path, ForgetRequest(ids=(gone,)), [f"s3://{s3.bucket}/sets"])
    assert done.exports.keys() == {address}
    left = objects(s3, "sets/a")
    for name, data in left.items():
        assert not any(each in name or each.encode() in data for each in (gone, box)), name
    assert json.loads(left[RECORD])["images"] == {"train": before - 2}
    same = [name for name in left if left[name] == others[name] and name != RECORD]
    assert same or to == "hf", "files of other samples are not written again"
    ObjectStore(address).write(f"{WORK}/plan.json", json.dumps({"parent": made.id}).encode())
    with pytest.raises(UserError, match="sets/a contains an unfinished export"):
        job.forget(made.path, ForgetRequest(url="a/1.jpg"), [f"s3://{s3.bucket}/sets"])
