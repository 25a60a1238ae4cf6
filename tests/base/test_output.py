import pytest

from uhr.base.errors import UserError
from uhr.base.output import all_or_nothing, claim

OURS, MARKS = ("manifest.json", "samples", "report.html"), ("manifest.json",)


def claimed(folder):
    claim(folder, OURS, MARKS, "a set")


def test_a_new_or_empty_folder_is_made_ready_and_left_empty(tmp_path):
    claimed(tmp_path / "deep" / "new")
    claimed(tmp_path / "deep" / "new")
    assert list((tmp_path / "deep" / "new").iterdir()) == []


def test_a_folder_of_the_same_kind_is_taken_with_what_a_killed_write_left(tmp_path):
    (tmp_path / "manifest.json").touch()
    (tmp_path / "samples").mkdir()
    (tmp_path / f".manifest.json.{'a' * 32}.tmp").touch()
    claimed(tmp_path)


def test_a_folder_with_nothing_but_what_a_killed_write_left_counts_as_empty(tmp_path):
    (tmp_path / f".manifest.json.{'a' * 32}.tmp").touch()
    claimed(tmp_path)


@pytest.mark.parametrize("names", [["thesis.doc"], ["manifest.json", "thesis.doc"], ["samples"]])
def test_a_folder_that_holds_anything_else_is_refused_and_untouched(tmp_path, names):
    for name in names:
        (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match="holds something else already"):
        claimed(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)


def test_a_file_and_a_folder_that_cannot_be_made_are_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file"):
        claimed(tmp_path / "file")
    with pytest.raises(UserError, match="cannot be written to"):
        claimed(tmp_path / "file" / "below")


def test_a_block_that_fails_leaves_what_was_there_and_no_folder_of_its_own(tmp_path):
    (tmp_path / "mine").touch()

    def fail(folder):
        with all_or_nothing(folder):
            (folder / "deep").mkdir(parents=True)
            (folder / "deep" / "file").touch()
            (folder / "link").symlink_to(tmp_path)
            raise KeyboardInterrupt

    for folder in (tmp_path, tmp_path / "a" / "b"):
        with pytest.raises(KeyboardInterrupt):
            fail(folder)
        assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    with all_or_nothing(tmp_path / "a" / "b"):
        (tmp_path / "a" / "b").mkdir(parents=True)
    assert (tmp_path / "a" / "b").is_dir()
