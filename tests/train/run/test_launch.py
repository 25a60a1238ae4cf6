"""One command, three launchers: local processes, torchrun's environment, and Ray."""

import json
import os
import socket
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from uhr.cli import main
from uhr.train.run import launch, on_ray
from uhr.train.run.checkpoints import checkpoint

SETS = ["phases.main.steps=3", "phases.main.lr=0.01", "runtime.checkpoint_every=2",
        "batch.size=2"]  # fmt: skip


@pytest.fixture(scope="module")
def arguments(small_set, tiny_flux, fast):
    sets = [part for value in (*fast, *SETS) for part in ("--set", value)]
    return ["train", "run", "lora", "--model", str(tiny_flux), "--data", str(small_set.folder), *sets]


@pytest.fixture(scope="module")
def one(arguments, tmp_path_factory):
    """The run of one process."""
    out = tmp_path_factory.mktemp("one") / "run"
    assert main([*arguments, "--out", str(out)]) == 0
    return out


@pytest.fixture
def warm_ranks(warm, short_texts, monkeypatch):
    """Local processes of a run that start from the server of `warm`; their list."""
    started = []

    def start(out, environment):
        command = ["-c", short_texts.COMMAND, "train", "resume", str(out)]
        started.append(warm.start(command, env={**os.environ, **environment}, new_session=True))
        return started[-1]

    monkeypatch.setattr(launch, "_start", start)
    return started


@pytest.fixture
def killed_at_step_3(tmp_path, monkeypatch):
    """The objective of a run whose process 1 kills itself in its third step, as often as `times` says."""
    (tmp_path / "killing.py").write_text(
        """
import os
import signal
from pathlib import Path
from uhr.train.objectives.flow import Flow

class KillsProcess1(Flow):
    folder: str
    times: int

    def __call__(self, denoiser, batch, draws):
        place = Path(self.folder)
        if draws.step == 2 and os.environ["RANK"] == "1" and len(list(place.iterdir())) < self.times:
            (place / str(os.getpid())).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(denoiser, batch, draws)
"""
    )
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "kills").mkdir()

    def objective(times):
        value = {"kind": "killing:KillsProcess1", "folder": str(tmp_path / "kills"), "times": times}
        return ["--set", f"phases.main.objective={json.dumps(value)}"]

    yield objective
    sys.modules.pop("killing", None)


def losses(run):
    return [json.loads(line)["loss"] for line in (run / "log.jsonl").read_text().splitlines()]


def adapter(run):
    return load_file(checkpoint.folder_of(run, 3) / "adapter.safetensors")


def test_local_processes_train_and_only_the_first_prints(arguments, one, warm_ranks, tmp_path, capsys):
    assert main([*arguments, "--out", str(tmp_path / "two"), "--workers", "2"]) == 0
    assert losses(tmp_path / "two") == pytest.approx(losses(one), rel=1e-5)
    of_one, of_two = adapter(one), adapter(tmp_path / "two")
    assert {n: tensor.shape for n, tensor in of_one.items()} == {n: t.shape for n, t in of_two.items()}
    first, second = warm_ranks
    assert "batch: 2 = 2 processes x 1, in 1 pass of 1" in first.stdout()
    assert "3 steps done, mean loss" in first.stdout()
    assert "train: 3/3 steps" in first.stderr()
    assert second.stdout() + second.stderr() == ""
    capsys.readouterr()
    # finished: nothing is started
    assert main(["train", "resume", str(tmp_path / "two"), "--workers", "2"]) == 0
    assert "is finished: all 3 steps are done" in capsys.readouterr().out
    assert len(warm_ranks) == 2


def test_a_batch_that_processes_cannot_share_equally_is_refused_before_anything_is_written(
    arguments, tmp_path, capsys
):
    command = [*arguments, "--set", "batch.size=6", "--workers", "4", "--out", str(tmp_path / "run")]
    assert main(command) == 1
    error = capsys.readouterr().err
    assert "batch.size is 6 in all, and 4 processes cannot share it equally: take 3 or 6 processes" in error
    assert error.rstrip().endswith("or --set batch.size=4 or 8")
    assert not (tmp_path / "run").exists()


def test_a_process_that_is_killed_ends_the_others_with_its_name_after_the_restarts(
    arguments, warm_ranks, tmp_path, capsys, killed_at_step_3
):
    out = ["--out", str(tmp_path / "run"), "--workers", "2", "--set", "runtime.restarts=1"]
    assert main([*arguments, *killed_at_step_3(9), *out]) == 1
    error = capsys.readouterr().err
    assert error.count("process 1 of 2 was killed (SIGKILL") == 2
    assert error.count(": restart 1 of 1 at step 2") == 1
    assert "process 1 of 2 was killed (SIGKILL" in error
    assert f"`uhr train resume {tmp_path / 'run'}` continues" in error
    assert [process.poll() for process in warm_ranks] == [1, -9, 1, -9]
    assert "process 0 of 2: the other processes are lost" in warm_ranks[0].stderr()


def test_a_process_that_is_killed_once_costs_no_step(
    arguments, one, warm_ranks, tmp_path, capsys, killed_at_step_3
):
    out = ["--out", str(tmp_path / "run"), "--workers", "2"]
    assert main([*arguments, *killed_at_step_3(1), *out]) == 0
    error = capsys.readouterr().err
    assert ": restart 1 of 2 at step 2" in error
    assert error.count("\n") == 1
    assert [process.poll() for process in warm_ranks] == [1, -9, 0, 0]
    assert losses(tmp_path / "run") == pytest.approx(losses(one), rel=1e-5)
    for name, tensor in adapter(one).items():
        torch.testing.assert_close(adapter(tmp_path / "run")[name], tensor, rtol=1e-5, atol=1e-5)


def test_an_error_of_a_process_is_not_repeated(arguments, warm_ranks, tmp_path, capsys):
    nan = ["--set", "phases.main.lr=1e30", "--set", "clip=1e30", "--set", "phases.main.steps=9"]
    assert main([*arguments, *nan, "--out", str(tmp_path / "run"), "--workers", "2"]) == 1
    assert "restart" not in capsys.readouterr().err
    assert len(warm_ranks) == 2
    assert "is not finite" in warm_ranks[0].stderr()


def test_the_same_command_under_torchrun(arguments, warm, short_texts, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # as after a restart by torchrun, whose store still has the addresses of the processes before
    restarted = {"TORCHELASTIC_RESTART_COUNT": "1"}
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), **restarted}
    command = ["-c", short_texts.COMMAND, *arguments, "--out", str(tmp_path / "run")]
    started = [
        warm.start(command, env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in (0, 1)
    ]
    assert [process.wait(120) for process in started] == [0, 0], [p.stderr() for p in started]
    assert started[1].stdout() + started[1].stderr() == ""
    assert "3 steps done" in started[0].stdout()
    assert len(losses(tmp_path / "run")) == 3


@pytest.fixture
def short_texts_on_ray(short_texts, monkeypatch):
    """Ray's workers read short texts, as this process does. What they do is sent to them by value."""
    file = short_texts.__file__
    code = Path(file).read_text()

    def worker(config):
        from uhr.train.run import on_ray

        found = {"__name__": "short_texts", "__file__": file}
        exec(code, found)
        with found["text_length"]():
            on_ray._worker(config)

    monkeypatch.setattr(on_ray, "_worker", worker)


@pytest.mark.ray
@pytest.mark.usefixtures("short_texts_on_ray")
def test_ray_trains_with_two_workers_of_which_one_is_killed(
    arguments, one, tmp_path, capsys, killed_at_step_3
):
    command = [*arguments, *killed_at_step_3(1), "--out", str(tmp_path / "ray")]
    code = main([*command, "--launcher", "ray", "--workers", "2"])
    out, error = capsys.readouterr()
    assert code == 0, error
    assert "a Ray worker was killed: restart 1 of 2 at step 2" in error
    assert losses(tmp_path / "ray") == pytest.approx(losses(one), rel=1e-5)
    assert "3 steps done, mean loss" in out
    left = sorted(path.name for path in (tmp_path / "ray").iterdir())
    assert left == ["checkpoints", "log.jsonl", "run.json"]
