"""The adapter of every checkpoint is kept; whole checkpoints are not."""

import json
import shutil

import pytest
from PIL import Image
from safetensors.torch import load_file

from uhr.base.errors import UserError
from uhr.train.run.checkpoints import checkpoint, kept
from uhr.train.run.exports.export import export
from uhr.train.run.trainer import train

EVERY = ["phases.main.steps=5", "phases.main.lr=0.05", "runtime.checkpoint_every=1"]


@pytest.fixture(scope="module")
def runs(small_set, tiny_flux, fast, tmp_path_factory):
    """Two runs with the same steps, of which the first has all of its checkpoints."""
    from uhr.train.recipes import resolve
    from uhr.train.run.job import start

    folder = tmp_path_factory.mktemp("kept")
    for name, count in (("all", 9), ("few", 2)):
        sets = [*fast, *EVERY, "ema=0.9", "sampling.guidance=1", f"runtime.keep_checkpoints={count}"]
        train(start(resolve("lora", None, sets), str(tiny_flux), [small_set.folder], folder / name))
    return folder / "all", folder / "few"


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_every_step_has_its_adapter_and_the_newest_have_all(runs):
    whole, few = runs
    assert checkpoint.steps(whole) == [1, 2, 3, 4, 5]
    assert checkpoint.steps(few) == [4, 5]
    assert names(few / "weights") == ["step-00000001", "step-00000002", "step-00000003"]
    for step in (1, 2, 3):
        folder, info = kept.find(few, step)
        assert names(folder) == sorted(["checkpoint.json", *info.files])
        assert sorted(info.files) == ["adapter.safetensors", "ema.safetensors"]
        for file in info.files:
            one, two = load_file(folder / file), load_file(checkpoint.folder_of(whole, step) / file)
            assert one.keys() == two.keys()
            assert all(one[name].equal(two[name]) for name in one)
    assert kept.find(few, 5)[0] == checkpoint.folder_of(few, 5)


@pytest.mark.parametrize("weights", ["trained", "ema"])
def test_any_step_is_exported_as_from_its_checkpoint(runs, tmp_path, weights):
    one, two = (export(run, tmp_path / run.name, 2, weights)[0] for run in runs)
    file = "pytorch_lora_weights.safetensors"
    assert (one / file).read_bytes() == (two / file).read_bytes()


def test_an_adapter_is_named_by_run_and_step(runs, tiny_flux, uhr, tmp_path):
    few = runs[1]
    call = ("sample", "euler", "--model", tiny_flux, "--prompt", "a", "--size", "96x64", "--steps", 1)
    code, _, err = uhr("train", "export", few, "--step", 2, "--out", tmp_path / "two")
    assert code == 0, err
    for name, adapter in (("a", f"{few}@2=0.7"), ("b", f"{tmp_path / 'two'}=0.7"), ("c", f"{few}@5=0.7")):
        code, _, err = uhr(*call, "--adapter", adapter, "--out", tmp_path / f"{name}.png")
        assert code == 0, err
    pixels = {name: Image.open(tmp_path / f"{name}.png").tobytes() for name in "abc"}
    assert pixels["a"] == pixels["b"] != pixels["c"]
    # a kept one and that of a checkpoint say how they are sampled, as the export does
    for name in ("a", "b", "c"):
        assert json.loads((tmp_path / f"{name}.json").read_text())["guidance"] == 1
    code, _, err = uhr(*call, "--adapter", f"{few}@9", "--out", tmp_path / "d.png")
    assert (code, "has no checkpoint of step 9: it has: 1, 2, 3, 4, 5" in err) == (1, True)
    code, _, err = uhr(*call, "--adapter", few, "--out", tmp_path / "d.png")
    assert (code, f"is a training run: name a step of it, {few}@5" in err) == (1, True)
    code, _, err = uhr("train", "export", few, "--step", 9, "--out", tmp_path / "nine")
    assert (code, "it has: 1, 2, 3, 4, 5" in err) == (1, True)


def test_a_kept_adapter_that_is_damaged_is_refused(runs, tmp_path):
    run = shutil.copytree(runs[1], tmp_path / "run")
    file = run / "weights" / "step-00000001" / "adapter.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"adapter.safetensors is damaged"):
        kept.find(run, 1)


def test_a_killed_removal_is_finished_by_the_next_one(runs, tmp_path):
    run = shutil.copytree(runs[0], tmp_path / "run")
    kept._keep(run, checkpoint.folder_of(run, 1), 1)
    (run / "weights" / ".step-00000002.abc.tmp").mkdir()
    kept.clear_leftovers(run)
    (checkpoint.folder_of(run, 2) / "checkpoint.json").unlink()
    kept.keep_newest(run, 2)
    assert names(run / "weights") == ["step-00000001", "step-00000003"]
    assert checkpoint.steps(run) == [4, 5]


def test_a_whole_backbone_is_not_kept(job_of):
    job = job_of("phases.main.steps=3", "runtime.checkpoint_every=1", "runtime.keep_checkpoints=1",
                 "trainable={kind: backbone}", "phases.main.lr=1e-4")  # fmt: skip
    train(job)
    assert checkpoint.steps(job.out) == [3]
    assert not (job.out / "weights").exists()
