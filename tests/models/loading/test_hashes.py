"""Hashes of weights: right whatever happened to the file or to the memory of it, and read once."""

import hashlib
import json
import os
import threading

import pytest

from uhr.models.loading import hashes


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A user's cache of the test's own, in which every file is large enough to be remembered."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(hashes, "SMALL", 0)
    return tmp_path / "cache" / "uhr" / "hashes"


@pytest.fixture
def reads(monkeypatch):
    """The files that were read whole, in order."""
    found = []
    plain = hashes.sha256_file

    def noted(path, advance=None):
        found.append(path.name)
        return plain(path, advance)

    monkeypatch.setattr(hashes, "sha256_file", noted)
    return found


def old(path, data, at=1_000_000_000):
    """A file that was last written long ago."""
    path.write_bytes(data)
    os.utime(path, (at, at))
    return path


def sha(data):
    return hashlib.sha256(data).hexdigest()


def test_a_file_is_read_once_while_it_stays_as_it_is(tmp_path, reads):
    file = old(tmp_path / "a.safetensors", b"one")
    assert hashes.known_hash(file) is None
    assert hashes.file_hash(file) == hashes.file_hash(file) == hashes.known_hash(file) == sha(b"one")
    assert reads == ["a.safetensors"]
    (tmp_path / "link.safetensors").symlink_to(file)
    assert hashes.file_hash(tmp_path / "link.safetensors") == sha(b"one")
    assert reads == ["a.safetensors"]


def test_a_file_of_the_same_size_and_time_is_read_again(tmp_path):
    file = old(tmp_path / "a.safetensors", b"one")
    hashes.file_hash(file)
    old(file, b"two")
    assert hashes.file_hash(file) == sha(b"two")
    os.replace(old(tmp_path / "b", b"six"), file)
    assert hashes.file_hash(file) == sha(b"six")


def test_a_file_that_has_just_changed_is_not_remembered(tmp_path, cache):
    file = tmp_path / "a.safetensors"
    file.write_bytes(b"one")
    assert hashes.file_hash(file) == sha(b"one")
    assert not cache.exists()


@pytest.mark.parametrize(
    "damage",
    [
        lambda f: f.write_bytes(b""),
        lambda f: f.write_bytes(b"\xff\xfe"),
        lambda f: f.write_text("[" * 100_000),
        lambda f: f.write_text('{"state": 1}'),
        lambda f: f.write_text(json.dumps(json.loads(f.read_text()) | {"sha256": "ab"})),
        lambda f: f.write_text(json.dumps(json.loads(f.read_text()) | {"sha256": None})),
        lambda f: (f.unlink(), f.mkdir()),
    ],
    ids=["empty", "no text", "too deep", "strange", "short", "null", "a folder"],
)
def test_a_damaged_memory_costs_one_more_reading(tmp_path, cache, reads, damage, capsys):
    file = old(tmp_path / "a.safetensors", b"one")
    hashes.file_hash(file)
    (kept,) = cache.iterdir()
    damage(kept)
    assert hashes.file_hash(file) == sha(b"one")
    assert len(reads) == 2
    if kept.is_file():
        assert hashes.file_hash(file) == sha(b"one")
        assert len(reads) == 2
    else:
        assert "cannot be stored" in capsys.readouterr().err


def test_a_cache_that_cannot_be_written_to_is_a_warning_and_no_error(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert hashes.file_hash(old(tmp_path / "a.safetensors", b"one")) == sha(b"one")
    assert "warning: the hash of" in capsys.readouterr().err


def test_many_writers_at_once_leave_a_whole_memory(tmp_path, cache):
    files = [old(tmp_path / f"{i}.safetensors", bytes([i])) for i in range(4)]
    found = []
    threads = [
        threading.Thread(target=lambda file=file: found.append((file, hashes.file_hash(file))))
        for file in files * 8
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 32
    assert all(value == sha(file.read_bytes()) for file, value in found)
    assert len(list(cache.iterdir())) == 4
    assert all(hashes.known_hash(file) == sha(file.read_bytes()) for file in files)


def test_the_hubs_name_of_a_blob_is_taken_where_it_is_a_sha256(tmp_path, reads):
    data, repository = b"weights", tmp_path / "models--org--name"
    store, blobs, snapshot = (tmp_path / "store", repository / "blobs", repository / "snapshots" / "c0ffee")
    for folder in (store, blobs, snapshot):
        folder.mkdir(parents=True)
    # a store that repositories share names files by another hash of as many digits
    old(store / ("9" * 64), data)
    (blobs / sha(data)).symlink_to(store / ("9" * 64))
    (snapshot / "a.safetensors").symlink_to(f"../../blobs/{sha(data)}")
    old(blobs / ("e" * 40), b"small")
    (snapshot / "config.json").symlink_to(f"../../blobs/{'e' * 40}")
    assert hashes.file_hash(snapshot / "a.safetensors") == sha(data)
    assert reads == []
    assert hashes.file_hash(snapshot / "config.json") == sha(b"small")
    # nobody's promise but the hub's
    old(tmp_path / ("a" * 64), b"mine")
    assert hashes.file_hash(tmp_path / ("a" * 64)) == sha(b"mine")
    assert reads == ["config.json", "a" * 64]


def test_a_folders_hash_is_of_its_weights_by_name(tmp_path):
    def folder(name, **files):
        (tmp_path / name).mkdir()
        for file, data in files.items():
            (tmp_path / name / f"{file}.safetensors").write_bytes(data)
        return tmp_path / name

    one = folder("one", a=b"1", b=b"2")
    (one / "config.json").write_text("{}")
    assert hashes.hash_of(one) == hashes.hash_of(folder("same", a=b"1", b=b"2"))
    assert hashes.hash_of(one) != hashes.hash_of(folder("swapped", a=b"2", b=b"1"))


def test_a_small_file_is_simply_read(tmp_path, monkeypatch, cache):
    monkeypatch.setattr(hashes, "SMALL", 4)
    assert hashes.file_hash(old(tmp_path / "a", b"one")) == sha(b"one")
    assert not cache.exists()
    assert hashes.file_hash(old(tmp_path / "b", b"four")) == sha(b"four")
    assert len(list(cache.iterdir())) == 1
