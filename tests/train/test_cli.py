"""The commands as people type them, one after the other."""

import json
import os
import signal

import pytest
import torch

from uhr.base.errors import UserError
from uhr.cli import main
from uhr.train.encode.config import EncodeConfig
from uhr.train.recipes import NAMES
from uhr.train.run.trainer import Trainer


def answer(capsys, *arguments: object):
    assert main([*map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.usefixtures("full_texts")
def test_from_a_manifest_to_an_image_that_the_adapter_changed(
    small_set, tiny_flux, fast, tmp_path, capsys, monkeypatch
):
    from diffusers import FluxPipeline

    data, run, adapter = (tmp_path / name for name in ("encoded set", "a run", "an adapter"))
    encode = ["train", "encode", str(small_set.manifest.path), "--model", str(tiny_flux), "--out", str(data)]
    assert main([*encode, "--device", "cpu"]) == 0
    shown_text = capsys.readouterr().out
    assert "9 of 10 images encoded at 128 px" in shown_text
    assert "left out, too small: 1 (j-small.png: 60x60 px" in shown_text
    cut = "1 captions are cut: longer than 512 tokens of t5; texts/*.parquet has the number of each"
    assert shown_text.count(cut) == 1
    assert (
        "1 captions are longer than the 77 tokens of clip, which is no loss where t5 reads them" in shown_text
    )
    assert f"next: uhr train run lora --model '{tiny_flux}' --data '{data}' --out RUN" in shown_text
    assert main(encode) == 0
    assert "is encoded already" in capsys.readouterr().out

    sets = [
        part for value in [*fast, "phases.main.steps=6", "phases.main.lr=0.05"] for part in ("--set", value)
    ]
    real = Trainer.step

    def press_ctrl_c(self):
        if self.state.step == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return real(self)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "step", press_ctrl_c)
        arguments = [
            "train",
            "run",
            "lora",
            "--model",
            str(tiny_flux),
            "--data",
            str(data),
            "--out",
            str(run),
            *sets,
        ]
        assert main(arguments) == 130
    capsys.readouterr()
    assert main(["train", "resume", str(run)]) == 0
    assert f"next: uhr train export '{run}' --out EXPORT" in capsys.readouterr().out
    assert main(["train", "resume", str(run)]) == 0
    assert "is finished: all 6 steps are done" in capsys.readouterr().out
    assert [line["step"] for line in answer(capsys, "train", "log", run)] == [1, 2, 3, 4, 5, 6]
    assert main(["train", "log", str(run)]) == 0
    assert capsys.readouterr().out.startswith("steps")
    assert answer(capsys, "train", "export", run, "--out", adapter)["step"] == 6

    pipeline = FluxPipeline.from_pretrained(tiny_flux)

    def image():
        call = pipeline(
            "a red square", height=128, width=128, num_inference_steps=2, output_type="pt",
            generator=torch.Generator().manual_seed(0),
        )  # fmt: skip
        return call.images

    without = image()
    pipeline.load_lora_weights(adapter)
    assert (image() - without).abs().max() > 0.01


def test_recipes_are_listed_and_shown_with_sources(capsys):
    assert [row["name"] for row in answer(capsys, "train", "recipes")] == list(NAMES)
    rows = {row["path"]: row for row in answer(capsys, "train", "show", "lora", "--set", "seed=9")}
    assert rows["seed"] == {"path": "seed", "value": 9, "source": "set by you"}
    assert rows["phases.0.lr"]["value"] == 1e-4
    assert "diffusers" in rows["phases.0.lr"]["source"]
    assert main(["train", "recipes"]) == 0
    assert main(["train", "show", "lora"]) == 0
    assert "guidance.scale" in capsys.readouterr().out


def test_a_plan_is_printed_without_weights(capsys, small_set, tiny_flux):
    assert main(["train", "plan", "lora", "--model", "flux1-dev"]) == 0
    assert "18,677,760" in capsys.readouterr().out
    plan = answer(capsys, "train", "plan", "lora", "--model", tiny_flux, "--data", small_set.folder)
    assert plan["phases"][0]["batches_per_epoch"] == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show"], "no recipe is named: name one (lora, lora-flux2, gca-stage1, "),
        (["show", "loar"], "unknown recipe 'loar': did you mean lora?"),
        (["show", "lora", "--set", "phases.main.lr"], "--set phases.main.lr: write it as path=value"),
        (
            ["show", "lora", "--set", "trainable.rnak=3"],
            "trainable part 'lora': unknown key 'rnak': did you mean rank",
        ),
        (["show", "lora", "--set", "phases.main.where=x"], "did you mean phases.0.data.0.where?"),
        (["show", "ultraflux", "--set", "phases.1.where=x"], "did you mean phases.1.data.0.where?"),
        (["show", "lora", "--set", "phases.0.batch=1"], "unknown key 'phases.0.batch': did you mean batch?"),
        (["show", "lora", "--set", "lr=1"], "unknown key 'lr': did you mean phases.0.lr?"),
        (
            ["show", "lora", "--set", "phases.main.data.1.where=x"],
            "entry '1' does not exist: entries are 0 to 0",
        ),
        (["resume", "nowhere"], "nowhere is not a run: name the folder that `uhr train run --out` wrote"),
        (["export", "nowhere", "--out", "x"], "nowhere is not a run"),
        (
            ["export", "nowhere", "--out", "x", "--weights", "mean"],
            "--weights mean: it must be trained or ema",
        ),
        (["log", "nowhere"], "nowhere has no log"),
        (["encode", "nowhere", "--model", "M", "--out", "x"], "no manifest at nowhere"),
        (["plan", "lora", "--model", "flux1-devv"], "flux1-devv"),
        (["resume", "rnu"], "rnu is not a run: did you mean run? Or name the folder"),
        (
            ["plan", "lora", "--model", "flux1-dev", "--data", "rnu"],
            "rnu contains no encoded data: did you mean run? Or `uhr train encode",
        ),
    ],
)
def test_a_mistake_is_one_line_and_a_code(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    assert main(["train", *arguments]) == 1
    shown_text = capsys.readouterr().err
    assert message in shown_text
    assert len(shown_text.strip().splitlines()) == 1


def test_an_unknown_encode_key_is_an_error(capsys, small_set, tiny_flux, tmp_path):
    arguments = [
        "encode",
        str(small_set.manifest.path),
        "--model",
        str(tiny_flux),
        "--out",
        str(tmp_path / "x"),
    ]
    assert main(["train", *arguments, "--set", "resolutoin=64"]) == 1
    assert "unknown key 'resolutoin': did you mean resolution?" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_a_config_file_holds_the_recipe(capsys, tmp_path):
    (tmp_path / "mine.yaml").write_text("recipe: lora\nseed: 5\n")
    rows = {
        row["path"]: row["value"]
        for row in answer(capsys, "train", "show", "--config", tmp_path / "mine.yaml")
    }
    assert rows["seed"] == 5


def test_the_help_of_encode_names_every_key(capsys):
    assert main(["train", "encode", "--help"]) == 0
    shown_text = capsys.readouterr().out
    assert not [name for name in EncodeConfig.model_fields if name not in shown_text]


def test_a_run_that_ctrl_c_stopped_says_once_how_it_goes_on(
    monkeypatch, job_of, small_set, tiny_flux, tmp_path, capsys
):
    from uhr.train.run.launch import Launch
    from uhr.train.run.trainer import TrainingResult

    stopped = TrainingResult(1, tmp_path, 0.5, stopped=True)
    monkeypatch.setattr(Launch, "train", lambda self, out, device, begin: (begin(), stopped))
    run = ["train", "run", "lora", "--model", str(tiny_flux), "--data", str(small_set.folder)]
    assert main([*run, "--out", str(tmp_path / "run")]) == 130
    assert "interrupted" not in capsys.readouterr().err


def test_ctrl_c_in_the_demo_is_no_failure_of_its_command(monkeypatch):
    from uhr.demo.run import _uhr

    with pytest.raises(KeyboardInterrupt):
        _uhr(lambda arguments: 130, "train", "resume", "run")
    _uhr(lambda arguments: 130, "train", "run", expect=130)
    with pytest.raises(UserError, match="ended with exit code 1, not 0"):
        _uhr(lambda arguments: 1, "train", "resume", "run")
