"""A user's own files are never overwritten or removed, and one process works in a folder."""

import re
import shutil
from dataclasses import replace

import pytest

from uhr.base.errors import UserError
from uhr.base.files import or_half_written
from uhr.base.locks import run_lock
from uhr.base.run_folder import FolderLayout, RunFolder, all_or_nothing

HEX = "0123456789abcdef" * 2
LAYOUT = FolderLayout(
    "a set",
    ("manifest.json", "samples", "report.html", "units"),
    ("manifest.json", "units"),
    {
        "samples": or_half_written("part-[0-9]"),
        "units": or_half_written("lock|plan"),
        "units/spilled": re.compile(".*"),
    },
)


def claimed(folder, layout=LAYOUT):
    RunFolder(folder, layout).claim()


def put(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("mine")


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir())


def test_a_new_or_empty_folder_is_made_ready_and_left_empty(tmp_path):
    claimed(tmp_path / "deep" / "new")
    claimed(tmp_path / "deep" / "new")
    assert list((tmp_path / "deep" / "new").iterdir()) == []


def test_a_folder_of_the_same_kind_is_accepted_with_leftovers_of_a_killed_write(tmp_path):
    (tmp_path / "manifest.json").touch()
    (tmp_path / "samples").mkdir()
    (tmp_path / f".manifest.json.{'a' * 32}.tmp").touch()
    claimed(tmp_path)


def test_a_folder_with_only_leftovers_of_a_killed_write_counts_as_empty(tmp_path):
    (tmp_path / f".manifest.json.{'a' * 32}.tmp").touch()
    claimed(tmp_path)


@pytest.mark.parametrize(
    ("names", "named"),
    [
        (["thesis.doc"], "thesis.doc"),
        (["manifest.json", "thesis.doc"], "thesis.doc"),
        (["samples/part-0"], "samples"),
        (["report.html", "thesis.doc"], "thesis.doc"),
        (["manifest.json", "samples/thesis.doc"], "samples/thesis.doc"),
        (["manifest.json", "samples"], "samples"),
        (["manifest.json", "samples/part-0/thesis.doc"], "samples/part-0"),
        (["units/deep/thesis.doc"], "units/deep"),
        (["manifest.json", "samples/lock"], "samples/lock"),
    ],
)
def test_a_folder_that_contains_anything_else_is_refused_and_unchanged(tmp_path, names, named):
    put(tmp_path, *names)
    for act in (RunFolder(tmp_path, LAYOUT).check, RunFolder(tmp_path, LAYOUT).claim):
        with pytest.raises(UserError) as error:
            act()
        assert (
            str(error.value)
            == f"--out {tmp_path} already contains something else ({named}): name a new folder"
        )
    assert files(tmp_path) == sorted(names)


def test_a_layout_may_allow_other_names_next_to_its_marks(tmp_path):
    layout = replace(LAYOUT, allow_others=True, option="")
    put(tmp_path, "thesis.doc")
    with pytest.raises(UserError, match=f"^{tmp_path} already contains something else"):
        claimed(tmp_path, layout)
    put(tmp_path, "manifest.json")
    claimed(tmp_path, layout)


def test_a_check_changes_nothing(tmp_path):
    RunFolder(tmp_path / "new", LAYOUT).check()
    assert list(tmp_path.iterdir()) == []


def test_clearing_removes_what_the_command_writes_and_leaves_the_rest_with_a_warning(tmp_path, capsys):
    ours = ["units/plan", f"units/.plan.{HEX}.tmp", "units/spilled/any", "samples/part-0"]
    put(tmp_path, "manifest.json", *ours)
    RunFolder(tmp_path, LAYOUT).clear("samples", "units")
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]
    assert capsys.readouterr().err == ""
    put(tmp_path, *ours, "units/thesis.doc", "report.html")
    RunFolder(tmp_path, LAYOUT).clear("units", "report.html", "samples")
    assert files(tmp_path) == ["manifest.json", "units/thesis.doc"]
    assert f"{tmp_path / 'units'} contains 'thesis.doc', which no run wrote" in capsys.readouterr().err


def test_a_link_to_a_users_folder_is_neither_taken_nor_followed(tmp_path):
    put(tmp_path / "theirs", "part-0")
    put(tmp_path / "out", "manifest.json")
    (tmp_path / "out" / "samples").symlink_to(tmp_path / "theirs")
    with pytest.raises(UserError, match=r"something else \(samples\)"):
        claimed(tmp_path / "out")
    RunFolder(tmp_path / "out", LAYOUT).clear("samples")
    assert files(tmp_path / "theirs") == ["part-0"]


def test_one_process_works_in_a_folder_and_its_lock_goes_with_it(tmp_path):
    put(tmp_path / "out", "manifest.json", "units/plan", f".report.html.{HEX}.tmp", f".thesis.{HEX}.tmp")
    folder = RunFolder(tmp_path / "out", LAYOUT)
    with folder.lock("units"):
        folder.clear("units")
        assert run_lock.is_held(tmp_path / "out" / "units"), "until the end the run is seen to be at work"
        with (
            pytest.raises(UserError, match=f"^another run is at work in {tmp_path / 'out'}: "),
            RunFolder(tmp_path / "out", LAYOUT).lock("units"),
        ):
            raise AssertionError("two processes have the lock")
    # a temporary file of another name is none of the layout's
    assert files(tmp_path / "out") == [f".thesis.{HEX}.tmp", "manifest.json"]
    assert not (tmp_path / "out" / "units").exists()


def test_the_end_of_a_run_leaves_the_next_one_alone(tmp_path):
    work = tmp_path / "work"
    with RunFolder(work, LAYOUT).lock():
        (work / "next").touch()
    assert files(work) == ["next"]
    with RunFolder(work, LAYOUT).lock():
        shutil.rmtree(work)  # the next run has come and gone, and the folder with it


@pytest.mark.parametrize("name", ["units", "."])
def test_a_folder_that_was_made_and_stayed_empty_is_removed_and_one_that_was_there_stays(tmp_path, name):
    (tmp_path / "there").mkdir()
    for folder in ("new", "there"):
        found = RunFolder(tmp_path / folder, LAYOUT)
        found.claim()
        with pytest.raises(KeyboardInterrupt), found.lock(name):
            raise KeyboardInterrupt
    assert not (tmp_path / "new").exists()
    assert (tmp_path / "there").exists() == (name == "units"), "the folder of the lock is the run's own"


def test_a_request_is_kept_and_another_one_is_named_by_what_differs(tmp_path):
    folder = RunFolder(tmp_path, LAYOUT)
    request = {"uhr": "1", "images": "a", "rows": [1, 2]}
    folder.keep_request("request.json", request, 3, "evaluation")
    before = (tmp_path / "request.json").read_bytes()
    # other software may go on with it
    folder.keep_request("request.json", {**request, "uhr": "2"}, 3, "evaluation")
    with pytest.raises(UserError) as error:
        folder.keep_request("request.json", {"images": "b", "rows": [1], "seed": 0}, 3, "evaluation")
    what = f"--out {tmp_path} contains another evaluation: other images, rows, seed"
    assert str(error.value) == f"{what}: name a new folder"
    with pytest.raises(UserError, match="has schema version 3, and this uhr reads 2"):
        folder.keep_request("request.json", request, 2, "evaluation")
    assert (tmp_path / "request.json").read_bytes() == before


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
