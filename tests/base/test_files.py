import hashlib

import pytest

from uhr.base.files import atomic, human_bytes, sha256_file, user_path, write_json


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


@pytest.mark.parametrize(
    ("count", "words"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (4.2e9, "4.2 GB"), (3e12, "3.0 TB")]
)
def test_bytes_for_people(count, words):
    assert human_bytes(count) == words


def test_a_home_that_is_not_here_is_a_name_like_any_other(monkeypatch):
    monkeypatch.setenv("HOME", "/somewhere")
    assert str(user_path("~/a")) == "/somewhere/a"
    assert str(user_path("~nobody that is here/a")) == "~nobody that is here/a"
