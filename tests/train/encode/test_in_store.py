"""OUT of an encode in an object store: the set of a folder, resumed after a kill, by one run at a time."""

import os
import signal
import subprocess
import sys

import boto3
import pytest
import torch

import uhr.train.encode.run as run_module
from uhr.base.errors import UserError
from uhr.base.locks import lease
from uhr.base.store import ObjectStore
from uhr.train.data.reader import EncodedData
from uhr.train.encode import in_store
from uhr.train.encode.config import EncodeConfig
from uhr.train.encode.in_store import encode_in_store, work_folder
from uhr.train.encode.stored.encoded import read_encoded
from uhr.train.encode.work.images import ImageWork
from uhr.train.encode.work.texts import TextWork

CONFIG = EncodeConfig(aspects=("1/1", "3/2"))


@pytest.fixture
def address(s3) -> str:
    return f"s3://{s3.bucket}/encoded"


@pytest.fixture
def encode(small_set, tiny_flux, address, monkeypatch):
    """The request of `small_set`, into the bucket; four units of images."""
    monkeypatch.setattr(run_module, "IMAGES_PER_UNIT", 3)

    def run(config: EncodeConfig = CONFIG, **more):
        return encode_in_store(small_set.manifest.path, str(tiny_flux), address, config, "cpu", **more)

    return run


def keys(s3, prefix: str = "encoded/") -> list[str]:
    found = boto3.client("s3").list_objects_v2(Bucket=s3.bucket, Prefix=prefix).get("Contents", [])
    return sorted(entry["Key"].removeprefix(prefix) for entry in found)


def stop_at(monkeypatch, target, name: str, call: int):
    """Interrupt the call of this number of a function, as Ctrl-C does."""
    real, calls = getattr(target, name), []

    def stopping(*args, **kwargs):
        calls.append(1)
        if len(calls) == call:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(target, name, stopping)


def assert_that_of_the_folder(address: str, small_set) -> None:
    ours, theirs = EncodedData.open(address), EncodedData.open(small_set.folder)
    assert ours.info.id == theirs.info.id
    assert ours.info.counts == theirs.info.counts
    for bucket, info in enumerate(theirs.buckets):
        found, expected = (data.read(bucket, range(info.rows)) for data in (ours, theirs))
        assert found.uris == expected.uris
        assert torch.equal(found.mean, expected.mean)
        assert torch.equal(found.texts["t5"], expected.texts["t5"])


def test_the_set_in_a_bucket_is_that_of_a_folder_and_nothing_else_is_there(
    encode, s3, address, small_set, uhr, tiny_flux
):
    info, was_finished = encode()
    assert not was_finished
    assert_that_of_the_folder(address, small_set)
    assert keys(s3) == sorted(["encoded.json", "manifest.json", *(part.path for part in info.parts)])
    assert not work_folder(address).exists()
    # the description is put last
    puts = [path.partition("/encoded/")[2] for path in s3.puts("/encoded/") if "lease" not in path]
    assert puts[-2:] == ["manifest.json", "encoded.json"]
    assert encode() == (info, True)
    with pytest.raises(UserError, match=f"{address} already contains encoded data of another text_dtype"):
        encode(CONFIG.model_copy(update={"text_dtype": "float32"}))
    code, said, err = uhr("manifest", "verify", address)
    assert code == 0, err
    code, said, err = uhr("manifest", "show", address)
    assert (code, address in said) == (0, True), err


def test_a_run_that_was_stopped_goes_on_on_another_machine_where_it_was(
    encode, s3, address, small_set, tmp_path, monkeypatch
):
    with monkeypatch.context() as patch:
        stop_at(patch, ImageWork, "run", 3)
        with pytest.raises(KeyboardInterrupt):
            encode()
    done = [name for name in keys(s3) if name.startswith("units/latents/unit-")]
    assert len(done) == 2
    assert "lease.json" not in keys(s3)
    with pytest.raises(UserError, match=f"{address} is not fully encoded: run the same `uhr train encode`"):
        read_encoded(address)
    with pytest.raises(UserError, match="an unfinished encode of another manifest, model or configuration"):
        encode(CONFIG.model_copy(update={"text_dtype": "float32"}))

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another machine"))
    real, images = ImageWork.run, []
    monkeypatch.setattr(ImageWork, "run", lambda self, *args: images.append(1) or real(self, *args))
    monkeypatch.setattr(TextWork, "run", lambda *_: pytest.fail("the captions were encoded"))
    s3.requests.clear()
    encode()
    assert len(images) == 2
    assert_that_of_the_folder(address, small_set)
    assert [name for name in keys(s3) if name.startswith("units")] == []


def test_a_commit_that_was_stopped_takes_over_the_parts_that_are_there(
    encode, s3, address, small_set, monkeypatch
):
    with monkeypatch.context() as patch:
        stop_at(patch, ObjectStore, "create", 2)  # the first is the lease
        with pytest.raises(KeyboardInterrupt):
            encode()
    there = [name for name in keys(s3) if name.startswith(("latents/", "texts/", "samples/"))]
    assert len(there) == len(small_set.info.parts)
    client = boto3.client("s3")
    other = "encoded/latents/128x128-00000-0123456789abcdef.parquet"
    client.put_object(Bucket=s3.bucket, Key=other, Body=b"x")
    monkeypatch.setattr(ImageWork, "run", lambda *_: pytest.fail("an image was encoded again"))
    s3.requests.clear()
    encode()
    assert s3.puts("/encoded/latents/") == s3.puts("/encoded/texts/") == s3.puts("/encoded/samples/") == []
    assert_that_of_the_folder(address, small_set)
    assert [name for name in keys(s3) if name.startswith(("latents/", "texts/", "samples/"))] == there


KILLED = """
import sys
sys.path.insert(0, sys.argv[1])
from short_texts import text_length
from uhr.cli import main
from uhr.train.encode import run
run.IMAGES_PER_UNIT = 3
with text_length():
    main(sys.argv[2:])
"""


def test_a_process_that_was_killed_is_followed_at_once_on_its_machine(
    encode, s3, address, small_set, tiny_flux, short_texts, monkeypatch
):
    place, running = os.path.dirname(short_texts.__file__), []

    def kill(method, path):
        if method == "PUT" and "/units/latents/unit-0000001-" in path:
            os.kill(running[0].pid, signal.SIGKILL)
        return

    s3.fault = kill
    options = ["--model", tiny_flux, "--set", "aspects=[1/1,3/2]", "--device", "cpu", "--out", address]
    command = [sys.executable, "-c", KILLED, place, "train", "encode", small_set.manifest.path, *options]
    running.append(subprocess.Popen([str(part) for part in command]))
    assert running[0].wait(120) == -signal.SIGKILL
    assert "lease.json" in keys(s3)
    s3.fault = lambda method, path: None
    monkeypatch.setattr(TextWork, "run", lambda *_: pytest.fail("the captions were encoded again"))
    real, images = ImageWork.run, []
    monkeypatch.setattr(ImageWork, "run", lambda self, *args: images.append(1) or real(self, *args))
    encode()
    assert len(images) in (2, 3)
    assert_that_of_the_folder(address, small_set)


def test_a_bucket_that_does_not_answer_is_one_line_and_the_same_command_resumes(
    s3, address, small_set, tiny_flux, uhr
):
    options = ("--model", tiny_flux, "--set", "aspects=[1/1,3/2]", "--device", "cpu", "--out", address)
    call = ("train", "encode", small_set.manifest.path, *options)
    s3.fault = lambda method, path: 503 if method == "PUT" and "/encoded/latents/" in path else None
    code, _, err = uhr(*call)
    assert code == 1
    (line,) = [line for line in err.splitlines() if line.startswith("uhr: ")]
    assert line.startswith(f"uhr: {address}/latents/")
    assert line.endswith("the same command resumes the run")
    s3.fault = lambda method, path: None
    code, said, err = uhr(*call)
    assert code == 0, err
    assert f"uhr train run lora --model {tiny_flux} --data {address} --out RUN" in said.replace("'", "")
    assert_that_of_the_folder(address, small_set)
    code, said, err = uhr(*call)
    assert (code, f"{address} is encoded already" in said) == (0, True), err


def test_a_prefix_of_others_is_refused_and_a_lease_keeps_a_second_run_out(encode, s3, address, monkeypatch):
    client = boto3.client("s3")
    client.put_object(Bucket=s3.bucket, Key="encoded/notes.txt", Body=b"x")
    with pytest.raises(UserError, match=r"already contains something else \(notes.txt\)"):
        encode()
    client.delete_object(Bucket=s3.bucket, Key="encoded/notes.txt")
    client.put_object(Bucket=s3.bucket, Key="manifest.json", Body=b"{}")
    with pytest.raises(UserError, match=f"{address} is inside the manifest s3://{s3.bucket}"):
        encode()
    client.delete_object(Bucket=s3.bucket, Key="manifest.json")
    with (
        lease.held(ObjectStore(address)),
        pytest.raises(UserError, match=f"{address} is in use by .* until .* UTC"),
    ):
        encode()
    assert keys(s3) == []


def test_if_nothing_can_be_encoded_nothing_is_left_there(encode, s3):
    with pytest.raises(UserError, match="none of the 10 images can be encoded"):
        encode(EncodeConfig(resolution=512, buckets="square"))
    assert keys(s3) == []


def test_of_two_runs_that_both_commit_the_first_is_kept(encode, s3, address, monkeypatch):
    real = in_store.read_info

    def late(folder):
        boto3.client("s3").put_object(Bucket=s3.bucket, Key="encoded/encoded.json", Body=b"{}")
        return real(folder)

    monkeypatch.setattr(in_store, "read_info", late)
    with pytest.raises(UserError, match=f"another command has written encoded data to {address} meanwhile"):
        encode()
    assert ObjectStore(address).read("encoded.json") == b"{}"
