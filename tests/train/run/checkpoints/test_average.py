"""The averaged adapter: of a short run an average of its steps, not of what it began with."""

import json
import math

import pytest
import torch
from diffusers.training_utils import EMAModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from uhr.base.files import sha256_file
from uhr.models.adapters.files import read
from uhr.models.adapters.formats.keys import FLUX1
from uhr.train.run.checkpoints.average import MARK, decay_at, describe_average, full_from, read_average
from uhr.train.run.checkpoints.checkpoint import FILE, folder_of
from uhr.train.run.checkpoints.state import TrainState
from uhr.train.run.estimate.estimate import estimate
from uhr.train.run.exports.export import export
from uhr.train.run.job import reopen
from uhr.train.run.trainer import Trainer, train


def state_of(weight):
    return TrainState(
        0, {"b": weight}, torch.optim.AdamW([weight]), {"b": weight.detach().clone()}, {}, "adapter"
    )


def share(update, updates):
    """Of the value at one update (counted from 0) in the average after several, while the warm-up lasts: the
    product of the decays telescopes."""
    return (math.comb(update + 9, 8) if update else 10) / math.comb(updates + 9, 9)


@pytest.mark.parametrize("updates", [1, 2, 7, 50])
def test_the_shares_of_all_updates_are_one_and_nothing_is_left_of_the_start(updates):
    assert sum(share(k, updates) for k in range(updates)) == pytest.approx(1, abs=1e-12)
    for seen in range(updates):
        weight = torch.nn.Parameter(torch.full((1,), 100.0))
        state = state_of(weight)
        for k in range(updates):
            weight.data.fill_(float(k == seen))
            state.step += 1
            state.update_ema(0.999)
        assert state.ema["b"].item() == pytest.approx(share(seen, updates), rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("decay", [0.05, 0.5, 0.9, 0.99, 0.999])
def test_the_decay_is_that_of_diffusers_at_every_step(decay):
    theirs = EMAModel([torch.zeros(1)], decay=decay)
    for step in range(1, 12_000):
        assert decay_at(step, decay) == theirs.get_decay(step)


@pytest.mark.parametrize("decay", [0.05, 0.5, 0.9, 0.99, 0.999])
def test_the_first_step_with_the_full_decay(decay):
    first = full_from(decay)
    assert decay_at(first, decay) == decay
    assert decay_at(first - 1, decay) < decay


def test_it_is_described_by_what_is_reached():
    assert describe_average(0.5, 100) == "decay 0.5 from step 9 on, less before"
    assert (
        describe_average(0.999, 50) == "decay 0.8475 at the last of 50 steps; 0.999 is reached at step 8,991"
    )


SETS = ["ema=0.999", "phases.main.lr=0.02", "trainable.alpha=2", "runtime.checkpoint_every=100"]


@pytest.fixture
def short(job_of):
    """Six steps, and B of one module after each."""
    job = job_of("phases.main.steps=6", *SETS)
    trainer = Trainer(job)
    name = next(name for name in trainer.state.parameters if "lora_B" in name)
    trajectory = []
    for _ in range(6):
        trainer.step()
        trajectory.append(trainer.state.parameters[name].detach().clone())
    trainer.save({})
    return job, name, trajectory


def test_the_exported_average_of_a_short_run_is_that_of_its_steps(short, tmp_path):
    job, name, trajectory = short
    folder, _ = export(job.out, tmp_path / "adapter", weights="ema")
    found = load_file(folder / "pytorch_lora_weights.safetensors")[f"transformer.{name}"]
    expected = sum(share(k, 6) * value for k, value in enumerate(trajectory))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert 0.5 < (found.norm() / trajectory[-1].norm()).item() < 1
    card = (folder / "README.md").read_text()
    assert "| recipe | lora, averaged over steps (decay 0.4 at the last of 6 steps; 0.999 is reached" in card


def without_warm_up(run, step, decay, trajectory, name):
    """Make a checkpoint's average what an earlier version wrote: the full decay from the start, unmarked."""
    folder = folder_of(run, step)
    average = load_file(folder / "ema.safetensors")
    b = torch.zeros_like(trajectory[0])
    for value in trajectory:
        b = decay * b + (1 - decay) * value
    average[name] = b
    save_file(average, folder / "ema.safetensors")
    info = json.loads((folder / FILE).read_text())
    file = folder / "ema.safetensors"
    info["files"]["ema.safetensors"] = {"bytes": file.stat().st_size, "sha256": sha256_file(file)}
    (folder / FILE).write_text(json.dumps(info))


def test_an_average_of_an_earlier_version_is_exported_and_resumed_without_its_zeros(short, tmp_path):
    job, name, trajectory = short
    without_warm_up(job.out, 6, 0.999, trajectory, name)
    raw = load_file(folder_of(job.out, 6) / "ema.safetensors")
    weights = [0.999 ** (5 - k) * 0.001 for k in range(6)]
    expected = sum(w * value for w, value in zip(weights, trajectory, strict=True)) / sum(weights)
    folder, _ = export(job.out, tmp_path / "adapter", weights="ema")
    found = load_file(folder / "pytorch_lora_weights.safetensors")[f"transformer.{name}"]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)
    resumed = Trainer(reopen(job.out, ["phases.main.steps=8"], None, []))
    torch.testing.assert_close(resumed.state.ema[name], expected, rtol=1e-4, atol=1e-7)
    a = name.replace("lora_B", "lora_A")
    assert torch.equal(resumed.state.ema[a], raw[a])
    resumed.step()
    resumed.save({})
    again = folder_of(job.out, 7) / "ema.safetensors"
    assert torch.equal(read_average(again, 0.999, 7)[name], resumed.state.ema[name])


def test_a_checkpoints_own_files_say_their_strength_and_how_they_were_averaged(short):
    job, _, _ = short
    folder = folder_of(job.out, 6)
    for file in ("adapter", "ema"):
        found = read(folder / f"{file}.safetensors", FLUX1)
        assert {part.scale for part in found.lora.values()} == {2 / 4}
        assert found.notes == ()
    with safe_open(folder / "ema.safetensors", "pt") as opened:
        assert opened.metadata()[MARK] == "warm-up"


def test_plan_and_run_say_where_the_average_ends(job_of, capsys):
    job = job_of("phases.main.steps=2", *SETS)
    assert estimate(job.recipe, "flux1-dev", [])["average"].startswith("decay 0.1818 at the last of 2 steps")
    train(job)
    assert (
        "averaged adapter: decay 0.1818 at the last of 2 steps; 0.999 is reached" in capsys.readouterr().out
    )
