"""An image repeated from its record is equal bit for bit; differences are reported."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from uhr.base.errors import UserError
from uhr.models import zoo
from uhr.models.generate import record, repeat
from uhr.models.generate.request import Request
from uhr.models.samplers import SAMPLERS

pytestmark = pytest.mark.usefixtures("short_prompts")

SETS = {
    "euler": ["shift=static", "toolkit.ntk=4"],
    "sdedit": ["strength=0.5", "toolkit.ntk=4"],
    "multidiffusion": ["strength=0.6", "overlap=0.25"],
    "demofusion": ["ring=zeros", "jitter_seed=3"],
    "imax": ["projection=constant", "sample=false"],
    "hiflow": ["preset=code", "cascade=[2]"],
    "ultragen": ["sharpening=0.5", "base_steps=2"],
    "patch-cascade": ["gamma=0.3", "base_steps=2", "shared_noise=false"],
    "ultraflux": ["positions=yarn"],
}
"""Options that are not the defaults, for every sampler."""

NO_IMAGE = ("euler", "ultraflux")


@pytest.fixture
def given(tmp_path):
    """An image with transparency whose sides are no whole number of tokens."""
    pixels = np.random.default_rng(0).integers(0, 256, (65, 100, 4), np.uint8)
    Image.fromarray(pixels, "RGBA").save(tmp_path / "given.png")
    return tmp_path / "given.png"


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    return tmp_path_factory.mktemp("kept")


@pytest.fixture
def one(uhr, tiny_flux, kept, tmp_path):
    """An image by Euler's sampler with its JSON, generated once and copied for each test."""
    if not (kept / "one.json").exists():
        uhr(*command_line("euler", tiny_flux, kept / "one.png"))
    for name in ("one.png", "one.json"):
        shutil.copy(kept / name, tmp_path)
    return tmp_path / "one.png"


def command_line(sampler, model, out, *more):
    sets = [word for each in SETS[sampler] for word in ("--set", each)]
    fixed = ("--prompt", "a lake", "--steps", 3, "--seed", 5, "--device", "cpu")
    return sampler, "--model", model, "--out", out, *fixed, *sets, *more


def pixels(path):
    return np.asarray(Image.open(path).convert("RGBA"), int)


def check_same(uhr, one, two):
    found = json.loads(uhr("--repeat", one, "--out", two, "--json").out)
    assert (found["identical"], found["pixels_that_differ"], found["differences"]) == (True, 0, [])
    assert np.array_equal(pixels(one), pixels(two))
    assert record.read_record(one) | {"request": 0, "item": 0} == record.read_record(two) | {
        "request": 0,
        "item": 0,
    }


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_with_options_an_adapter_and_an_image_every_sampler_repeats_its_image(
    sampler, uhr, tiny_flux, adapter, given, tmp_path
):
    one, two = tmp_path / "one.png", tmp_path / "two.png"
    what = ("--size", "256x192") if sampler in NO_IMAGE else ("--image", given, "--scale", 2)
    if sampler == "patch-cascade":
        # the patches draw as many numbers as they are many
        what = ("--image", given, "--scale", 1.5)
    uhr(*command_line(sampler, tiny_flux, one, "--adapter", f"{adapter}=0.5", *what))
    check_same(uhr, one, two)
    found = record.read_record(two)
    assert found["adapters"][0]["scale"] == 0.5
    if sampler not in NO_IMAGE:
        assert found["image"]["path"] == str(given)


@pytest.mark.parametrize("sampler", ["euler", "hiflow", "patch-cascade"])
def test_on_flux2_with_a_negative_prompt_likewise(sampler, uhr, tiny_flux2, tmp_path):
    one, two = tmp_path / "one.png", tmp_path / "two.png"
    more = ("--spec", "tiny-flux2-base", "--negative", "ugly", "--size", "256x256")
    scale = ("--set", "true_cfg_scale=2") if sampler == "patch-cascade" else ("--guidance", 3)
    uhr(*command_line(sampler, tiny_flux2, one, *more, *scale))
    check_same(uhr, one, two)
    assert record.read_record(two)["negative"] == "ugly"


def test_in_another_process_the_repeated_image_is_the_same(uhr, warm, tiny_flux, tmp_path, monkeypatch):
    monkeypatch.undo()  # prompts of 512 tokens, as the other process has them
    uhr(*command_line("imax", tiny_flux, tmp_path / "one.png"))
    done = warm.uhr("sample", "--repeat", "one.png", "--out", "two.png", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "identical: all 65,536 pixels"


def test_the_record_may_be_in_the_json_alone(uhr, one, tmp_path):
    two = tmp_path / "two.png"
    Image.open(one).save(one)
    assert "uhr" not in Image.open(one).text
    assert "identical: all" in uhr("--repeat", one, "--out", two).out
    assert "identical: all" in uhr("--repeat", record.json_path(one), "--out", tmp_path / "three.png").out
    one.unlink()
    assert "no original image" in uhr("--repeat", record.json_path(one), "--out", tmp_path / "four.png").out


def test_other_weights_are_reported_and_so_is_how_many_pixels_differ(uhr, tiny_flux, adapter, tmp_path):
    one, two = tmp_path / "one.png", tmp_path / "two.png"
    style = shutil.copytree(adapter, tmp_path / "style")
    uhr(*command_line("euler", tiny_flux, one, "--adapter", style))
    other = zoo.make_tiny("tiny-flux1", tmp_path / "other", seed=1)
    shutil.rmtree(other / "vae")
    shutil.copytree(tiny_flux / "vae", other / "vae")
    output = uhr("--repeat", one, "--out", two, "--model", other)
    assert [line for line in output.err.splitlines() if line.startswith("warning: ")] == [
        f"warning: weights: those of the {name} differ from the recorded ones"
        for name in ("text_encoder", "text_encoder_2", "transformer")
    ]
    differ = int((np.abs(pixels(one) - pixels(two)).max(axis=-1) > 0).sum())
    most = np.abs(pixels(one) - pixels(two)).max()
    assert differ > 1000
    assert output.out.splitlines()[-1] == (
        f"not identical: {differ:,} of 16,384 pixels differ, by at most {most} of 255"
    )


def test_an_edited_configuration_scheduler_or_tokenizer_is_reported(uhr, tiny_flux, tmp_path):
    one, two = tmp_path / "one.png", tmp_path / "two.png"
    model = shutil.copytree(tiny_flux, tmp_path / "model")
    uhr(*command_line("euler", model, one))

    def edit(file, **values):
        tree = json.loads((model / file).read_text())
        (model / file).write_text(json.dumps({**tree, **values}))

    edit("vae/config.json", _diffusers_version="99", _name_or_path="elsewhere")
    assert "warning" not in uhr("--repeat", one, "--out", two).err
    edit("vae/config.json", scaling_factor=0.5)
    edit("scheduler/scheduler_config.json", max_shift=2.0)
    edit("tokenizer/tokenizer_config.json", clean_up_tokenization_spaces=True)
    output = uhr("--repeat", one, "--out", two)
    assert sorted(line for line in output.err.splitlines() if line.startswith("warning: ")) == [
        "warning: configuration: that of the vae differs from the recorded one",
        "warning: files: those of the scheduler differ from the recorded ones",
        "warning: files: those of the tokenizer differ from the recorded ones",
    ]


def test_versions_machine_device_and_files_of_then_are_compared(
    uhr, tiny_flux, adapter, given, tmp_path, monkeypatch
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    one = tmp_path / "one.png"
    style = shutil.copytree(adapter, tmp_path / "style")
    uhr(*command_line("sdedit", tiny_flux, one, "--adapter", style, "--image", given))
    found = record.read_record(one)
    found["versions"]["torch"] = "1.0"
    found["machine"] = {"computes": "abacus", "threads": found["machine"]["threads"]}
    found["device"] = "cuda:7"
    found["adapters"][0]["sha256"] = found["image"]["sha256"] = "0" * 64
    record.write(one, Image.open(one), found)
    lines = json.loads(uhr("--repeat", one, "--out", tmp_path / "two.png", "--json").out)["differences"]
    assert [line.partition(":")[0] for line in lines] == [
        "device",
        "adapter",
        "image",
        "version",
        "machine",
    ]
    assert "made on cuda:7, which this machine lacks; now on cpu" in lines[0]
    assert "torch was 1.0, and is " in lines[3]
    assert "computes was abacus" in lines[4]


@pytest.mark.parametrize("lost", ["model", "style", "given.png"])
def test_a_missing_file_is_one_line_with_the_fix_before_anything_is_loaded(
    lost, uhr, tiny_flux, adapter, given, tmp_path, monkeypatch
):
    from uhr.models.loading import model as loading

    one = tmp_path / "one.png"
    shutil.copytree(tiny_flux, tmp_path / "model")
    shutil.copytree(adapter, tmp_path / "style")
    monkeypatch.chdir(tmp_path)
    uhr(*command_line("sdedit", "model", one, "--adapter", "style", "--image", "given.png"))
    Path(lost).rename("elsewhere")
    monkeypatch.setattr(loading, "load_component", None)
    error = uhr("--repeat", one, "--out", "two.png", code=1).err
    assert f"{lost}" in error
    assert "does not exist" in error
    assert ("--model" if lost == "model" else "in the folder where it was made") in error
    assert not Path("two.png").exists()
    if lost == "model":
        monkeypatch.undo()
        out = uhr("--repeat", one, "--out", tmp_path / "two.png", "--model", tiny_flux, code=1)
        assert "adapter style does not exist" in out.err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.pop("item"), "is incomplete or invalid"),
        (lambda r: r["request"].update(sampler=7), "'sampler'"),
        (lambda r: r["request"].update(more=1), "unknown key 'more'"),
        (lambda r: r.update(options={"shfit": 1}), "unknown key 'shfit': did you mean shift"),
        (lambda r: r.update(model=3), "is incomplete or invalid"),
        (lambda r: r.update(width="wide"), "'size.0'"),
        (lambda r: r.update(weights={"vae": 1}), "'weights.vae'"),
        (lambda r: r.update(machine=[1]), "'machine'"),
        (lambda r: r.update(adapters=[{}]), "1 adapters of 0"),
    ],
)
def test_a_record_that_was_changed_is_one_line(change, message, uhr, one, tmp_path):
    found = record.read_record(one)
    change(found)
    record.write(one, Image.open(one), found)
    assert message in uhr("--repeat", one, "--out", tmp_path / "two.png", code=1).err


def test_a_backbone_alone_in_place_of_a_whole_model_says_what_to_name(uhr, one, tiny_flux, tmp_path):
    file = tiny_flux / "transformer" / "diffusion_pytorch_model.safetensors"
    error = uhr("--repeat", one, "--out", tmp_path / "two.png", "--model", file, code=1).err
    assert "is only a backbone, and the image was made with a whole model" in error
    assert "--base" not in error


def test_wrong_calls_of_repeat_are_one_line(uhr, one, tiny_flux, tmp_path):
    assert "name the new image: --out again.png" in uhr("--repeat", one, code=1).err
    assert "is the image to repeat" in uhr("--repeat", one, "--out", one, code=1).err
    assert "give one of them" in uhr("--repeat", one, "--out", "x.png", "euler", code=1).err
    assert "write it after the name" in uhr("--model", tiny_flux, "euler", "--out", "x.png", code=1).err
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    error = uhr("--repeat", tmp_path / "x.png", "--out", tmp_path / "y.png", code=1).err
    assert "has no record of how it was made" in error


def test_nothing_is_lost_by_repeating(uhr, tiny_flux, given, tmp_path, monkeypatch):
    from uhr.models.loading import model as loading

    one, kept = tmp_path / "one.png", tmp_path / "kept.png"
    uhr(*command_line("sdedit", tiny_flux, one, "--image", given))
    shutil.copy(one, kept)
    monkeypatch.setattr(loading, "load_component", None)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for image in (one, record.json_path(one)):
        assert "is the image to repeat" in uhr("--repeat", image, "--out", one, code=1).err
    for image in (one, kept, record.json_path(one)):
        assert "is the given image itself" in uhr("--repeat", image, "--out", given, code=1).err
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    one.unlink()
    # the record is all that is left
    error = uhr("--repeat", record.json_path(one), "--out", one, code=1).err
    assert "one.json is the image to repeat, or its record" in error


def test_a_damaged_image_of_then_costs_no_new_one(uhr, one, tmp_path):
    two = tmp_path / "two.png"
    then = pixels(one)
    one.write_bytes(one.read_bytes()[:-2000])
    assert (
        "is damaged and cannot be compared"
        in uhr("--repeat", record.json_path(one), "--out", two, code=1).err
    )
    assert np.array_equal(pixels(two), then)


def test_a_hubs_model_is_repeated_at_its_commit(tmp_path, monkeypatch):
    then = {"name": "org/name@main", "base": None, "spec": "flux1-dev", "revision": "c0ffee"}
    assert repeat._model(then, None) == {"model": "org/name@c0ffee", "base": None}
    assert repeat._model(then, "here") == {"model": "here", "base": None}
    lone = then | {"name": "flux.gguf", "base": "org/name"}
    with pytest.raises(UserError, match=r"model flux\.gguf does not exist"):
        repeat._model(lone, None)
    (tmp_path / "flux.gguf").touch()
    monkeypatch.chdir(tmp_path)
    assert repeat._model(lone, None) == {"model": "flux.gguf", "base": "org/name@c0ffee"}
    assert repeat._model(lone, "here") == {"model": "flux.gguf", "base": "here"}
    # a folder that is gone is not looked for on the hub, though its name may look like it
    with pytest.raises(UserError, match="model org/name does not exist: name where it is now: --model DIR"):
        repeat._model(then | {"name": "org/name", "revision": None}, None)
    assert repeat._model(then | {"revision": None}, "org/other") == {"model": "org/other", "base": None}


def test_without_its_gpu_an_image_is_made_on_what_is_here(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    request = Request(sampler="euler", model="m", device="cuda:7", offload="model")
    found, lines = repeat.on_this_machine(request)
    assert (found.device, found.offload) == ("cpu", None)
    assert [line.partition(":")[0] for line in lines] == ["device", "offload"]
    here = Request(sampler="euler", model="m", device="cpu")
    assert repeat.on_this_machine(here) == (here, [])


def test_images_of_two_sizes_do_not_compare(tmp_path):
    Image.new("RGB", (8, 6)).save(tmp_path / "a.png")
    found = repeat.compare(tmp_path / "a.png", Image.new("RGB", (8, 8)))
    assert (found.identical, found.differ) == (False, 64)
    assert str(found) == "not comparable: the first has 8x6 px"
    # transparency counts
    assert repeat.compare(tmp_path / "a.png", Image.new("RGBA", (8, 6), (0, 0, 0, 254))).differ == 48
    with pytest.raises(UserError, match="cannot be read"):
        record.read_record(tmp_path / "none.png")
