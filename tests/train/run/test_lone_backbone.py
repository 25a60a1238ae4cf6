"""A backbone alone, with a base for the rest, and one of fewer blocks: encoded with, trained on, resumed."""

import json
import shutil

import pytest
import torch
from diffusers import FluxTransformer2DModel
from safetensors.torch import load_file

from uhr.cli import main
from uhr.models import zoo
from uhr.train.encode.stored.encoded import read_encoded

FILE = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def run(fast, small_set, tmp_path, capsys):
    """`run(*arguments, out=...)`: train for two steps; (exit code, what stderr says)."""

    def call(*arguments, out):
        sets = [
            word
            for value in (*fast, "phases.main.steps=2", "runtime.device=cpu")
            for word in ("--set", value)
        ]
        base = ("train", "run", "lora", "--data", small_set.folder, "--out", out)
        return main([str(word) for word in (*base, *arguments, *sets)]), capsys.readouterr().err

    return call


def adapter(out):
    return load_file(next((out / "checkpoints").iterdir()) / "adapter.safetensors")


def same(one, other):
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture
def file(tiny_flux, tmp_path):
    return shutil.copy(tiny_flux / "transformer" / FILE, tmp_path / "flux.sft")


@pytest.fixture
def lite(tiny_flux, tmp_path):
    """A model folder with one double block in place of two, and its backbone's file."""
    folder = shutil.copytree(tiny_flux, tmp_path / "lite")
    config = json.loads((tiny_flux / "transformer" / "config.json").read_text())
    shutil.rmtree(folder / "transformer")
    torch.manual_seed(0)
    FluxTransformer2DModel.from_config({**config, "num_layers": 1}).save_pretrained(folder / "transformer")
    return folder, shutil.copy(folder / "transformer" / FILE, tmp_path / "lite.safetensors")


def test_a_lone_file_trains_as_its_model_does_and_goes_on_from_wherever_both_are(
    run, file, tiny_flux, tmp_path, capsys
):
    assert run("--model", tiny_flux, out=tmp_path / "whole")[0] == 0
    base = shutil.copytree(tiny_flux, tmp_path / "base")
    assert run("--model", file, "--base", base, out=tmp_path / "lone")[0] == 0
    assert same(adapter(tmp_path / "whole"), adapter(tmp_path / "lone"))
    kept = json.loads((tmp_path / "lone" / "run.json").read_text())["model"]
    assert (kept["path"], kept["base"], kept["name"]) == (str(file), str(base), "flux.sft")

    resume = ["train", "resume", str(tmp_path / "lone"), "--set", "phases.main.steps=3"]
    moved = base.rename(tmp_path / "moved base")
    assert main(resume) == 1
    assert f"{base}, the base of {tmp_path / 'lone'}, does not exist: name its new path: --base PATH" in (
        capsys.readouterr().err
    )
    file.rename(tmp_path / "moved.sft")
    assert main([*resume, "--base", str(moved)]) == 1
    assert "does not exist: name its new path: --model PATH" in capsys.readouterr().err
    assert main([*resume, "--model", str(tmp_path / "moved.sft"), "--base", str(moved)]) == 0
    assert main(["train", "export", str(tmp_path / "lone"), "--out", str(tmp_path / "adapter")]) == 0
    printed = capsys.readouterr().out
    assert f"--model {tmp_path / 'moved.sft'} --base '{moved}' --adapter" in printed


def test_a_transformers_own_folder_of_shards_trains_as_its_model_does(run, tiny_flux, tmp_path):
    shards = tmp_path / "shards"
    zoo.load_transformer(tiny_flux).save_pretrained(shards, max_shard_size="300KB")
    assert len(list(shards.glob("*-of-*"))) > 2
    assert run("--model", tiny_flux, out=tmp_path / "whole")[0] == 0
    code, error = run("--model", shards, out=tmp_path / "alone")
    assert code == 1
    assert "is the backbone of tiny-flux1 alone: say where the rest is: --base FOLDER" in error
    assert run("--model", shards, "--base", tiny_flux, out=tmp_path / "alone")[0] == 0
    assert same(adapter(tmp_path / "whole"), adapter(tmp_path / "alone"))


def test_fewer_blocks_train_the_same_from_a_folder_and_from_a_file(run, lite, tiny_flux, tmp_path):
    folder, file = lite
    for arguments in (("--model", folder), ("--model", file, "--base", tiny_flux)):
        code, error = run(*arguments, out=tmp_path / "run")
        assert code == 1
        assert error.strip().endswith("name it: --spec NAME")
        assert "num_layers=1" in error
    assert run("--model", folder, "--spec", "tiny-flux1", out=tmp_path / "folder")[0] == 0
    assert run("--model", file, "--base", tiny_flux, "--spec", "tiny-flux1", out=tmp_path / "file")[0] == 0
    assert same(adapter(tmp_path / "folder"), adapter(tmp_path / "file"))
    assert not any(
        "transformer_blocks.1." in name for name in adapter(tmp_path / "file") if "single" not in name
    )
    assert main(["train", "resume", str(tmp_path / "file"), "--set", "phases.main.steps=3"]) == 0
    assert json.loads((tmp_path / "file" / "run.json").read_text())["model"]["spec_given"] is True


def test_a_file_of_fewer_blocks_is_the_same_backbone_as_its_folder_for_every_reader(lite, tiny_flux):
    folder, file = lite
    whole = zoo.open_model(folder, "tiny-flux1")
    opened = zoo.open_model(file, "tiny-flux1", base=tiny_flux)
    assert same(zoo.load_transformer(opened).state_dict(), zoo.load_transformer(whole).state_dict())
    from uhr.models.estimate.shapes import empty_components
    from uhr.models.loading.model import empty_transformer

    for empty in (empty_transformer(opened), empty_components(opened)["transformer"]):
        assert empty.state_dict().keys() == zoo.load_transformer(whole).state_dict().keys()


def test_a_base_of_another_shape_than_the_file_is_refused_in_spite_of_the_spec(file, tiny_flux, tmp_path):
    from uhr.base.errors import UserError

    base = shutil.copytree(tiny_flux, tmp_path / "base")
    config = base / "transformer" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "guidance_embeds": False}))
    with pytest.raises(
        UserError, match=r"has guidance_embeds True, and .*base has False: name weights and a base"
    ):
        zoo.open_model(file, "tiny-flux1", base=base)


def test_encoding_by_a_lone_file_and_its_base_is_encoding_by_the_model(
    small_set, tiny_flux, file, tmp_path, capsys
):
    arguments = ["train", "encode", str(small_set.manifest.path), "--device", "cpu", "--set", "aspects=[1/1]"]
    assert main([*arguments, "--out", str(tmp_path / "a"), "--model", str(tiny_flux)]) == 0
    assert main([*arguments, "--out", str(tmp_path / "b"), "--model", str(file)]) == 1
    assert "say where the rest is: --base FOLDER" in capsys.readouterr().err
    alone = ["--model", str(file), "--base", str(tiny_flux)]
    assert main([*arguments, "--out", str(tmp_path / "b"), *alone]) == 0
    assert f"--model {file} --base '{tiny_flux}' --data" in capsys.readouterr().out
    one, other = (read_encoded(tmp_path / name) for name in "ab")
    assert one.id == other.id
    assert (other.model.path, other.model.base) == (str(file), str(tiny_flux))
    # the same command again, and as the model: it is there already
    for model in (alone, ["--model", str(tiny_flux)]):
        assert main([*arguments, "--out", str(tmp_path / "b"), *model]) == 0
        assert "is encoded already" in capsys.readouterr().out


def test_a_folder_that_was_encoded_as_another_spec_is_not_taken_for_this_one(
    small_set, tiny_flux, tmp_path, capsys
):
    arguments = [
        "train",
        "encode",
        str(small_set.manifest.path),
        "--device",
        "cpu",
        "--model",
        str(tiny_flux),
    ]
    arguments += ["--set", "aspects=[1/1]", "--set", "resolution=128", "--out", str(tmp_path / "a")]
    assert main(arguments) == 0
    assert main([*arguments, "--spec", "flux1-schnell"]) == 1
    assert "already contains encoded data of another spec" in capsys.readouterr().err


def test_a_plan_of_a_lone_file_counts_its_own_blocks(lite, tiny_flux, capsys):
    def parameters(*arguments):
        assert main(["train", "plan", "lora", "--json", *map(str, arguments)]) == 0
        return json.loads(capsys.readouterr().out)["parameters"]

    folder, file = lite
    whole = parameters("--model", tiny_flux)
    fewer = parameters("--model", folder, "--spec", "tiny-flux1")
    assert parameters("--model", file, "--base", tiny_flux, "--spec", "tiny-flux1") == fewer
    assert fewer["base"] < whole["base"]


def test_a_device_that_is_not_here_is_named_as_the_recipe_has_it(
    small_set, tiny_flux, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    arguments = ["train", "run", "lora", "--model", str(tiny_flux), "--data", str(small_set.folder)]
    assert main([*arguments, "--out", str(tmp_path / "run"), "--set", "runtime.device=cuda"]) == 1
    assert "torch finds no GPU: --set runtime.device=cpu" in capsys.readouterr().err
    arguments = [
        "train",
        "encode",
        str(small_set.manifest.path),
        "--model",
        str(tiny_flux),
        "--device",
        "cuda",
    ]
    assert main([*arguments, "--out", str(tmp_path / "encoded")]) == 1
    assert "torch finds no GPU: --device cpu" in capsys.readouterr().err
