"""`uhr train lora` through the command line: one command to a file that stock diffusers loads."""

import json
import shutil
import signal

import numpy as np
import pytest
import torch
from PIL import Image

from uhr.models.publish.lora_file import step_of
from uhr.models.zoo import make_tiny

MOMENTS = [
    ("uhr.curate.run.job:commit", 0),
    ("uhr.train.encode.run:commit", 0),
    ("uhr.train.run.trainer:Trainer.step", 3),
    ("uhr.train.run.checkpoints.kept:keep_newest", 1),
    ("uhr.train.run.exports.export:export_file", 0),
    ("uhr.models.adapters.formats.writing:save_tensors", 0),
]
"""Where the command is killed: before the manifest is written, before encoded data are written, after a
checkpoint and a step, as old checkpoints are removed, before the export, and before its file is written."""


@pytest.fixture(scope="module")
def made(photos, tiny_flux, quick, warm, tmp_path_factory):
    """The folder of a LoRA, and the command that made it without interruption."""
    out = tmp_path_factory.mktemp("made")
    command = [
        "train",
        "lora",
        photos,
        "--model",
        tiny_flux,
        "--name",
        "ohwx style",
        "--trigger",
        "ohwx",
        *quick,
    ]
    done = warm.uhr(*command, "--json", cwd=out, warm_workers=True)
    assert done.returncode == 0, done.stderr
    return out / "ohwx style", command, done


def test_one_command_gives_a_file_a_grid_and_every_step_of_it(made):
    folder, _, done = made
    answer = json.loads(done.stdout)
    assert answer["file"] == "ohwx style/ohwx style.safetensors"
    assert answer["grid"] == "ohwx style/run/validation/grid.png"
    assert (folder.parent / answer["file"]).is_file()
    # a heading, and a row for each of four prompts
    with Image.open(folder.parent / answer["grid"]) as grid:
        assert grid.size == (8 + 4 * (160 + 8), 56 + 4 * (128 + 24 + 8))
    encoded = json.loads((folder / "encoded" / "encoded.json").read_text())
    assert (encoded["counts"]["encoded"], encoded["counts"]["left_out"]) == (6, 1)
    assert encoded["counts"]["without_caption"] == 0
    for said in (
        "6 of ",
        "1 too small for 128 px",
        "1 cannot be read (broken.jpg)",
        "the other 3 get 'ohwx'",
    ):
        assert said in done.stderr
    for step in ("curate run as-is", "train encode", "train plan", "train run", "train export"):
        assert f"  uhr {step} " in done.stderr


def test_the_same_command_resumes_after_a_kill_at_any_moment_and_ends_with_the_same_bytes(
    made, killed, warm, tmp_path
):
    folder, command, _ = made
    command = [*command, "--out", tmp_path / "again"]
    for function, calls in MOMENTS:
        assert killed(function, calls, *command) == -signal.SIGKILL, function
    done = warm.uhr(*command, warm_workers=True)
    assert done.returncode == 0, done.stderr
    one, two = (path / "ohwx style.safetensors" for path in (folder, tmp_path / "again"))
    assert one.read_bytes() == two.read_bytes()
    # and a finished one is left as it is
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "again").rglob("*.parquet")}
    again = warm.uhr(*command, warm_workers=True)
    assert again.returncode == 0
    assert "all 6 steps are done" in again.stdout
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "again").rglob("*.parquet")} == before
    assert one.read_bytes() == two.read_bytes()


def images_of(uhr, pipeline, model, file, out):
    """A prompt's image by `uhr sample` and by a stock pipeline, without and with the adapter."""
    found = []
    call = ("--prompt", "ohwx, a thing", "--size", "128x128", "--steps", 2, "--guidance", 3.5, "--seed", 4)
    for name, adapter in (("without", ()), ("with", ("--adapter", file))):
        if adapter:
            pipeline.load_lora_weights(str(file))
        theirs = pipeline(
            prompt="ohwx, a thing",
            height=128,
            width=128,
            num_inference_steps=2,
            guidance_scale=3.5,
            generator=torch.Generator("cpu").manual_seed(4),
        ).images[0]
        code, _, err = uhr("sample", "euler", "--model", model, *adapter, *call, "--out", out / f"{name}.png")
        assert code == 0, err
        with Image.open(out / f"{name}.png") as ours:
            found.append((np.asarray(ours, int), np.asarray(theirs.convert("RGB"), int)))
    return found


def same_and_changed(found):
    (ours, theirs), (ours_with, theirs_with) = found
    # merged adapters round differently
    assert abs(ours - theirs).max() <= 1
    assert abs(ours_with - theirs_with).max() <= 1
    assert abs(ours_with - ours).max() > 20


def test_stock_diffusers_loads_the_file_and_generates_the_same_image(made, tiny_flux, uhr, tmp_path):
    from diffusers import FluxPipeline

    pipeline = FluxPipeline.from_pretrained(tiny_flux)
    pipeline.set_progress_bar_config(disable=True)
    same_and_changed(images_of(uhr, pipeline, tiny_flux, made[0] / "ohwx style.safetensors", tmp_path))


def test_it_trains_klein_base_too(photos, quick, uhr, tmp_path, warm):
    from diffusers import Flux2KleinPipeline

    model = make_tiny("tiny-flux2-base", tmp_path / "model", seed=0)
    command = ("--model", model, "--name", "klein", "--trigger", "ohwx", "--out", tmp_path / "klein")
    done = warm.uhr("train", "lora", photos, *command, *quick, warm_workers=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "klein" / "recipe.yaml").read_text().splitlines()[2] == "recipe: lora-flux2"
    pipeline = Flux2KleinPipeline.from_pretrained(model)
    pipeline.set_progress_bar_config(disable=True)
    same_and_changed(images_of(uhr, pipeline, model, tmp_path / "klein" / "klein.safetensors", tmp_path))


def test_a_run_that_was_resumed_with_other_values_is_finished_with_them(made, warm, tmp_path):
    folder, command, _ = made
    out = shutil.copytree(folder, tmp_path / "again")
    file = out / "ohwx style.safetensors"
    values = ("--set", "phases.main.steps=7", "--set", "on_nonfinite=skip:3")
    assert warm.uhr("train", "resume", out / "run", *values, warm_workers=True).returncode == 0
    done = warm.uhr(*command, "--out", out, warm_workers=True)
    assert done.returncode == 0, done.stderr
    assert 'on_nonfinite ("stop" -> "skip:3"), phases.0.steps (6 -> 7)' in done.stderr
    assert "is of step 6, and the run is at step 7: remove it" in done.stderr
    assert file.read_bytes() == (folder / file.name).read_bytes()
    file.unlink()
    done = warm.uhr(*command, "--out", out, warm_workers=True)
    assert done.returncode == 0, done.stderr
    assert step_of(file) == 7
    assert "remove it" not in done.stderr


def test_another_request_in_the_same_folder_is_refused(made, uhr, monkeypatch):
    folder, command, _ = made
    monkeypatch.chdir(folder.parent)
    place = next(i for i, part in enumerate(command) if part == "--trigger") + 1
    code, _, err = uhr(*command[:place], "sks", *command[place + 1 :])
    assert code == 1
    assert (
        "'ohwx style' already" in err
        or "ohwx style already contains a LoRA with another trigger (ohwx)" in err
    )
    code, _, err = uhr(*command, "--on", "h100")
    assert (code, "were chosen for cpu" in err) == (1, True)
