"""`uhr sample SAMPLER --image`: any image, exactly enlarged, in its own frame, by every sampler."""

import hashlib
import json

import numpy as np
import pytest
from PIL import Image

from uhr.cli import main
from uhr.models.generate.input_images import InputImage
from uhr.models.generate.record import read_record
from uhr.models.ops.filters import bicubic
from uhr.models.samplers import SAMPLERS, find_sampler

pytestmark = pytest.mark.usefixtures("short_prompts")

SETS = {"sdedit": ["strength=0.5"], "multidiffusion": ["strength=0.5"], "patch-cascade": ["overlap=0"]}
TAKING = [name for name in SAMPLERS if find_sampler(name).takes_image]


@pytest.fixture
def made(tiny_flux, tmp_path, capsys):
    """Run a command on an image with these bytes: the generated image and its record."""

    def make(sampler, data, *more, model=tiny_flux, code=0):
        given, out = tmp_path / "given image", tmp_path / "out.png"
        given.write_bytes(data)
        out.unlink(missing_ok=True)
        sets = [word for each in SETS.get(sampler, ()) for word in ("--set", each)]
        arguments = ["sample", sampler, "--model", model, "--prompt", "x", "--image", given, "--out", out]
        assert main([str(argument) for argument in (*arguments, "--steps", 3, *sets, *more)]) == code
        output = capsys.readouterr()
        if code:
            assert not out.exists()
            return output.err
        with Image.open(out) as image:
            image.load()
        return image, read_record(out)

    return make


def framed(forge, width=97, height=69):
    """An image with transparency and a wide gamut, stored lying on its side; and its alpha, upright."""
    stored = forge.image(width, height, "RGBA")
    profile = forge.wide_gamut_profile()
    data = forge.encode(stored, "PNG", 6, icc_profile=profile)
    return data, profile, np.rot90(np.asarray(stored)[..., 3], -1)


def alpha_of(levels, height, width):
    import torch

    alpha = torch.from_numpy(levels.copy()).float()[None, None] / 255
    return (255 * bicubic(alpha, height, width).clamp(0, 1)).round()[0, 0].byte().numpy()


@pytest.mark.parametrize("sampler", TAKING)
def test_an_image_of_odd_size_is_enlarged_upright_with_its_alpha_and_profile(sampler, forge, made, tmp_path):
    data, profile, alpha = framed(forge)
    image, record = made(sampler, data, "--scale", 2)
    assert (image.size, image.mode) == ((138, 194), "RGBA")
    assert (record["width"], record["height"]) == image.size
    assert image.info["icc_profile"] == profile
    assert np.array_equal(np.asarray(image)[..., 3], alpha_of(alpha, 194, 138))
    assert np.asarray(image)[..., :3].std() > 5
    given = record["image"]
    assert (given["given"], given["target"], given["enlarged_first"]) == ([97, 69], [194, 138], False)
    assert all(made >= side for made, side in zip(given["made"], given["target"], strict=True))
    # no base pass
    assert all(stage["name"] != "base" for stage in record["details"]["stages"])
    assert record["item"]["image"].endswith("given image")
    assert json.loads((tmp_path / "out.json").read_text()) == record
    # how strong seams are, where there are pieces that could have some
    assert ("seams" in record["details"]) == (sampler in ("patch-cascade", "multidiffusion", "ultragen"))


@pytest.mark.parametrize("sampler", ["sdedit", "patch-cascade", "ultragen"])
def test_on_the_other_family_too(sampler, forge, made, tiny_flux2):
    data, profile, alpha = framed(forge, 193, 137)
    image, _ = made(sampler, data, "--scale", 1.5, model=tiny_flux2)
    assert (image.size, image.mode) == ((206, 290), "RGBA")
    assert image.info["icc_profile"] == profile
    assert np.array_equal(np.asarray(image)[..., 3], alpha_of(alpha, 290, 206))


@pytest.mark.parametrize("sampler", TAKING)
def test_at_scale_1_a_gray_image_keeps_its_size_and_mode(sampler, forge, made):
    image, record = made(sampler, forge.encode(forge.image(193, 137, "L"), "JPEG"), "--scale", 1)
    assert (image.size, image.mode) == ((193, 137), "L")
    assert "icc_profile" not in image.info
    assert record["image"]["given"] == record["image"]["target"] == [137, 193]


def test_the_same_pixels_in_another_file_make_the_same_image_and_others_another(forge, made):
    files = [forge.encode(forge.image(160, 128), format) for format in ("PNG", "TIFF")]
    files.append(forge.encode(forge.image(160, 128, seed=1), "PNG"))
    one, same, other = (np.asarray(made("patch-cascade", data, "--scale", 1)[0]) for data in files)
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


@pytest.mark.parametrize(("sampler", "times"), [("patch-cascade", 4), ("sdedit", 2), ("ultragen", 4)])
def test_without_a_scale_the_samplers_own_counts(sampler, times, forge, made):
    image, _ = made(sampler, forge.encode(forge.image(65, 50), "PNG"))
    assert image.size == (times * 65, times * 50)


def test_a_size_may_be_named_instead(forge, made):
    data = forge.encode(forge.image(193, 137), "PNG")
    image, _ = made("sdedit", data, "--size", "290x206")
    assert image.size == (290, 206)
    assert "does not fit 290x290: use 290x206 or 409x290" in made("sdedit", data, "--size", "290x290", code=1)


def test_previews_of_stages_show_the_image_and_nothing_of_its_mirror_image(forge, made, tmp_path):
    data = forge.encode(forge.image(193, 137), "PNG")
    _, record = made("hiflow", data, "--scale", 2, "--previews", tmp_path / "stages")
    (first, _) = record["details"]["stages"]
    (preview,) = (tmp_path / "stages").iterdir()
    given = record["image"]
    with Image.open(preview) as image:
        for axis, side in ((1, first["height"]), (0, first["width"])):
            target, made_of = given["target"][1 - axis], given["made"][1 - axis]
            assert image.size[axis] == round(side * target / made_of) < side


def test_the_record_names_the_bytes_that_were_opened_whatever_the_file_is_when_it_ends(
    forge, made, monkeypatch, tmp_path
):
    data = forge.encode(forge.image(140, 130), "PNG")
    hand = InputImage.padded

    def then_replaced(self, fit):
        (tmp_path / "given image").write_bytes(forge.encode(forge.image(140, 130, seed=5), "PNG"))
        return hand(self, fit)

    monkeypatch.setattr(InputImage, "padded", then_replaced)
    _, record = made("sdedit", data, "--scale", 1)
    assert record["image"]["sha256"] == hashlib.sha256(data).hexdigest()


def test_cmyk_comes_back_as_srgb_and_the_command_says_so(forge, made, capsys):
    data = forge.encode(forge.image(140, 130, "CMYK"), "JPEG", icc_profile=forge.cmyk_profile())
    image, record = made("sdedit", data, "--scale", 1)
    assert image.mode == "RGB"
    assert "the image was CMYK: the result is sRGB" in record["details"]["notes"]


@pytest.mark.parametrize(
    ("sampler", "size", "more", "message"),
    [
        ("euler", (160, 128), [], "sampler 'euler' takes no image: these do: sdedit, multidiffusion"),
        ("ultraflux", (160, 128), [], "sampler 'ultraflux' takes no image: these do: "),
        ("sdedit", (40, 30), ["--scale", "2"], "80x60, less than one patch of 128x128: take a scale of 3.2"),
        ("imax", (160, 90), ["--scale", "1"], "less than one patch of 128x128: take a scale of 1.07"),
        ("sdedit", (160, 128), ["--scale", "0.5"], "would shrink to 80x64: shrink it before"),
        ("sdedit", (160, 128), ["--scale", "2", "--size", "320x256"], "both a scale and a size"),
        ("multidiffusion", (160, 128), ["--set", "strength=1"], "the image has no effect"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_one_line_before_anything_is_loaded(
    sampler, size, more, message, forge, made, monkeypatch
):
    def load(*_, **__):
        raise AssertionError("weights are loaded")

    monkeypatch.setattr("uhr.models.loading.model.load_pipeline", load)
    output = made(sampler, forge.encode(forge.image(*size), "PNG"), *more, code=1)
    assert message in output
    assert output.count("\n") == 1


def test_a_broken_image_and_a_scale_of_nothing_are_one_line(forge, made, tiny_flux, tmp_path, capsys):
    half = forge.encode(forge.image(160, 128), "JPEG")[:2000]
    assert "is damaged" in made("sdedit", half, code=1)
    arguments = ["sample", "sdedit", "--model", tiny_flux, "--prompt", "x", "--out", tmp_path / "b.png"]
    assert main([str(argument) for argument in (*arguments, "--scale", 2)]) == 1
    assert "--scale 2 is given without an image" in capsys.readouterr().err
    (tmp_path / "b.png").write_bytes(forge.encode(forge.image(160, 128), "PNG"))
    assert main([str(argument) for argument in (*arguments, "--image", tmp_path / "b.png")]) == 1
    assert "b.png is the given image itself" in capsys.readouterr().err
    assert main([str(argument) for argument in (*arguments, "--image", tmp_path / "none.png")]) == 1
    assert "none.png does not exist" in capsys.readouterr().err


def test_repeated_it_is_the_same_in_the_same_frame_and_another_image_is_noticed(
    forge, made, tmp_path, capsys
):
    data, profile, _ = framed(forge)
    image, _ = made("patch-cascade", data, "--scale", 1.5)
    arguments = ["sample", "--repeat", tmp_path / "out.png", "--out", tmp_path / "again.png"]
    assert main([str(argument) for argument in arguments]) == 0
    assert "identical: all" in capsys.readouterr().out
    with Image.open(tmp_path / "again.png") as again:
        assert again.info["icc_profile"] == profile
        assert np.array_equal(np.asarray(again), np.asarray(image))
    (tmp_path / "given image").write_bytes(forge.encode(forge.image(69, 97), "PNG"))
    assert main([str(argument) for argument in arguments]) == 0
    output = capsys.readouterr()
    assert f"{tmp_path / 'again.png'}: " in output.out
    assert "given image is not the recorded file" in output.err
    assert "not identical" in output.out


def test_an_image_of_a_folder_becomes_what_it_becomes_alone(forge, made, tiny_flux, tmp_path, capsys):
    data, *_ = framed(forge)
    alone, record = made("sdedit", data, "--scale", 1.5, "--seed", 3)
    folder, out = tmp_path / "folder", tmp_path / "set"
    folder.mkdir()
    (folder / "lake.png").write_bytes(data)
    (folder / "torn.png").write_bytes(data[:500])
    arguments = ["sample", "sdedit", "--model", tiny_flux, "--prompt", "x", "--image", folder, "--out", out]
    more = ["--scale", 1.5, "--seed", 3, "--steps", 3, "--set", "strength=0.5", "--engine", "local"]
    assert main([str(argument) for argument in (*arguments, *more, "--workers", 0)]) == 1
    assert "torn.png is damaged" in capsys.readouterr().err
    with Image.open(out / "pictures" / "lake.png") as image:
        assert image.info["icc_profile"] == alone.info["icc_profile"]
        assert np.array_equal(np.asarray(image), np.asarray(alone))
    of_set = read_record(out / "pictures" / "lake.png")
    differ = {"request", "item", "image"}
    assert {k: v for k, v in of_set.items() if k not in differ} == {
        k: v for k, v in record.items() if k not in differ
    }
    assert {**of_set["image"], "path": ""} == {**record["image"], "path": ""}
