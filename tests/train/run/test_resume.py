"""A run that was stopped once or twice, at any step, ends bit for bit like one that was not."""

import functools
import json
import os
import signal
import time
from pathlib import Path

import pytest

import uhr.train.run.checkpoints.checkpoint as checkpoint_module
from uhr.train.run.checkpoints import kept
from uhr.train.run.checkpoints.checkpoint import folder_of, steps
from uhr.train.run.trainer import Trainer

STEPS = 6
LONG = [
    "--set",
    f"phases.main.steps={STEPS}",
    "--set",
    "phases.main.lr=0.01",
    "--set",
    "runtime.checkpoint_every=2",
]
TIMING = ("seconds", "wait", "samples_per_second", "tokens_per_second", "peak_memory")

VARIANTS = {
    "plain": [],
    # two micro-batches to a step, half precision, checkpointed blocks, an average beside the weights
    "everything": [
        "--set", "batch.micro=2", "--set", "runtime.precision=bfloat16", "--set", "ema=0.9",
        "--set", "runtime.gradient_checkpointing=true", "--set", "phases.main.warmup=6",
    ],
    # an estimate of the learning rate, a schedule that ends, and counters that are no tensors
    "prodigy": [
        "--set", "optimiser=prodigy", "--set", "phases.main.lr=1.0", "--set", "phases.main.schedule=cosine",
    ],
    "8 bits": ["--set", "optimiser.kind=adamw-8bit", "--set", "trainable.rank=32"],
}  # fmt: skip


def log_of(run: Path) -> list[dict]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMING} for line in lines]


def stored(run: Path) -> dict:
    """Hash of every file of the newest checkpoint: adapter, optimiser, average, generators."""
    newest = folder_of(run, steps(run)[-1])
    return json.loads((newest / "checkpoint.json").read_text())["files"]


def assert_same(run: Path, straight: Path) -> None:
    assert log_of(run) == log_of(straight)
    assert stored(run) == stored(straight)


@pytest.fixture(scope="module")
def straight_of(tmp_path_factory, small_set, tiny_flux, fast):
    """`straight_of(variant)`: a run without a stop, and the arguments that made it."""
    from uhr.cli import main

    @functools.cache
    def make(variant: str) -> tuple[Path, list[str]]:
        out = tmp_path_factory.mktemp("straight") / "run"
        arguments = ["--model", str(tiny_flux), "--data", str(small_set.folder), *LONG, *VARIANTS[variant]]
        arguments = [part for value in fast for part in ("--set", value)] + arguments
        assert main(["train", "run", "lora", *arguments, "--out", str(out)]) == 0
        # six steps are more than an epoch of four batches: the border is inside
        assert {line["epoch"] for line in log_of(out)} == {0, 1}
        return out, arguments

    return make


@pytest.fixture
def straight(straight_of):
    return straight_of("plain")


@pytest.fixture
def stop_at(monkeypatch):
    """`stop_at(3, signal.SIGINT)`: send the signal, as Ctrl-C does, during the third step."""
    wanted: dict[int, signal.Signals] = {}
    real = Trainer.step

    def step(self):
        number = wanted.pop(self.state.step + 1, None)
        if number is not None:
            os.kill(os.getpid(), number)
        return real(self)

    monkeypatch.setattr(Trainer, "step", step)
    return lambda at, number=signal.SIGINT: wanted.update({at: number})


@pytest.mark.parametrize(("variant", "stops"), [("plain", [3]), ("plain", [2, 5]), ("everything", [2, 5])])
def test_stopped_once_or_twice_it_ends_bit_for_bit_the_same(
    straight_of, variant, stops, stop_at, tmp_path, capsys
):
    from uhr.cli import main

    out, arguments = straight_of(variant)
    run = tmp_path / "run"
    command = ["train", "run", "lora", *arguments, "--out", str(run)]
    for stop in stops:
        stop_at(stop)
        assert main(command) == 130
        printed = capsys.readouterr()
        assert f"stopped after step {stop} of {STEPS}" in printed.out
        assert f"go on with: uhr train resume {run}\n" in printed.out
        assert steps(run)[-1] == stop
        command = ["train", "resume", str(run)]
    assert main(command) == 0
    assert_same(run, out)


def test_the_same_command_goes_on_and_sigterm_stops_a_run_too(straight, stop_at, tmp_path, capsys):
    from uhr.cli import main

    out, arguments = straight
    run = tmp_path / "run"
    command = ["train", "run", "lora", *arguments, "--out", str(run)]
    stop_at(3, signal.SIGTERM)
    assert main(command) == 130
    assert main(command) == 0
    assert f"{run} already contains this run at step 3: resuming" in capsys.readouterr().out
    assert_same(run, out)


@pytest.mark.parametrize("moment", ["step", "write", "rename", "prune"])
def test_a_run_that_ended_at_once_goes_on_from_its_last_checkpoint(straight, moment, tmp_path, monkeypatch):
    from uhr.cli import main

    class Death(BaseException):
        """Nothing in the program catches this, as nothing catches SIGKILL."""

    def die(*_):
        raise Death

    out, arguments = straight
    run = tmp_path / "run"
    real_step, real_write = Trainer.step, checkpoint_module.write_checkpoint
    with monkeypatch.context() as patched:
        if moment == "step":  # past the checkpoint of step 2: the log is ahead of it
            patched.setattr(Trainer, "step", lambda self: die() if self.state.step == 3 else real_step(self))
        elif moment == "write":  # in the middle of the second checkpoint, some files written

            def write(run, state, facts, metadata, ranks):
                if state.step == 4:
                    patched.setattr(checkpoint_module, "generators", die)
                return real_write(run, state, facts, metadata, ranks)

            patched.setattr(checkpoint_module, "write_checkpoint", write)
        elif moment == "rename":
            real_replace = os.replace
            patched.setattr(
                os, "replace", lambda a, b: die() if "step-00000004" in str(b) else real_replace(a, b)
            )
        else:  # the second checkpoint is complete, the first one is half removed
            patched.setattr(kept, "keep_newest", die)
        with pytest.raises(Death):
            main(["train", "run", "lora", *arguments, "--out", str(run)])
    assert main(["train", "resume", str(run)]) == 0
    assert_same(run, out)
    assert not list((run / "checkpoints").glob(".*"))


def test_after_sigkill_a_run_goes_on_from_its_last_checkpoint(straight, warm, short_texts, tmp_path):
    from uhr.cli import main

    out, arguments = straight
    run = tmp_path / "run"
    process = warm.start(["-c", short_texts.COMMAND, "train", "run", "lora", *arguments, "--out", run])
    while process.poll() is None and not folder_of(run, 2).exists():
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert steps(run) in ([2], [2, 4], [4, 6])
    assert main(["train", "resume", str(run)]) == 0
    assert_same(run, out)
