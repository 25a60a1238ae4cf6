"""A file is read as one version: whatever happens to it between listing and reading is a fault."""

import os

import pytest

from uhr.base.files import file_version
from uhr.pixels.decode import read_bytes
from uhr.pixels.files import open_version, stat_file
from uhr.pixels.headers import read_header
from uhr.pixels.types import PixelFault


@pytest.fixture
def listed(forge, tmp_path):
    """A PNG of 40x30 px and the version that a listing would give."""
    path = tmp_path / "lake.png"
    path.write_bytes(forge.encode(forge.image(40, 30), "PNG"))
    return path, file_version(path.stat())


def fault_of(call) -> PixelFault:
    with pytest.raises(PixelFault) as caught:
        call()
    return caught.value


READERS = {
    "header": read_header,
    "bytes": lambda path, version: read_bytes(path, version=version),
    "stat": stat_file,
}


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
def test_the_listed_version_is_read_and_every_other_one_is_changed(reader, listed) -> None:
    path, version = listed
    data = path.read_bytes()
    reader(path, version)

    path.write_bytes(data + b"more")
    assert "bytes when it was listed" in fault_of(lambda: reader(path, version)).message
    path.write_bytes(data)
    os.utime(path, ns=(1, 1))
    assert "modification time" in fault_of(lambda: reader(path, version)).message
    path.unlink()
    fault = fault_of(lambda: reader(path, version))
    assert (fault.kind, "removed" in fault.message) == ("changed", True)
    assert fault_of(lambda: reader(path, None)).kind == "unreadable", "nobody listed it"


@pytest.mark.parametrize("reader", ["header", "bytes"])
def test_a_folder_or_a_pipe_in_the_place_of_a_file_is_changed_and_never_blocks(reader, listed) -> None:
    path, version = listed
    path.unlink()
    os.mkfifo(path)
    assert fault_of(lambda: READERS[reader](path, version)).kind == "changed"
    path.unlink()
    path.mkdir()
    assert fault_of(lambda: READERS[reader](path, version)).kind == "changed"


def test_a_link_in_the_place_of_a_file_is_judged_by_the_file_that_it_leads_to(listed, tmp_path) -> None:
    path, version = listed
    moved = path.rename(tmp_path / "moved.png")
    path.symlink_to(moved)
    assert read_bytes(path, version=version) == moved.read_bytes()
    moved.write_bytes(b"other")
    assert fault_of(lambda: read_bytes(path, version=version)).kind == "changed"


def test_a_file_that_is_written_to_while_it_is_read_is_changed_whether_or_not_it_was_listed(listed) -> None:
    path, version = listed

    def read(known) -> None:
        with open_version(path, known) as handle:
            assert os.read(handle, 4) == b"\x89PNG"
            path.write_bytes(path.read_bytes() + b"!")

    for known in (version, None):
        fault = fault_of(lambda: read(known))  # noqa: B023 - called at once
        assert (fault.kind, "when reading began" in fault.message) == ("changed", True)


def test_what_is_found_in_bytes_that_changed_meanwhile_is_no_verdict_on_them(listed) -> None:
    """Half a file is read as truncated: it says nothing, because the other half was being written."""
    path, version = listed

    def read() -> None:
        with open_version(path, version) as handle:
            path.write_bytes(b"a new file that is longer than the old one" * 99)
            assert os.read(handle, 1)
            raise PixelFault("truncated", "the PNG ends in its header")

    assert fault_of(read).kind == "changed"


def test_an_error_of_another_kind_is_passed_on_as_it_is(listed) -> None:
    path, version = listed

    def read() -> None:
        with open_version(path, version):
            path.write_bytes(b"other")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        read()


def test_a_file_that_grows_without_end_is_read_no_further_than_it_was(listed, monkeypatch) -> None:
    import io

    path, version = listed
    sizes = []
    real = io.BufferedReader.read

    class Reader(io.BufferedReader):
        def read(self, size=-1):
            sizes.append(size)
            return real(self, size)

    monkeypatch.setattr(
        "builtins.open", lambda handle, mode, closefd: Reader(io.FileIO(handle, closefd=closefd))
    )
    read_bytes(path, version=version)
    assert sizes == [path.stat().st_size]
