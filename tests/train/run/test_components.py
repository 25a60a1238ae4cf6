"""Singular components in a run: checkpoint, resume, average and export."""

import pytest
import torch
from safetensors.torch import load_file

from uhr.train.run.checkpoints import checkpoint
from uhr.train.run.checkpoints.checkpoint import folder_of
from uhr.train.run.exports.export import export
from uhr.train.run.job import reopen, start
from uhr.train.run.trainer import Trainer, train

SETS = [
    "runtime.precision=float32",
    "runtime.gradient_checkpointing=false",
    "batch.size=3",
    "batch.micro=3",
    "ema=0.5",
    "phases.main.steps=4",
    "phases.main.lr=0.02",
    "runtime.checkpoint_every=2",
]


@pytest.fixture(params=["minor", "major"])
def job(request, small_set, tiny_flux, tmp_path):
    from uhr.train.recipes import resolve

    part = (
        f"trainable={{kind: singular-components, rank: 4, targets: attention, components: {request.param}}}"
    )
    recipe = resolve("lora", None, [part, *SETS])
    return lambda name: start(recipe, str(tiny_flux), [small_set.folder], tmp_path / name)


def test_a_stopped_run_ends_bit_for_bit_like_one_that_was_not(job):
    straight, broken = job("straight"), job("broken")
    train(straight)
    trainer = Trainer(broken)
    trainer.step()
    trainer.step()
    trainer.save({})
    train(reopen(broken.out))
    files = [checkpoint.read_info(folder_of(run.out, 4)).files for run in (straight, broken)]
    assert files[0] == files[1]
    stored = load_file(folder_of(straight.out, 4) / "adapter.safetensors")
    starts = {name for name in stored if name.endswith(".start")}
    assert len(starts) == len(stored) // 2 == 2 * 14
    # the starts are constants: neither optimiser nor average has them
    for file in ("optimiser", "ema"):
        assert not [
            name for name in load_file(folder_of(straight.out, 4) / f"{file}.safetensors") if "start" in name
        ]


@pytest.mark.parametrize("weights", ["trained", "ema"])
def test_the_export_is_the_difference_of_the_chosen_factors_and_their_starts(job, tmp_path, weights):
    run = job("run").out
    train(reopen(run))
    folder, _ = export(run, tmp_path / weights, None, weights)
    stored = load_file(folder_of(run, 4) / "adapter.safetensors")
    chosen = stored if weights == "trained" else load_file(folder_of(run, 4) / "ema.safetensors")
    exported = load_file(folder / "pytorch_lora_weights.safetensors")
    paths = {name.removesuffix(".lora_A.weight") for name in stored if name.endswith("lora_A.weight")}
    assert len(exported) == 2 * len(paths)
    largest = 0.0
    for path in paths:
        a, b = (exported[f"transformer.{path}.lora_{half}.weight"] for half in "AB")
        start = stored[f"{path}.lora_B.start"] @ stored[f"{path}.lora_A.start"]
        expected = chosen[f"{path}.lora_B.weight"] @ chosen[f"{path}.lora_A.weight"] - start
        assert a.shape[0] == 8
        torch.testing.assert_close(b @ a, expected, rtol=1e-4, atol=1e-5)
        largest = max(largest, expected.abs().max().item())
    assert largest > 1e-3
