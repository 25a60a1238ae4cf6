"""One process trains in a folder, and only in one of its own."""

import pytest

from uhr.base.errors import UserError
from uhr.train.run.job import lock_run

HEX = "0123456789abcdef" * 2


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("command", ["run", "resume"])
def test_a_second_run_in_a_folder_is_refused_in_one_line(job_of, small_set, tiny_flux, command, capsys):
    from uhr.cli import main

    out = job_of("phases.main.steps=1").out
    arguments = {
        "run": ["run", "lora", "--model", str(tiny_flux), "--data", str(small_set.folder), "--out", str(out)],
        "resume": ["resume", str(out)],
    }[command]
    with lock_run(out):
        assert main(["train", *arguments]) == 1
        assert capsys.readouterr().err == f"uhr: another run is at work in {out}: wait for it, or stop it\n"
        with pytest.raises(UserError, match="another run is at work"), lock_run(out):
            raise AssertionError("two processes train in one folder")
    assert names(out) == ["run.json"]
    with lock_run(out):
        pass


def test_a_folder_that_nothing_came_into_is_removed_and_one_that_was_there_stays(tmp_path):
    (tmp_path / "there").mkdir()
    for name in ("new", "there"):
        with lock_run(tmp_path / name):
            pass
    assert names(tmp_path) == ["there"]


def test_what_a_killed_run_left_half_written_is_cleared(tmp_path):
    (tmp_path / f".run.json.{HEX}.tmp").touch()
    (tmp_path / f".log.jsonl.{HEX}.tmp").touch()
    (tmp_path / ".lock").mkdir()
    (tmp_path / ".lock" / "lock").touch()
    with lock_run(tmp_path):
        assert names(tmp_path) == [".lock"]
    assert names(tmp_path) == []


def test_a_folder_of_a_users_is_refused_and_untouched(tmp_path):
    (tmp_path / "thesis.doc").touch()
    with pytest.raises(UserError, match="already contains something else"), lock_run(tmp_path):
        raise AssertionError("held")
    assert names(tmp_path) == ["thesis.doc"]


def test_a_run_that_is_not_there_is_not_resumed_and_nothing_is_made(tmp_path):
    from uhr.cli import main

    assert main(["train", "resume", str(tmp_path / "none")]) == 1
    assert names(tmp_path) == []
