"""`uhr sample` with every sampler of the registry, in process."""

import json

import pytest
from PIL import Image

from uhr.cli import main
from uhr.models.generate.record import read_record
from uhr.models.samplers import SAMPLERS, sampler_class

pytestmark = pytest.mark.usefixtures("short_prompts")

QUICK = {"base_steps": "1", "strength": "0.5", "skip": "1"}
SETS = {
    "euler": ["toolkit.ntk=4", "shift=static"],
    "sdedit": ["enlargement=lanczos", "toolkit.ntk=4"],
    "multidiffusion": ["overlap=0.25"],
    "demofusion": ["ring=zeros", "blur=0.8"],
    "imax": ["projection=cosine_shift", "toolkit.text_duplication=false"],
    "hiflow": ["preset=code", "cascade=[2]", "starts=[0.6]", "guidance_high=5"],
    "ultragen": ["rules.neighbourhood=cross", "projection=decay"],
    "patch-cascade": ["gamma=0.3", "schedule=cosine"],
    "ultraflux": ["positions=yarn"],
}
"""What is set besides, of samplers that have more to set."""


@pytest.mark.parametrize("name", SAMPLERS)
def test_an_image_by_command_carries_what_was_run(name, tiny_flux, tmp_path, capsys):
    out, fields = tmp_path / "a.png", sampler_class(name, "flux1").Options.model_fields
    sets = [*(f"{key}={value}" for key, value in QUICK.items() if key in fields), *SETS.get(name, ())]
    arguments = ["--model", tiny_flux, "--prompt", "x", "--out", out, "--size", "192x256", "--steps", 3]
    arguments += [word for each in sets for word in ("--set", each)]
    assert main([str(a) for a in ("sample", name, *arguments)]) == 0, capsys.readouterr().err
    record = read_record(out)
    assert (record["width"], record["height"], record["steps"]) == (192, 256, 3)
    details = record["details"]
    assert details["stages"][-1]["width"] == 192
    calls = sum((len(stage["sigmas"]) - 1) * stage["calls_per_step"] for stage in details["stages"])
    assert record["model_calls"] == calls
    for key, _, value in (each.partition("=") for each in sets):
        value_set = details["settings"]
        for part in key.split("."):
            value_set = value_set[part]
        assert json.dumps(value_set).strip('"[]').rstrip(".0") == value.strip("[]").rstrip(".0")


@pytest.mark.parametrize(
    ("name", "more", "message"),
    [
        ("imax", ["--size", "128x128"], "size 128x128 is not above the native 128x128"),
        ("hiflow", ["--size", "200x256"], "nearest 192x256 or 208x256"),
        ("demofusion", ["--size", "272x256"], "nearest 256x256 or 288x256"),
        ("sdedit", ["--set", "strength=1"], "'strength' should be less than 1"),
        ("hiflow", ["--set", "preset=papers"], "'preset'"),
        ("imax", ["--set", "projection=cosine"], "'projection'"),
        (
            "multidiffusion",
            ["--set", "strength=0.9", "--steps", "2"],
            "lower the strength, or take more steps",
        ),
    ],
)
def test_what_cannot_be_is_reported_before_anything_is_loaded(
    name, more, message, tiny_flux, tmp_path, capsys
):
    arguments = ["--model", tiny_flux, "--prompt", "x", "--out", tmp_path / "a.png", *more]
    assert main([str(a) for a in ("sample", name, *arguments)]) == 1
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("more", "spoken", "expected"),
    [
        (["--size", "192x192", "--guidance", "2"], "guidance 2, then 7.5", [2.0, 7.5]),
        (["--image", "given.png"], "guidance 7.5", [7.5]),
        (["--image", "given.png", "--guidance", "2"], "guidance 2", [2.0]),
        (["--image", "given.png", "--set", "guidance_high=5"], "guidance 5", [5.0]),
    ],
)
def test_the_line_and_the_record_say_the_guidance_of_each_stage(
    more, spoken, expected, tiny_flux, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (96, 96), "teal").save("given.png")
    short = ["--steps", "2", "--set", "base_steps=1", "--set", "strength=0.5"]
    arguments = ["sample", "sdedit", "--model", str(tiny_flux), "--prompt", "x", *short, *more]
    assert main([*arguments, "--out", "a.png"]) == 0, capsys.readouterr().err
    assert f"steps, {spoken}, seed" in capsys.readouterr().out.replace("\n", " ")
    assert [stage["guidance"] for stage in read_record(tmp_path / "a.png")["details"]["stages"]] == expected
    # and it is made again so
    assert main(["sample", "--repeat", "a.png", "--out", "b.png"]) == 0, capsys.readouterr().err
    assert "identical" in capsys.readouterr().out
