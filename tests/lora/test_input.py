"""What is refused before anything is written, and the plan."""

import json
from pathlib import Path

import pytest

from uhr.models.estimate.devices import DEVICES


@pytest.fixture
def refused(uhr, tiny_flux, tmp_path, monkeypatch):
    """The error of a command in an empty working folder, in which it must write nothing."""
    monkeypatch.chdir(tmp_path)

    def call(folder, *arguments, model=tiny_flux, name="style"):
        before = sorted(tmp_path.rglob("*"))
        code, out, err = uhr("train", "lora", folder, "--model", model, "--name", name, *arguments)
        assert (code, out) == (1, "")
        assert sorted(tmp_path.rglob("*")) == before
        return err.splitlines()[-1]

    return call


def test_a_folder_without_usable_images(refused, tmp_path, draw):
    (tmp_path / "empty").mkdir()
    assert "contains no file" in refused("empty")
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("a")
    (tmp_path / "texts" / "a.png").write_bytes(b"")
    assert "has no image that can be read (1 of its files cannot be read as images" in refused("texts")
    assert "does not exist" in refused("missing")
    assert "is a file" in refused("texts/a.txt")
    for number, side in enumerate((40, 70, 75)):
        draw(tmp_path / "small" / f"{number}.png", side, side + 10, number)
    line = refused("small", "--trigger", "a")
    assert "all 3 images" in line
    assert "the largest has 85x75 px: give larger images, or --resolution 64" in line


def test_captions_that_are_missing_or_empty(refused, tmp_path, draw):
    for number in range(3):
        draw(tmp_path / "photos" / f"{number}.png", 160, 160, number)
    (tmp_path / "photos" / "0.txt").write_text("a cat")
    (tmp_path / "photos" / "1.txt").write_text(" \n")
    line = refused("photos")
    assert "2 of 3 images of" in line
    assert "give --trigger WORD" in line
    for name in ("10_a cat", "20_a dog"):
        draw(tmp_path / "several" / name / "a.png", 160, 160, 1)
    assert "its folders name 2 instance prompts" in refused("several")
    for empty in ("", " "):
        assert "--trigger is empty" in refused("several", "--trigger", empty)


def test_where_most_images_are_too_small_the_plan_says_at_which_resolution_they_are_not(uhr, tmp_path, draw):
    for number, side in enumerate((64, 64, 70, 200, 64, 200)):
        draw(tmp_path / "photos" / f"{number}.png", side, side, number)
    request = (
        "train",
        "lora",
        tmp_path / "photos",
        "--model",
        "flux1-dev",
        "--name",
        "style",
        "--trigger",
        "a",
    )
    more = ("--plan", "--on", "cpu", "--json", "--resolution")
    for resolution, used, smaller in ((128, 2, {"resolution": 64, "used": 6}), (64, 6, None)):
        code, text, err = uhr(*request, *more, resolution)
        assert code == 0, err
        images = json.loads(text)["images"]
        assert (images["used"], images["at_smaller"]) == (used, smaller)


def test_names_models_and_places_that_cannot_be(refused, photos, tmp_path):
    trigger = ("--trigger", "ohwx")
    assert "is not a file's name" in refused(photos, *trigger, name="../style")
    assert "model 'nothing' is not there" in refused(photos, *trigger, model="nothing")
    assert "is the name of a spec, not of weights" in refused(photos, *trigger, model="flux1-dev")
    assert "is inside the source" in refused(photos, *trigger, "--out", photos / "style")
    assert "this machine has no GPU: add --plan" in refused(photos, *trigger, "--on", "rtx-4090")
    assert "did you mean rtx-4090" in refused(photos, *trigger, "--plan", "--on", "rtx-4091")
    assert "multiple of 16 px" in refused(photos, *trigger, "--resolution", "100")
    assert "unknown key 'trainble'" in refused(photos, *trigger, "--set", "trainble.rank=4")
    (tmp_path / "style").mkdir()
    (tmp_path / "style" / "thesis.txt").write_text("mine")
    assert "style already contains something else (thesis.txt)" in refused(photos, *trigger)


def plan(uhr, photos, *arguments, model="black-forest-labs/FLUX.1-dev"):
    call = (
        "train",
        "lora",
        photos,
        "--model",
        model,
        "--name",
        "s",
        "--trigger",
        "ohwx",
        "--resolution",
        128,
    )
    return uhr(*call, "--plan", *arguments)


def test_the_plan_has_the_fastest_setting_that_fits_and_writes_nothing(uhr, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # nothing is fetched: the sizes of a published model are known
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    code, out, _ = plan(uhr, photos, "--on", "rtx-4080", "--json")
    assert code == 0
    found = json.loads(out)
    assert list(tmp_path.iterdir()) == []
    usable = DEVICES["rtx-4080"].usable
    assert found["memory"]["peak"] <= usable == found["gpu"]["usable"]
    counts = {"used": 6, "too_small": 1, "at_smaller": None, "broken": ["broken.jpg"], "other_files": 1}
    assert found["images"] == counts
    changes = [part for change in found["settings"] for part in ("--set", change)]
    resolution = ("--set", "phases.main.resolution=128")
    code, out, _ = uhr(
        "train", "plan", "lora", "--model", "flux1-dev", "--on", "rtx-4080", *resolution, "--json"
    )
    best = json.loads(out)["settings"][0]
    assert (code, found["settings"]) == (0, best["changes"])
    assert found["time"]["training"] == pytest.approx(best["seconds"] * found["steps"] / 2000, rel=0.1)
    assert found["time"]["validation_images"] > 0
    # a value of the user's is kept
    code, out, _ = plan(uhr, photos, "--on", "rtx-4080", "--set", "runtime.quantize=int8", "--json")
    assert [each for each in json.loads(out)["settings"] if "quantize" in each or "offload" in each] == []
    code, out, _ = plan(uhr, photos, "--on", "rtx-4080", *changes)
    assert code == 0
    assert "14.7 GiB usable on GeForce RTX 4080" in out


def test_where_nothing_fits_one_line_says_what_would(uhr, photos):
    kept = ("--set", "runtime.quantize=null", "--set", "runtime.offload=null")
    code, out, err = plan(uhr, photos, "--on", "rtx-3060", *kept)
    assert (code, out) == (1, "")
    (line,) = [each for each in err.splitlines() if each.startswith("uhr: ")]
    assert "no setting fits: the least is " in line
    assert "rtx-5090 and larger ones have" in line


def test_where_the_machine_has_too_little_memory_for_streamed_weights_it_is_said(uhr, photos, monkeypatch):
    monkeypatch.setattr("uhr.lora.plan.local_device", lambda: DEVICES["rtx-3060"])
    monkeypatch.setattr("uhr.lora.plan._host_memory", lambda: 8 << 30)
    code, out, err = plan(uhr, photos, "--set", "runtime.quantize=null")
    assert (code, out) == (1, "")
    assert "and 75% of this machine's memory is 6.0 GiB: leave out" in err
    monkeypatch.setattr("uhr.lora.plan._host_memory", lambda: 64 << 30)
    code, out, err = plan(uhr, photos, "--set", "runtime.quantize=null")
    assert (code, "runtime.offload=blocks" in out) == (0, True), err


def test_a_real_model_without_a_gpu_is_refused_with_its_memory(uhr, photos, tmp_path, monkeypatch):
    monkeypatch.setattr("uhr.lora.plan._host_memory", lambda: 24 << 30)
    code, _, err = plan(uhr, photos)
    assert code == 1
    assert "flux1-dev needs 82.6 GiB on the CPU, and this machine has 24.0 GiB" in err
    assert "there is no GPU here: name one with --plan --on" in err
    assert Path(tmp_path / "s").exists() is False
