"""Images as PNG, JPEG and WebP: the pixels that PIL itself writes, the profile, and the record in each."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms
from PIL.JpegImagePlugin import get_sampling

from uhr.base.errors import UserError
from uhr.models.generate import record, repeat
from uhr.models.generate.encoding import Encoding
from uhr.models.generate.target import Target

pytestmark = pytest.mark.usefixtures("short_prompts")

SMALL = ("--prompt", "a lake", "--steps", 1, "--size", "64x96", "--device", "cpu")


def coloured(size=(40, 24), mode="RGB"):
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], len(mode)), np.uint8)
    return Image.fromarray(pixels, mode)


@pytest.mark.parametrize(
    ("name", "quality", "stored"),
    [
        ("a.png", None, Encoding()),
        ("a.PNG", "lossless", Encoding()),
        ("a.jpg", None, Encoding(format="jpeg", quality=95)),
        ("a.JPEG", "80", Encoding(format="jpeg", quality=80)),
        ("a.webp", "1", Encoding(format="webp", quality=1)),
        ("a.webp", "lossless", Encoding(format="webp")),
    ],
)
def test_the_suffix_and_the_quality_decide_how_it_is_stored(name, quality, stored):
    assert Encoding.of(name, quality) == stored


@pytest.mark.parametrize(
    ("name", "quality", "message"),
    [
        ("a.gif", None, "name a file that ends in .png, .jpg or .webp"),
        ("a.png", "90", "a PNG, which is lossless"),
        ("a.jpg", "lossless", "a JPEG, which is lossy"),
        ("a.jpg", "0", "--quality 0 is invalid"),
        ("a.webp", "101", "--quality 101 is invalid"),
        ("a.webp", "high", "--quality high is invalid"),
    ],
)
def test_what_a_format_does_not_have_is_rejected(name, quality, message):
    with pytest.raises(UserError, match=message):
        Encoding.of(name, quality)


@pytest.mark.parametrize("form", ["jpeg", "webp", "webp lossless"])
def test_the_file_has_pixels_profile_and_record(form, forge):
    name, _, lossless = form.partition(" ")
    encoding = Encoding(format=name, quality=None if lossless else 90)
    image = coloured()
    image.info["icc_profile"] = forge.wide_gamut_profile()
    data = encoding.encode(image, json.dumps({"prompt": "湖"}))
    found = Image.open(io.BytesIO(data))
    assert found.format == name.upper()
    assert found.info["icc_profile"] == image.info["icc_profile"]
    options = {"lossless": True} if lossless else {"quality": 90}
    if name == "jpeg":
        options["subsampling"] = 0
        assert get_sampling(found) == 0, "4:4:4"
    direct = io.BytesIO()
    image.save(direct, name.upper(), **options)
    assert np.array_equal(np.asarray(found), np.asarray(Image.open(direct)))
    assert np.array_equal(np.asarray(encoding.stored(image)), np.asarray(found))
    assert np.array_equal(np.asarray(found), np.asarray(image)) == bool(lossless)


def test_transparent_pixels_of_a_lossless_webp_keep_their_colours():
    image = coloured(mode="RGBA")
    found = Image.open(io.BytesIO(Encoding(format="webp").encode(image, None)))
    assert np.array_equal(np.asarray(found.convert("RGBA")), np.asarray(image))


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
@pytest.mark.parametrize("place", list(record.RecordPlace))
def test_the_record_is_where_the_user_wants_it(suffix, place, tmp_path):
    written = {"uhr": "0", "sampler": "euler", "model": {}, "prompt": "湖 🏔"}
    target = Target.of(str(tmp_path / f"lake{suffix}"), record=place)
    target.check()
    target.write(coloured(), written)
    beside = tmp_path / "lake.json"
    assert beside.exists() == place.beside
    if place.beside:
        assert json.loads(beside.read_text()) == written
        beside.unlink()
    if place.in_image:
        assert record.read_record(tmp_path / f"lake{suffix}") == written
    else:
        with pytest.raises(UserError, match="has no record"):
            record.read_record(tmp_path / f"lake{suffix}")


def test_png_is_the_image_and_other_places_are_named():
    assert record.RecordPlace.named("png") is record.RecordPlace.IMAGE
    with pytest.raises(UserError, match="both"):
        record.RecordPlace.named("exif")


def test_the_record_of_an_earlier_image_is_not_left_beside_a_new_one(tmp_path):
    written = {"uhr": "0", "sampler": "euler", "model": {}}
    out = str(tmp_path / "lake.png")
    Target.of(out).write(coloured(), written)
    Target.of(out, record="none").write(coloured(), written)
    assert [path.name for path in tmp_path.iterdir()] == ["lake.png"]
    # a file of somebody else is not touched where no record is written
    (tmp_path / "lake.json").write_text('{"mine": 1}')
    target = Target.of(out, record="image")
    target.check()
    target.write(coloured(), written)
    assert (tmp_path / "lake.json").read_text() == '{"mine": 1}'


def test_the_record_of_another_format_is_not_replaced(tmp_path):
    written = {"uhr": "0", "sampler": "euler", "model": {}}
    Target.of(str(tmp_path / "lake.png")).write(coloured(), written)
    with pytest.raises(UserError, match=r"lake\.json is the record of lake\.png.*--record image"):
        Target.of(str(tmp_path / "lake.jpg")).check()
    other = Target.of(str(tmp_path / "lake.jpg"), record="image")
    other.check()
    other.write(coloured(), {**written, "seed": 2})
    assert record.read_record(tmp_path / "lake.json") == written
    assert record.read_record(tmp_path / "lake.jpg")["seed"] == 2


def test_a_record_that_a_jpeg_cannot_hold_is_beside_it(tmp_path):
    written = {"uhr": "0", "sampler": "euler", "model": {}, "prompt": "x" * 70_000}
    Target.of(str(tmp_path / "lake.jpg")).write(coloured(), written)
    assert record.read_record(tmp_path / "lake.jpg") == written
    Target.of(str(tmp_path / "sea.webp"), record="image").write(coloured(), written)
    assert record.read_record(tmp_path / "sea.webp") == written


def test_a_repeat_of_a_jpeg_is_compared_after_the_same_encoding(uhr, tiny_flux, tmp_path):
    one, two = tmp_path / "one.jpg", tmp_path / "two.jpg"
    uhr("euler", "--model", tiny_flux, "--out", one, *SMALL, "--quality", 70)
    assert record.read_record(one)["file"] == {"format": "jpeg", "quality": 70}
    assert "identical: all" in uhr("--repeat", one, "--out", two).out
    assert one.read_bytes()[-500:] == two.read_bytes()[-500:]
    assert "identical: all" in uhr("--repeat", tmp_path / "one.json", "--out", tmp_path / "three.png").out
    # the PNG has the pixels before JPEG changed them, and is the same when it is made again
    assert "identical: all" in uhr("--repeat", tmp_path / "three.png", "--out", tmp_path / "four.webp").out


def test_a_webp_above_pillows_limit_is_repeated_and_the_limit_is_left_as_it_was(
    uhr, tiny_flux, tmp_path, monkeypatch
):
    one, two = tmp_path / "one.webp", tmp_path / "two.webp"
    uhr("euler", "--model", tiny_flux, "--out", one, *SMALL, "--record", "image")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(Image.DecompressionBombError):
        Image.open(one)
    assert "identical: all" in uhr("--repeat", one, "--out", two).out
    assert Image.MAX_IMAGE_PIXELS == 1000
    # one of another size than the repeated image is not decoded
    with pytest.raises(UserError, match="cannot be read"):
        repeat.compare(one, coloured((8, 8)), Encoding(format="webp", quality=95))


def test_sizes_and_transparency_that_a_format_lacks_are_errors_before_loading(
    uhr, tiny_flux, tmp_path, monkeypatch
):
    from uhr.models.generate import session

    monkeypatch.setattr(session, "Session", None)
    wide = ("--model", tiny_flux, "--prompt", "x", "--size", "16400x64", "--set", "shift=static")
    error = uhr("euler", *wide, "--out", tmp_path / "a.webp", code=1).err
    assert "a WebP has at most 16383 px a side, and this image 16400x64: write a PNG" in error
    coloured((64, 64), "RGBA").save(tmp_path / "given.png")
    given = ("--model", tiny_flux, "--prompt", "x", "--image", tmp_path / "given.png")
    assert "has no transparency" in uhr("sdedit", *given, "--out", tmp_path / "a.jpg", code=1).err
    assert not list(tmp_path.glob("a.*"))


def test_a_set_takes_none_of_this(uhr, tiny_flux, tmp_path):
    (tmp_path / "p.txt").write_text("a\nb\n")
    for more, message in (
        (("--record", "none"), "--record none is an option for one image"),
        (("--quality", 80), "--quality 80 is an option for one image"),
    ):
        made = ("--model", tiny_flux, "--prompts", tmp_path / "p.txt", "--out", tmp_path / "set")
        assert message in uhr("euler", *made, *more, code=1).err
    made = ("--model", tiny_flux, "--prompts", tmp_path / "p.txt", "--out", tmp_path / "set.webp")
    assert "is a file, and this makes a set" in uhr("euler", *made, code=1).err


def test_a_profile_of_the_input_is_in_the_jpeg(uhr, tiny_flux, forge, tmp_path):
    profile = forge.wide_gamut_profile()
    coloured((64, 64)).save(tmp_path / "given.png", icc_profile=profile)
    given = ("--image", tmp_path / "given.png", "--prompt", "x", "--scale", 2, "--steps", 5)
    out = tmp_path / "a.jpg"
    uhr("sdedit", "--model", tiny_flux, *given, "--out", out, "--device", "cpu")
    found = Image.open(out)
    assert found.info["icc_profile"] == profile
    assert ImageCms.ImageCmsProfile(io.BytesIO(found.info["icc_profile"])).profile is not None
    assert Path(out).with_suffix(".json").exists()
