"""A folder of given images as a set."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from uhr.models.generate.record import read_record


def images(folder, *names):
    for seed, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(seed).integers(0, 256, (96, 128, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)


SDEDIT = ("--image", "given", "--scale", 2, "--prompt", "more detail", "--steps", 4)


@pytest.fixture
def batch(capfd):
    from uhr.cli import main

    def run(*options):
        arguments = ["sample", "sdedit", "--model", "tiny", "--device", "cpu", "--workers", "0"]
        arguments += [] if "--out" in options else ["--out", "out"]
        capfd.readouterr()
        code = main([*arguments, *map(str, options)])
        return code, capfd.readouterr()

    return run


def test_a_folder_of_images_is_a_batch_and_a_broken_one_fails_alone(batch):
    given = Path("given")
    images(given, "a.png", "sub/b.jpg", "c.png")
    (given / "c.png").write_bytes((given / "c.png").read_bytes()[:200])
    (given / "notes.txt").touch()
    code, output = batch(*SDEDIT)
    assert code == 1
    assert "1 of 3 images failed; c: " in output.err
    assert output.err.count("given also contains files without an image suffix: notes.txt") == 1
    assert json.loads(Path("out/set.json").read_text())["left_out"] == {"not_images": 1}
    for name in ("a", "sub/b"):
        assert Image.open(f"out/pictures/{name}.png").size == (256, 192)
    record = read_record(Path("out/pictures/sub/b.png"))
    assert record["item"]["image"] == "given/sub/b.jpg"
    images(given, "a.png", "sub/b.jpg", "c.png")
    code, output = batch(*SDEDIT)
    assert code == 1
    assert "another set: other images: " in output.err


def test_an_image_that_changes_after_the_check_fails_and_the_next_run_sees_another_set(batch, monkeypatch):
    from uhr.train.generate import run as generate

    given = Path("given")
    images(given, "a.png", "b.png")
    generate_set = generate._generate

    def after_a_change(*arguments):
        images(given, "x.png", "b.png")
        (given / "x.png").unlink()
        with open(given / "a.png", "ab") as file:
            file.write(b"more")
        generate_set(*arguments)

    monkeypatch.setattr(generate, "_generate", after_a_change)
    code, output = batch(*SDEDIT)
    assert code == 1
    assert "1 of 2 images failed; a: image given/a.png changed after the set was checked" in output.err
    assert Image.open("out/pictures/b.png").size == (256, 192), "it was written again with the same bytes"
    monkeypatch.undo()


def test_a_broken_link_in_a_folder_of_images_fails_alone(batch):
    images(Path("given"), "a.png")
    Path("given/b.png").symlink_to("nowhere.png")
    code, output = batch(*SDEDIT)
    assert code == 1
    assert "1 of 2 images failed; b: image given/b.png does not exist" in output.err


def test_every_format_that_is_decoded_has_a_suffix_that_a_folder_of_images_takes():
    from uhr.pixels.headers import FORMATS
    from uhr.train.generate.items import IMAGES

    Image.init()
    for format in FORMATS:
        assert any(suffix[1:] in IMAGES for suffix, name in Image.EXTENSION.items() if name == format)


def test_a_folder_without_a_usable_image_is_refused_in_one_line(batch):
    Path("given").mkdir()
    Path("given/a.png").write_text("no image")
    code, output = batch(*SDEDIT)
    assert code == 1
    assert "none of the 1 images can be used; the first: given/a.png is not an image" in output.err
    assert not Path("out").exists()


def test_previews_of_a_set_are_named_after_its_images(make):
    options = ("--size", "256x256", "--steps", "4", "--previews", "seen")
    made = make([{"prompt": "a lake", "name": "sub/lake"}], *options, sampler="sdedit")
    assert made.code == 0, made.err
    (seen,) = Path("seen").rglob("*.png")
    assert seen.parent == Path("seen/sub")
    assert seen.name.startswith("lake-1-")
    assert "leave out --previews" in make(["a lake"], "--previews", "seen", out="other").error


def test_previews_of_a_set_replace_earlier_ones_and_nothing_else(make):
    options = ("--size", "256x256", "--steps", "4", "--previews", "seen")
    prompts = [{"prompt": "a lake", "name": "lake"}, {"prompt": "a hill", "name": "hill"}]
    make(prompts, *options, sampler="hiflow")
    (seen,) = Path("seen").glob("hill-*.png")
    Path("out/pictures/hill.png").unlink()
    assert make(prompts, *options, sampler="hiflow").code == 0
    seen.write_bytes(Path("out/pictures/hill.png").read_bytes())
    again = make(prompts, *options, sampler="hiflow", out="other")
    assert f"{seen} already exists, and a preview would replace it" in again.error
    assert not Path("other").exists()


@pytest.mark.parametrize("options", [("--out", "given/big"), ("--out", "set", "--previews", "given/seen")])
def test_output_inside_the_folder_of_given_images_is_refused(batch, options):
    images(Path("given"), "a.png")
    code, output = batch(*SDEDIT, *options)
    assert code == 1
    assert f"{options[-1]} is in the folder of given images, given: name a folder next to it" in output.err
    assert [path.name for path in Path("given").iterdir()] == ["a.png"]
    assert not Path("set").exists()


@pytest.mark.parametrize("seen", ["out", "out/previews", "other/../out/x"])
def test_previews_have_a_folder_of_their_own(make, seen):
    options = ("--size", "256x256", "--steps", "4", "--previews", seen)
    refused = make(["a lake"], *options, sampler="sdedit")
    assert refused.code == 1
    assert "is in --out out: name a folder next to it" in refused.error
    assert not Path("out").exists()
