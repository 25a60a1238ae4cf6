"""A run of a VAE that was stopped, once or twice, ends bit for bit like one that was not."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from uhr.base.errors import UserError
from uhr.train.run.checkpoints.checkpoint import folder_of
from uhr.train.run.job import read_run, reopen
from uhr.train.run.trainer import Trainer, train

TIMING = ("seconds", "wait", "samples_per_second", "megapixels_per_second", "peak_memory")
ROWS = "{where: \"uri = 'a.png'\", every: 3}"
VARIANTS = {
    "plain": [],
    # two passes a step, autocast, checkpointed blocks, an average, a measure in between
    "everything": [
        "batch.micro=1",
        "runtime.precision=bfloat16",
        "runtime.gradient_checkpointing=true",
        "ema=0.9",
        f"validation.loss={ROWS}",
        "phases.main.data.0.where=uri <> 'a.png'",
    ],
}


def log_of(run: Path) -> list[dict]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMING} for line in lines]


def files_of(run: Path) -> dict:
    return json.loads((folder_of(run, 4) / "checkpoint.json").read_text())["files"]


def stopped_after(job, count: int) -> None:
    """Take some steps and save, as a run that a signal stops does, and let other draws happen."""
    trainer = Trainer(job)
    real, done = trainer.step, []

    def step():
        done.append(None)
        if len(done) == count:
            trainer.recipe = job.recipe.model_copy(
                update={"runtime": job.recipe.runtime.model_copy(update={"checkpoint_every": 1})}
            )
        if len(done) > count:
            raise KeyboardInterrupt
        return real()

    trainer.step = step
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    torch.rand(3)


@pytest.mark.parametrize(("variant", "stops"), [("plain", [2]), ("everything", [1, 2])])
def test_stopped_once_or_twice_it_ends_bit_for_bit_the_same(vae_job, variant, stops, tmp_path):
    straight = vae_job(*VARIANTS[variant], out=tmp_path / "straight")
    train(straight)
    job = vae_job(*VARIANTS[variant], out=tmp_path / "broken")
    for count in stops:
        stopped_after(job, count)
        job = reopen(tmp_path / "broken")
    assert job.done == sum(stops)
    train(job)
    assert log_of(tmp_path / "broken") == log_of(tmp_path / "straight")
    assert files_of(tmp_path / "broken") == files_of(tmp_path / "straight")


def test_files_of_lpips_may_move_and_may_not_change(vae_job, tmp_path):
    job = vae_job()
    stopped_after(job, 2)
    perceptual = read_run(job.out).recipe["phases"][0]["objective"]["perceptual"]
    moved = shutil.copy(perceptual["heads_file"], tmp_path / "moved.pth")
    change = f"phases.main.objective.perceptual.heads_file={moved}"
    assert reopen(job.out, [change]).done == 2
    with pytest.raises(UserError, match=r"phases.0.objective.wavelet \(0.2 -> 0.3\)"):
        reopen(job.out, ["phases.main.objective.wavelet=0.3"])
    heads = torch.load(moved, weights_only=True)
    torch.save({name: value + 1 for name, value in heads.items()}, moved)
    with pytest.raises(UserError, match="name the file that it began with"):
        reopen(job.out, [change])
