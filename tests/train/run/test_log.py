import json

import pytest

from uhr.base.errors import UserError
from uhr.train.run.log import print_log, read_log, track


def entry(step: int) -> dict:
    return {"step": step, "loss": 1 / step, "lr": 0.1, "grad_norm": 1.0, "samples_per_second": 2.0}


def write(run, steps, after=0):
    with track(run, after) as line:
        for step in steps:
            line(entry(step))


def test_lines_behind_the_checkpoint_are_cut_off_so_that_steps_are_unique(tmp_path):
    write(tmp_path, range(1, 8))
    write(tmp_path, range(5, 10), after=4)
    assert read_log(tmp_path) == [entry(step) for step in range(1, 10)]


def test_a_line_that_a_kill_cut_short_is_left_out(tmp_path):
    write(tmp_path, [1, 2])
    with open(tmp_path / "log.jsonl", "a") as file:
        file.write('{"step": 3, "lo')
    assert [line["step"] for line in read_log(tmp_path)] == [1, 2]
    write(tmp_path, [3], after=2)
    assert [line["step"] for line in read_log(tmp_path)] == [1, 2, 3]


def test_a_line_is_there_as_soon_as_its_step_is_done(tmp_path):
    with track(tmp_path, 0) as line:
        line(entry(1))
        assert json.loads((tmp_path / "log.jsonl").read_text())["step"] == 1


def test_a_broken_line_is_an_error_that_counts_it(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"step": 1}\nnonsense\n{"step": 3}\n')
    with pytest.raises(UserError, match="line 2 is not JSON"):
        read_log(tmp_path)


def test_a_long_log_is_shown_in_at_most_twenty_stretches(tmp_path, capsys):
    print_log([entry(step) for step in range(1, 1001)])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 21
    assert lines[1].startswith("1-50")
    assert lines[-1].startswith("951-1000")
