import errno
import hashlib
import os
import stat

import pytest

from uhr.base import files
from uhr.base.errors import UserError
from uhr.base.files import (
    EarlyWrites,
    atomic,
    disk_fault,
    saving,
    sha256_file,
    user_path,
    usual_modes,
    write_json,
)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def half_a_write() -> None:
        with atomic(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        half_a_write()
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_finished_write_replaces_the_file_and_makes_its_folder(tmp_path):
    path = tmp_path / "new" / "file.json"
    write_json(path, {"a": "ü"})
    write_json(path, {"a": "ö"})
    assert "ö" in path.read_text(encoding="utf-8")
    assert [p.name for p in path.parent.iterdir()] == ["file.json"]
    assert sha256_file(path) == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_tilde_of_an_unknown_user_is_an_ordinary_name(monkeypatch):
    monkeypatch.setenv("HOME", "/somewhere")
    assert str(user_path("~/a")) == "/somewhere/a"
    assert str(user_path("~nobody that is here/a")) == "~nobody that is here/a"


@pytest.fixture(params=[0o022, 0o002, 0o077], ids=oct)
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def private(path):
    """A file that only its owner may read, put there by a rename: how some libraries write."""
    temporary = path.with_name("x.tmp")
    os.close(os.open(temporary, os.O_CREAT | os.O_WRONLY, 0o600))
    os.replace(temporary, path)


def test_an_atomic_file_has_the_umasks_mode_however_its_writer_made_it(umask, tmp_path):
    with atomic(tmp_path / "plain") as temporary:
        temporary.write_text("x")
    with atomic(tmp_path / "renamed") as temporary:
        private(temporary)
    assert {mode(path) for path in tmp_path.iterdir()} == {0o666 & ~umask}


def test_a_folder_that_a_library_wrote_gets_the_umasks_modes(umask, tmp_path):
    (tmp_path / "deep").mkdir()
    private(tmp_path / "deep" / "weights")
    (tmp_path / "outside").touch(0o600)
    (tmp_path / "deep" / "link").symlink_to(tmp_path / "outside")
    usual_modes(tmp_path / "deep")
    assert mode(tmp_path / "deep" / "weights") == 0o666 & ~umask
    assert sorted(path.name for path in (tmp_path / "deep").iterdir()) == ["link", "weights"]


class OfALibrary(Exception):
    """How DuckDB and safetensors raise: neither an OSError nor an errno."""


FULL = [
    (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "No space left on device"),
    (OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)), "Disk quota exceeded"),
    (OfALibrary("Error while serializing: I/O error: File too large (os error 27)"), "File too large"),
    (OfALibrary('Could not write file "a": No space left on device'), "No space left on device"),
]


@pytest.mark.parametrize(("error", "reason"), FULL)
def test_a_full_disk_is_one_line_whichever_library_reports_it(error, reason, tmp_path):
    assert disk_fault(error) == reason
    with pytest.raises(UserError) as caught, saving(tmp_path, lambda: "step 5 is saved; free space"):
        raise error
    assert str(caught.value) == f"{tmp_path} cannot be written ({reason}): step 5 is saved; free space"


def denied(path):
    return PermissionError(errno.EACCES, "Permission denied", str(path))


def test_a_refused_write_is_distinguished_from_a_refused_read(tmp_path):
    place = tmp_path / "out" / "report.html"
    for file in (place, place.parent, place.with_name(f".{place.name}.1.tmp"), place / "inside"):
        with pytest.raises(UserError) as caught, saving(place, "free space, then again"):
            raise denied(file)
        fix = "make it writable, then again"
        assert str(caught.value) == f"{place} cannot be written (Permission denied): {fix}"
    for error in (denied(tmp_path / "source"), ValueError("no"), UserError("mine")):
        with pytest.raises(type(error)) as passed, saving(place, "fix it"):
            raise error
        assert passed.value is error


def test_a_growing_file_is_written_early_and_a_failure_of_the_disk_is_raised(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_WRITTEN_AT_ONCE", 10)
    seen = []
    monkeypatch.setattr(files, "_data_to_disk", lambda handle: seen.append(os.fstat(handle).st_size))
    with open(tmp_path / "file", "wb", buffering=0) as file, EarlyWrites(file.fileno()) as writes:
        for size in range(1, 26):
            file.write(b"x")
            writes.grown(size)
    assert 1 <= len(seen) <= 2
    assert seen[0] >= 10

    def broken(handle):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    def write_on_a_broken_disk():
        with open(tmp_path / "file", "wb") as file, EarlyWrites(file.fileno()) as writes:
            writes.grown(10)

    monkeypatch.setattr(files, "_data_to_disk", broken)
    with pytest.raises(OSError, match="Input/output"):
        write_on_a_broken_disk()
