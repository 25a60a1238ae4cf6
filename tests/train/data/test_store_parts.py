"""Encoded data in an object store: the rows of the folder, each row group fetched once, within a limit."""

import json
import os
import threading
from pathlib import Path

import boto3
import pytest
import torch

from uhr.base.errors import UserError
from uhr.base.store import StoreError
from uhr.train.data import rows as rows_module
from uhr.train.data import store_parts
from uhr.train.data.disk_cache import DiskCache
from uhr.train.data.reader import DataFault, EncodedData
from uhr.train.run.checkpoints.checkpoint import folder_of
from uhr.train.run.feed import Phases, feed, load_batch
from uhr.train.run.job import joined_job
from uhr.train.run.trainer import Trainer


@pytest.fixture
def address(s3, small_set) -> str:
    """`small_set`, encoded on this machine and copied into the bucket."""
    client = boto3.client("s3")
    for file in small_set.folder.rglob("*"):
        if file.is_file():
            client.upload_file(str(file), s3.bucket, f"set/{file.relative_to(small_set.folder).as_posix()}")
    s3.requests.clear()
    return f"s3://{s3.bucket}/set"


def gets(s3, below: str) -> int:
    return sum(method == "GET" and below in path for method, path in s3.requests)


def cached(tmp_path: Path) -> list[Path]:
    found = (tmp_path / "cache" / "uhr" / "encoded").iterdir()
    return sorted(file for file in found if not file.name.startswith("."))


def row_groups(tmp_path: Path) -> list[Path]:
    return [file for file in cached(tmp_path) if "-footer-" not in file.name]


def same_rows(one: EncodedData, other: EncodedData) -> None:
    assert [bucket.rows for bucket in one.buckets] == [bucket.rows for bucket in other.buckets]
    for bucket, info in enumerate(one.buckets):
        found, expected = (data.read(bucket, range(info.rows)) for data in (one, other))
        assert (found.sample_ids, found.captions, found.uris) == (
            expected.sample_ids, expected.captions, expected.uris,
        )  # fmt: skip
        assert torch.equal(found.mean, expected.mean)
        assert torch.equal(found.std, expected.std)
        for name, texts in expected.texts.items():
            assert torch.equal(found.texts[name], texts)


def test_rows_in_a_bucket_are_those_of_the_folder_and_are_fetched_once_for_all_readers(
    s3, address, small_set, tmp_path
):
    same_rows(EncodedData.open(address), EncodedData.open(small_set.folder))
    parts = [part for bucket in small_set.info.buckets for part in bucket.parts]
    # a footer and one row group of each
    assert gets(s3, "/set/latents/") == 2 * len(parts)
    assert gets(s3, "/set/texts/") == 2
    first = s3.requests.copy()
    again = EncodedData.open(address)
    same_rows(again, EncodedData.open(small_set.folder))
    assert gets(s3, "/set/latents/") + gets(s3, "/set/texts/") == sum(
        method == "GET" and ("/latents/" in path or "/texts/" in path) for method, path in first
    )
    assert again.select("caption = 'a red square'")[0].tolist() == []
    rows = [data.select("license = 'CC0'") for data in (again, EncodedData.open(small_set.folder))]
    assert [each.tolist() for each in rows[0]] == [each.tolist() for each in rows[1]]


def test_a_file_of_the_cache_takes_the_space_of_its_row_group_and_not_of_its_part(
    address, small_set, tmp_path, monkeypatch
):
    monkeypatch.setattr(rows_module, "KEYS", "none")
    EncodedData.open(address).empty_texts()
    (part,) = small_set.info.texts.parts
    (file,) = row_groups(tmp_path)
    assert file.stat().st_size == part.bytes
    assert int(file.name.rpartition("-")[2]) <= part.bytes


def test_texts_of_an_earlier_version_whose_footers_lack_the_keys_are_found_too(
    address, small_set, monkeypatch
):
    monkeypatch.setattr(rows_module, "KEYS", "none")
    same_rows(EncodedData.open(address), EncodedData.open(small_set.folder))


def test_threads_that_want_one_row_group_fetch_it_once(s3, address, small_set):
    opened = [EncodedData.open(address) for _ in range(4)]
    s3.requests.clear()
    done = []

    def read(data):
        same_rows(data, EncodedData.open(small_set.folder))
        done.append(data)

    threads = [threading.Thread(target=read, args=(data,)) for data in opened]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) == 4
    parts = [part for bucket in small_set.info.buckets for part in bucket.parts]
    assert gets(s3, "/set/latents/") == 2 * len(parts)


def test_the_cache_stays_within_its_limit_and_the_rows_stay_the_same(
    s3, address, small_set, tmp_path, monkeypatch
):
    monkeypatch.setattr(rows_module, "OPEN_FILES", 1)
    monkeypatch.setattr(store_parts, "FOOTERS", 1)

    def sizes():
        return [int(file.name.rpartition("-")[2]) for file in cached(tmp_path)]

    same_rows(EncodedData.open(address), EncodedData.open(small_set.folder))
    limit = max(sizes()) + (64 << 10)
    assert sum(sizes()) > 2 * limit
    for file in cached(tmp_path):
        file.unlink()
    tight = EncodedData.open(address, limit)
    s3.requests.clear()
    for _ in range(2):
        same_rows(tight, EncodedData.open(small_set.folder))
        assert sum(sizes()) <= limit
    # what was removed is fetched again
    assert gets(s3, "/set/latents/") > 2 * len(small_set.info.buckets)


def test_what_was_used_longest_ago_is_removed_first(tmp_path):
    cache = DiskCache(tmp_path / "cache", 100)
    made = []

    def make(path):
        made.append(path.name.split("-")[0].removeprefix("."))
        path.write_bytes(b"x")

    for name in ("a-40", "b-40"):
        cache.get(name, make)
    os.utime(tmp_path / "cache" / "a-40", (1, 1))
    os.utime(tmp_path / "cache" / "b-40", (2, 2))
    cache.get("a-40", make)
    cache.get("c-40", make)
    assert sorted(file.name for file in (tmp_path / "cache").iterdir() if not file.name.startswith(".")) == [
        "a-40",
        "c-40",
    ]
    assert made == ["a", "b", "c"]


def test_a_damaged_file_of_the_cache_is_fetched_again(s3, address, small_set, tmp_path):
    same_rows(EncodedData.open(address), EncodedData.open(small_set.folder))
    for file in row_groups(tmp_path):
        data = bytearray(file.read_bytes())
        data[2000:2400] = bytes(400)
        file.write_bytes(data)
    s3.requests.clear()
    same_rows(EncodedData.open(address), EncodedData.open(small_set.folder))
    assert gets(s3, "/set/latents/") > 0


def test_damage_in_the_bucket_names_part_row_and_sample(s3, address, small_set):
    part = small_set.info.buckets[0].parts[0]
    data = bytearray((small_set.folder / part.path).read_bytes())
    data[2000:2400] = bytes(400)
    boto3.client("s3").put_object(Bucket=s3.bucket, Key=f"set/{part.path}", Body=bytes(data))
    with pytest.raises(DataFault, match=f"{address}/{part.path}, row group 0, row 0, sample [0-9a-f]+"):
        EncodedData.open(address).read(0, [0])


def test_a_part_that_is_missing_or_was_replaced_is_one_line(s3, address, small_set):
    part = small_set.info.buckets[0].parts[0]
    client, key = boto3.client("s3"), f"set/{part.path}"
    opened = [EncodedData.open(address) for _ in range(2)]
    data = bytearray((small_set.folder / part.path).read_bytes())
    data[-300] ^= 1
    client.put_object(Bucket=s3.bucket, Key=key, Body=bytes(data))
    with pytest.raises(UserError, match=f"{part.path} was replaced while it was read: copy the set there"):
        opened[0].read(0, [0])
    client.delete_object(Bucket=s3.bucket, Key=key)
    with pytest.raises(UserError, match=f"{part.path} is missing: copy the set there again, or encode again"):
        opened[1].read(0, [0])
    with pytest.raises(UserError, match=f"{address}/{part.path} is missing"):
        EncodedData.open(address)
    client.put_object(Bucket=s3.bucket, Key=key, Body=b"short")
    with pytest.raises(UserError, match="does not have the size with which it was written"):
        EncodedData.open(address)
    client.delete_object(Bucket=s3.bucket, Key="set/encoded.json")
    with pytest.raises(UserError, match=f"{address} is a manifest that is not encoded"):
        EncodedData.open(address)
    with pytest.raises(UserError, match=f"{address}/x contains no encoded data"):
        EncodedData.open(f"{address}/x")


def test_a_request_that_fails_for_a_while_is_repeated_and_one_that_keeps_failing_is_one_line(s3, address):
    failures = []

    def sometimes(method, path):
        failed = "/latents/" in path and len(failures) < 3
        failures.extend([path] if failed else ())
        return 503 if failed else None

    s3.fault = sometimes
    EncodedData.open(address).read(0, [0])
    assert len(failures) == 3
    s3.fault = lambda method, path: 503 if "/latents/" in path else None
    with pytest.raises(StoreError, match=r"latents/128x128-.*: the store failed .*; the same command"):
        EncodedData.open(address).read(1, [0])


def test_the_batches_of_a_run_are_those_of_the_folder(job_of, address, tmp_path):
    sets = ("phases.main.steps=9",)
    ours, theirs = job_of(*sets, data=address), job_of(*sets, out=tmp_path / "other")
    assert ours.info.data[0].path == address
    cpu = torch.device("cpu")
    phases, ahead = Phases(theirs, cpu), feed(ours, cpu, 2)
    for step in range(2, 9):
        expected, found = load_batch(theirs, phases, step), ahead.take(step)
        assert (found.turn, found.uris) == (expected.turn, expected.uris)
        for name in ("data", "noise", "sigma"):
            assert torch.equal(getattr(found.batch, name), getattr(expected.batch, name))
        for name, texts in expected.batch.condition.texts.items():
            assert torch.equal(found.batch.condition.texts[name], texts)
    ahead.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "prefetch"]


def test_a_run_whose_data_are_in_a_bucket_resumes_exactly_and_where_the_data_were_moved_to(
    job_of, address, uhr, small_set, tmp_path
):
    straight = job_of("phases.main.steps=4", out=tmp_path / "straight")
    Trainer(straight).run()
    Trainer(job_of("phases.main.steps=2", data=address)).run()
    code, _, err = uhr("train", "resume", tmp_path / "run", "--set", "phases.main.steps=4")
    assert code == 0, err
    # hashes of adapter, optimiser and generators
    stored = [
        json.loads((folder_of(tmp_path / run, 4) / "checkpoint.json").read_text())["files"]
        for run in ("straight", "run")
    ]
    assert stored[0] == stored[1]
    # another process of the run finds the data there too
    assert joined_job(tmp_path / "run", None).data[0].data.path == address
    code, said, err = uhr("train", "resume", tmp_path / "run", "--data", small_set.folder)
    assert (code, "is finished: all 4 steps are done" in said + err) == (0, True), err


def test_the_plan_of_a_run_takes_data_in_a_bucket(uhr, address, small_set, tiny_flux):
    planned = [
        json.loads(uhr("train", "plan", "lora", "--model", tiny_flux, "--data", place, "--json")[1])
        for place in (address, small_set.folder)
    ]
    assert planned[0]["phases"] == planned[1]["phases"]
    code, _, err = uhr("train", "plan", "lora", "--model", tiny_flux, "--data", f"{address}/none")
    assert (code, err) == (
        1,
        f"uhr: {address}/none contains no encoded data: name the prefix of `uhr train encode --out`\n",
    )


def test_a_long_footer_is_read_whole(address, small_set, monkeypatch):
    monkeypatch.setattr(store_parts, "_TAIL", 16)
    same_rows(EncodedData.open(address), EncodedData.open(small_set.folder))


def test_an_answer_that_breaks_off_is_requested_again(s3, address, small_set, monkeypatch):
    real, broken = s3._moto, []

    def breaking(environ, start):
        body = b"".join(real(environ, start))
        if environ["REQUEST_METHOD"] == "GET" and "/latents/" in environ["PATH_INFO"] and len(broken) < 2:
            broken.append(1)
            return [body[: len(body) // 2]]
        return [body]

    monkeypatch.setattr(s3, "_moto", breaking)
    same_rows(EncodedData.open(address), EncodedData.open(small_set.folder))
    assert len(broken) == 2


def test_a_run_whose_bucket_does_not_answer_ends_in_one_line_and_the_same_command_resumes(
    s3, address, uhr, tiny_flux, fast, tmp_path
):
    sets = [part for value in [*fast, "phases.main.steps=2"] for part in ("--set", value)]
    call = ("train", "run", "lora", "--model", tiny_flux, "--data", address, "--out", tmp_path / "run", *sets)
    s3.fault = lambda method, path: 503 if "/latents/" in path else None
    code, _, err = uhr(*call)
    assert (code, "Traceback" in err) == (1, False)
    (line,) = [line for line in err.splitlines() if line.startswith("uhr: ")]
    assert line.startswith(f"uhr: {address}/latents/")
    assert line.endswith("fix the cause; the same command resumes the run")
    assert not [thread for thread in threading.enumerate() if thread.name == "prefetch"]
    s3.fault = lambda method, path: None
    code, _, err = uhr(*call)
    assert code == 0, err
