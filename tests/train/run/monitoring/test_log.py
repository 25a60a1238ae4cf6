import json

import pytest

from uhr.base.errors import UserError
from uhr.train.run.monitoring.log import print_log, progress_note, read_log, track
from uhr.train.run.monitoring.loggers import check_loggers, loggers, scalars


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


FULL = {
    "step": 10, "phase": "main", "bucket": "64x64", "samples": 2, "loss": 0.5, "parts": {"g": 2.0},
    "sigma": {"mean": 0.5, "min": 0.1, "max": 0.9}, "lr": 0.1, "optimiser": {"d": 1e-4}, "grad_norm": 1.0,
    "seconds": 2.0, "wait": 0.5, "samples_per_second": 1.0, "tokens_per_second": 5000.0,
    "peak_memory": 3 << 30,
    "held_out": {"loss": 0.4, "images": 2, "bins": [{"sigma": [0.0, 0.5], "loss": 0.3}]},
}  # fmt: skip


def test_the_progress_line_has_loss_speed_wait_memory_and_time_left():
    assert progress_note(FULL, 100) == (
        "loss 0.5000, 1 images/s, 5,000 tokens/s, wait 25.0%, memory 3.0 GiB, 0:03:00 left"
    )
    assert ", held-out loss 0.4000 at step 10," in progress_note({**FULL, "step": 12}, 100, measured=FULL)
    # of a VAE: small rates are not rounded to 0
    crops = {key: value for key, value in FULL.items() if key != "tokens_per_second"}
    assert "0.027 Mpx/s" in progress_note({**crops, "megapixels_per_second": 0.027}, 100)
    # one slow step does not change the time left by more than its part of the recent ones
    assert progress_note(FULL, 100, seconds=1.0).endswith("0:01:30 left")


def test_the_table_shows_what_the_lines_have_and_reads_those_of_earlier_versions(capsys):
    print_log([FULL, {**FULL, "step": 11, "wait": 1.5}])
    head, first, second = capsys.readouterr().out.splitlines()
    for name in ("held-out loss", "tokens/s", "wait %", "d"):
        assert name in head
    assert "25" in first
    assert "75" in second
    print_log([entry(1), FULL])
    assert "held-out loss" in capsys.readouterr().out
    print_log([entry(1), entry(2)])
    assert "wait" not in capsys.readouterr().out


def test_the_table_has_a_line_for_the_model_before_training_and_a_column_for_each_held_out_loss(capsys):
    def measured(**losses):
        return {name: {"loss": loss, "images": 1, "bins": []} for name, loss in losses.items()}

    print_log([{"step": 0, "held_out_by_phase": measured(one=0.8, two=0.6)}])
    print_log(
        [
            {"step": 0, "held_out_by_phase": measured(one=0.8, two=0.6)},
            *[entry(step) for step in range(1, 22)],
            {**entry(22), "held_out_by_phase": measured(one=0.7, two=0.5)},
        ]
    )
    lines = capsys.readouterr().out.splitlines()[2:]
    assert "held-out loss of phase one" in lines[0]
    assert "held-out loss of phase two" in lines[0]
    assert lines[1].split()[:2] == ["0", "-"]
    assert "0.8" in lines[1]
    assert lines[2].startswith("1-2 ")
    assert "0.7" in lines[-1]
    assert "0.5" in lines[-1]


def test_losses_of_several_phases_have_names_of_their_own_for_other_loggers():
    measured = {"loss": 0.4, "images": 2, "bins": [{"sigma": [0.0, 0.5], "loss": 0.3}]}
    found = dict(
        scalars({"step": 2, "held_out_by_phase": {"one": measured, "two": {**measured, "loss": 9.0}}})
    )
    assert found == {
        "held_out one/loss": 0.4,
        "held_out one/sigma 0 to 0.5": 0.3,
        "held_out two/loss": 9.0,
        "held_out two/sigma 0 to 0.5": 0.3,
    }


def test_every_number_of_a_line_has_a_name_of_its_own_for_other_loggers():
    found = dict(scalars(FULL))
    assert found["parts/g"] == 2
    assert found["optimiser/d"] == 1e-4
    assert found["held_out/loss"] == 0.4
    assert found["held_out/sigma 0 to 0.5"] == 0.3
    assert "step" not in found
    assert "phase" not in found


def test_tensorboard_gets_every_step_and_drops_those_behind_the_checkpoint(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for done, steps in ((0, range(1, 6)), (3, range(4, 8))):
        with loggers(("tensorboard",), tmp_path, "", {}, done) as write:
            for step in steps:
                write({**FULL, "step": step, "loss": step + done})
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    found = [(event.step, event.value) for event in events.Scalars("loss")]
    assert found == [(1, 1), (2, 2), (3, 3), (4, 7), (5, 8), (6, 9), (7, 10)]
    assert "held_out/loss" in events.Tags()["scalars"]


def test_a_logger_that_is_not_installed_is_named_with_its_package(monkeypatch, job_of, tmp_path):
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "wandb" else real(name))
    check_loggers(["tensorboard"])
    with pytest.raises(UserError, match="names wandb, whose package is not installed: pip install wandb"):
        job_of("runtime.log=[tensorboard, wandb]")
    assert not (tmp_path / "run").exists()
