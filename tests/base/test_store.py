import os
import pickle
import subprocess
import sys
import threading
import time

import pytest

from uhr.base import store as stores
from uhr.base.errors import UserError
from uhr.base.store import StoreError, open_store


@pytest.fixture(params=["folder", "s3"])
def store(request, tmp_path):
    """A folder and a prefix of a bucket: the same is true of both."""
    if request.param == "folder":
        return open_store(str(tmp_path / "a folder"))
    server = request.getfixturevalue("s3")
    return open_store(f"s3://{server.bucket}/a prefix/of")


def test_what_is_written_is_read_listed_and_deleted_under_its_name(store):
    assert store.names() == set()
    assert store.read("a/b.json") is None
    store.delete("a/b.json")
    for name, data in {"a/b.json": b"1", "a b/ü.png": bytes(range(256)) * 999, "c": b""}.items():
        store.write(name, data)
        assert store.read(name) == data
        assert store.exists(name)
    store.write("c", b"again")
    assert store.read("c") == b"again"
    assert store.names() == {"a/b.json", "a b/ü.png", "c"}
    store.delete("c")
    assert not store.exists("c")
    assert store.names() == {"a/b.json", "a b/ü.png"}


def test_a_store_sees_at_once_what_another_one_wrote(store):
    assert store.names() == set()
    assert not store.exists("x")
    other = open_store(store.text)
    other.write("x", b"1")
    assert store.exists("x")
    assert store.names() == {"x"}
    other.delete("x")
    assert not store.exists("x")
    assert store.read("x") is None


def test_neighbours_with_the_same_beginning_are_not_seen(store):
    open_store(store.text + "-2").write("x", b"1")
    store.write("y", b"1")
    assert store.names() == {"y"}


def test_a_name_is_whole_or_absent_while_it_is_written_again_and_again(store):
    """A reader never sees a part of a file, and never misses it."""
    store.write("x", b"0" * 300_000)
    done = threading.Event()

    def write() -> None:
        for n in range(1, 30):
            store.write("x", str(n % 10).encode() * 300_000)
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    reader = open_store(store.text)
    while not done.is_set():
        data = reader.read("x")
        assert data is not None
        assert data == data[:1] * 300_000
    writer.join()


WRITER = """
import sys
from uhr.base.store import open_store

store = open_store(sys.argv[1])
print("go", flush=True)
while True:
    store.write("big", b"1" * 20_000_000)
"""


def test_a_writer_that_is_killed_leaves_no_name(store):
    writer = subprocess.Popen([sys.executable, "-c", WRITER, store.text], stdout=subprocess.PIPE)
    assert writer.stdout.readline() == b"go\n"
    time.sleep(0.05)
    writer.kill()
    writer.wait()
    writer.stdout.close()
    assert store.names() <= {"big"}
    assert len(store.read("big") or b"") in (0, 20_000_000)


def test_a_folder_that_cannot_be_written_to_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=r"file/x: File exists") as error:
        open_store(str(tmp_path / "file")).write("x", b"1")
    assert error.value.fix


@pytest.mark.parametrize("fault", [500, 503, 0], ids=["500", "503", "dropped"])
def test_requests_that_fail_now_and_then_are_repeated(s3, fault):
    seen = set()

    def first_time(method, path):
        known = (method, path) in seen
        seen.add((method, path))
        return None if known else fault

    store = open_store(f"s3://{s3.bucket}/x")
    s3.fault = first_time
    for n in range(4):
        store.write(f"{n}", b"data")
    assert [store.read(f"{n}") for n in range(4)] == [b"data"] * 4
    assert store.names() == set("0123")
    assert len(s3.puts("/x/")) == 8


@pytest.mark.parametrize(
    ("fault", "message"), [(503, r"the store failed"), (403, "access is denied"), (0, "the store")]
)
def test_a_store_that_keeps_failing_is_one_line_with_the_fix(s3, monkeypatch, fault, message):
    monkeypatch.setattr(stores, "ATTEMPTS", 2)
    store = open_store(f"s3://{s3.bucket}/x")
    s3.fault = lambda method, path: fault
    for act in (
        lambda: store.write("a", b"1"),
        lambda: store.read("a"),
        store.names,
        lambda: store.exists("a"),
    ):
        with pytest.raises(StoreError, match=message) as error:
            act()
        assert f"s3://{s3.bucket}/x" in error.value.what
        assert error.value.fix
        assert "\n" not in str(error.value)


def test_a_bucket_that_is_not_there_is_one_line(s3):
    store = open_store(f"s3://{s3.bucket}-nowhere/x")
    calls = [lambda: store.write("a", b"1"), store.probe, lambda: store.create("a", b"1")]
    calls += [store.names, store.versions, store.states, lambda: store.read("a"), lambda: store.version("a")]
    for call in calls:
        with pytest.raises(StoreError) as error:
            call()
        assert str(error.value) == (
            f"s3://{s3.bucket}-nowhere: there is no such bucket: make the bucket, or name another"
        )


def test_a_file_that_is_gone_is_not_taken_for_a_bucket_that_is_gone(s3, tmp_path):
    store = open_store(f"s3://{s3.bucket}/x")
    with pytest.raises(StoreError, match=rf"^s3://{s3.bucket}/x/a: it was removed meanwhile"):
        store.upload(tmp_path / "copy of a bucket" / "a", "a")


def test_a_probe_that_is_refused_names_the_prefix(s3):
    s3.fault = lambda method, path: 403
    with pytest.raises(StoreError, match=rf"^s3://{s3.bucket}/x: access is denied") as error:
        open_store(f"s3://{s3.bucket}/x").probe()
    assert "probe" not in str(error.value)


def test_missing_credentials_and_a_store_that_is_not_there_are_one_line(s3, monkeypatch, tmp_path):
    monkeypatch.setattr(stores, "ATTEMPTS", 2)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StoreError, match=r"does not answer .*check AWS_ENDPOINT_URL"):
        open_store(f"s3://{s3.bucket}/y").write("a", b"1")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    stores._file_system("s3", "s3://x")._cache.clear()
    with pytest.raises(StoreError, match=r"no credentials .*set AWS_ACCESS_KEY_ID"):
        open_store(f"s3://{s3.bucket}/y").write("a", b"1")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("s3://", "names no bucket"),
        ("gs://x/y", "has an unknown protocol"),
        ("file:///tmp/x", "name a folder"),
    ],
)
def test_an_invalid_address_is_one_line(text, message):
    with pytest.raises(UserError, match=message):
        open_store(text)


def test_the_folder_for_notes_is_the_urls_own_and_the_same_each_time(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    one, again, other = (open_store(text).work_folder() for text in ("s3://b/x", "s3://b/x/", "s3://b/y"))
    assert one == again != other
    assert tmp_path in one.parents


def test_an_error_of_a_store_crosses_processes_as_what_it_is():
    error = pickle.loads(pickle.dumps(StoreError("what", "fix")))
    assert (type(error), error.what, error.fix) == (StoreError, "what", "fix")


def test_an_upload_in_parts_is_atomic_too(s3):
    """Beyond 100 MB a PUT becomes a multipart upload: absent until it is complete."""
    store = open_store(f"s3://{s3.bucket}/x")
    data = os.urandom(1 << 20) * 100
    store.write("8k.png", data)
    assert len(s3.puts("8k.png")) > 1
    assert store.read("8k.png") == data


def test_half_written_files_are_removed_and_others_of_a_like_name_stay(tmp_path):
    store = open_store(str(tmp_path / "store"))
    store.write("below/image.png", b"whole")
    half = tmp_path / "store" / "below" / f".image.png.{'0' * 32}.tmp"
    kept = tmp_path / "store" / "below" / ".hidden.tmp"
    half.write_bytes(b"ha")
    kept.write_bytes(b"the user's")
    store.remove_half_written()
    assert not half.exists()
    assert kept.read_bytes() == b"the user's"
    assert store.read("below/image.png") == b"whole"
