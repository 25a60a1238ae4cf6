"""Given images: what a model is shown of them, and what comes back in their frame."""

import io
import os
import struct

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo

from uhr.base.errors import UserError
from uhr.models.generate.input_images import CHUNK, open_image, without_hidden
from uhr.models.ops.filters import bicubic
from uhr.models.ops.fitting import fit
from uhr.models.ops.sizes import up_to
from uhr.pixels.decode import decode
from uhr.pixels.metadata import metadata_kinds


@pytest.fixture
def opened(tmp_path):
    """Opens the image in these bytes."""

    def of(data):
        path = tmp_path / "given"
        path.write_bytes(data)
        return open_image(path)

    return of


def same(size):
    """Nothing is enlarged and nothing padded."""
    return fit(size, size, lambda height, width: (height, width))


def doubled(size):
    return fit(size, (2 * size[0], 2 * size[1]), lambda h, w: (up_to(h, 16), up_to(w, 16)))


def levels(image):
    return np.asarray(image).astype(int)


def muted(image):
    """Colours that every space has, none so dark that 8 bits hold little of it."""
    return Image.fromarray((levels(image) // 5 + 100).astype(np.uint8))


def over_white(given_image):
    """uint8 [H, W, 3] as it is seen on white."""
    colour = levels(given_image.rgb)
    if given_image.alpha is None:
        return colour
    alpha = levels(given_image.alpha)[..., None]
    return (colour * alpha + 255 * (255 - alpha) + 127) // 255


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP", "AVIF"])
@pytest.mark.parametrize("orientation", [None, 3, 6, 7])
def test_a_model_is_shown_what_is_trained_on_of_every_format_and_mode(format, orientation, forge, opened):
    for mode in forge.MODES[format]:
        data = forge.encode(forge.image(33, 20, mode), format, orientation)
        expected = decode(data).rgb().astype(int)
        found = opened(data)
        assert found.size == expected.shape[:2]
        assert np.abs(over_white(found) - expected).max() <= 1, mode
        assert found.gray == (mode in ("1", "L", "LA", "I;16"))


@pytest.mark.parametrize("profile", ["srgb_profile", "wide_gamut_profile", "cmyk_profile"])
def test_under_a_profile_too(profile, forge, opened):
    mode = "CMYK" if profile == "cmyk_profile" else "RGB"
    data = forge.encode(
        forge.image(40, 30, mode),
        "TIFF" if mode == "CMYK" else "PNG",
        icc_profile=getattr(forge, profile)(),
    )
    assert np.abs(levels(opened(data).rgb) - decode(data).rgb()).max() <= 1


def test_colours_of_a_wide_gamut_are_shown_as_srgb_by_the_book(forge, opened):
    """AdobeRGB's primaries and gamma 2.2, to XYZ, to sRGB's; colours that both have."""
    stored = np.array([[[128, 128, 128], [200, 150, 120], [110, 140, 90], [90, 100, 160]]], np.uint8)
    data = forge.encode(Image.fromarray(stored), "PNG", icc_profile=forge.wide_gamut_profile())
    wide = np.array([[0.60974, 0.20528, 0.14919], [0.31111, 0.62567, 0.06322], [0.01947, 0.06087, 0.74457]])
    narrow = np.array([[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]])
    linear = (stored / 255) ** 2.2 @ (np.linalg.inv(narrow) @ wide).T
    expected = 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    shown = opened(data).rgb
    assert np.abs(levels(shown) - expected).max() <= 1.5
    assert np.abs(levels(shown) - stored).max() > 5


def test_what_was_generated_comes_back_in_the_profile_of_the_image(forge, opened):
    """A reader that obeys the profile sees the colours that the model generated."""
    profile = forge.wide_gamut_profile()
    found = opened(forge.encode(forge.image(40, 30), "PNG", icc_profile=profile))
    generated = muted(forge.image(40, 30, seed=3))
    result = found.restore(generated, same((30, 40)))
    assert result.info == {"icc_profile": profile}
    assert np.abs(levels(result) - levels(generated)).max() > 5
    seen = ImageCms.profileToProfile(
        result,
        ImageCms.ImageCmsProfile(io.BytesIO(profile)),
        ImageCms.createProfile("sRGB"),
        ImageCms.Intent.RELATIVE_COLORIMETRIC,
    )
    assert np.abs(levels(seen) - levels(generated)).max() <= 2


def test_an_image_that_nothing_is_done_to_comes_back_under_each_profile(forge, opened):
    """Under a wide one to rounding; those of sRGB itself and of no profile, to the bit."""
    image = muted(forge.image(40, 30))
    for profile, most in ((None, 0), (forge.srgb_profile(), 0), (forge.wide_gamut_profile(), 2)):
        settings = {} if profile is None else {"icc_profile": profile}
        found = opened(forge.encode(image, "PNG", **settings))
        result = found.restore(found.rgb, same(found.size))
        assert result.info.get("icc_profile") == profile
        assert np.abs(levels(result) - levels(image)).max() <= most
        assert found.notes == ()


def test_a_gray_image_stays_gray_whatever_was_generated(forge, opened):
    for mode, profile in (
        ("L", None),
        ("LA", None),
        ("1", None),
        ("I;16", None),
        ("L", forge.gray_profile(1.8)),
    ):
        settings = {} if profile is None else {"icc_profile": profile}
        found = opened(forge.encode(forge.image(40, 30, mode), "PNG", **settings))
        result = found.restore(forge.image(40, 30, seed=1), same((30, 40)))
        assert result.mode == ("LA" if mode == "LA" else "L")
        assert result.info.get("icc_profile") == profile
        untouched = found.restore(found.rgb, same((30, 40)))
        upper = forge.image(40, 30, mode)
        upper = levels(upper) >> 8 if mode == "I;16" else levels(upper.convert(result.mode))
        assert np.abs(levels(untouched) - upper).max() <= (2 if profile else 0)
    # and its darkness is shown by the profile: gamma 1.8 is lighter than sRGB's
    assert levels(found.rgb).mean() > levels(forge.image(40, 30, "L")).mean() + 3


def test_gray_pixels_under_a_profile_for_colours_come_back_as_gray_colours_under_it(forge, opened):
    profile, image = forge.wide_gamut_profile(), muted(forge.image(40, 30, "L"))
    found = opened(forge.encode(image, "TIFF", icc_profile=profile))
    result = found.restore(forge.image(40, 30, seed=1), same((30, 40)))
    assert (result.mode, result.info["icc_profile"]) == ("RGB", profile)
    assert np.ptp(levels(result), axis=-1).max() <= 1
    untouched = found.restore(found.rgb, same((30, 40)))
    assert np.abs(levels(untouched)[..., 1] - levels(image)).max() <= 2


def test_cmyk_comes_back_as_srgb_and_says_so(forge, opened):
    data = forge.encode(forge.image(40, 30, "CMYK"), "JPEG", icc_profile=forge.cmyk_profile())
    found = opened(data)
    assert found.notes == ("the image was CMYK: the result is sRGB",)
    generated = forge.image(40, 30)
    result = found.restore(generated, same((30, 40)))
    assert np.array_equal(levels(result), levels(generated))
    embedded = ImageCms.ImageCmsProfile(io.BytesIO(result.info["icc_profile"]))
    assert "sRGB" in ImageCms.getProfileDescription(embedded)
    bare = opened(forge.encode(forge.image(40, 30, "CMYK"), "JPEG"))
    assert "CMYK without a profile" in bare.notes[0]
    assert "icc_profile" not in bare.restore(generated, same((30, 40))).info


@pytest.mark.parametrize("profile", ["broken", "of other pixels", "truncated"])
def test_a_profile_that_cannot_be_used_is_ignored_not_passed_on_and_noted(profile, forge, opened):
    made = {
        "broken": b"no profile at all",
        "of other pixels": forge.cmyk_profile(),
        "truncated": forge.wide_gamut_profile()[:200],
    }[profile]
    image = forge.image(40, 30)
    found = opened(forge.encode(image, "PNG", icc_profile=made))
    assert any(note.startswith("ICC profile ignored") for note in found.notes)
    assert np.array_equal(levels(found.rgb), levels(image))
    assert found.restore(image, same((30, 40))).info == {}


def test_transparency_is_enlarged_as_colours_are_and_put_back(forge, opened):
    stored = forge.image(37, 25, "RGBA")
    found = opened(forge.encode(stored, "PNG"))
    fitted = doubled((25, 37))
    generated = forge.image(80, 64)
    assert fitted.made == (64, 80)
    result = found.restore(generated, fitted)
    assert (result.mode, result.size) == ("RGBA", (74, 50))
    alpha = torch.from_numpy(levels(stored)[..., 3]).float()[None, None] / 255
    expected = (bicubic(alpha, 50, 74).clamp(0, 1) * 255).round()
    assert np.array_equal(levels(result)[..., 3], expected[0, 0].int().numpy())
    assert np.array_equal(levels(result)[..., :3], levels(generated)[:50, :74])
    kept = found.restore(found.rgb, same((25, 37)))
    assert np.array_equal(levels(kept)[..., 3], levels(stored)[..., 3])
    opaque = opened(forge.encode(forge.image(37, 25), "PNG"))
    assert opaque.restore(generated, fitted).mode == "RGB"
    of_nothing = Image.new("RGBA", (9, 9), (1, 2, 3, 255))
    assert opened(forge.encode(of_nothing, "PNG")).restore(of_nothing, same((9, 9))).mode == "RGB"


def test_a_colour_key_and_a_palettes_transparency_count(forge, opened):
    image = forge.image(30, 20, "RGB").quantize(8)
    found = opened(forge.encode(image, "PNG", transparency=3))
    hidden = levels(image) == 3
    assert np.array_equal(levels(found.alpha) == 0, hidden)
    keyed = Image.new("RGB", (4, 4), (9, 9, 9))
    keyed.putpixel((1, 2), (200, 0, 0))
    found = opened(forge.encode(keyed, "PNG", transparency=(9, 9, 9)))
    assert (levels(found.alpha) > 0).sum() == 1


def test_of_several_frames_the_first_is_taken_and_noted(forge, opened):
    frames = [forge.image(30, 20, seed=seed) for seed in (0, 1)]
    for format in ("PNG", "TIFF", "WEBP", "GIF", "AVIF"):
        settings = {"save_all": True, "append_images": frames[1:]}
        if format == "WEBP":
            settings["lossless"] = True
        found = opened(forge.encode(frames[0], format, **settings))
        assert found.notes == ("of several frames the first is taken",)
        if format in ("PNG", "TIFF", "WEBP"):
            assert np.array_equal(levels(found.rgb), levels(frames[0]))
        assert opened(forge.encode(frames[0], format)).notes == ()


XMP = b"<x:xmpmeta xmlns:x='adobe:ns:meta/'/>"


@pytest.mark.parametrize(
    ("format", "settings", "kinds"),
    [
        ("JPEG", {"exif": True}, "EXIF"),
        ("JPEG", {"xmp": XMP}, "XMP"),
        ("JPEG", {"exif": True, "xmp": XMP, "comment": b"by hand"}, "EXIF and XMP and comments"),
        ("PNG", {"exif": True}, "EXIF"),
        ("PNG", {"text": ("Author", "somebody")}, "text"),
        ("PNG", {"text": ("XML:com.adobe.xmp", XMP.decode())}, "XMP"),
        ("WEBP", {"exif": True, "xmp": XMP}, "EXIF and XMP"),
        ("TIFF", {"exif": True}, "EXIF"),
        ("AVIF", {"exif": True, "xmp": XMP}, "EXIF and XMP"),
    ],
)
def test_metadata_that_are_not_passed_on_are_noted_by_kind(forge, opened, format, settings, kinds):
    image, settings = forge.image(30, 20), dict(settings)
    if "exif" in settings:
        exif = Image.Exif()
        exif[0x010F] = "a camera"
        exif.get_ifd(0x8769)[0x9286] = b"ASCII\0\0\0taken by hand"
        settings["exif"] = exif.tobytes()
    if "text" in settings:
        settings["pnginfo"] = PngInfo()
        settings["pnginfo"].add_itxt(*settings.pop("text"))
    found = opened(forge.encode(image, format, **settings))
    assert found.notes == (f"its {kinds} metadata are not passed on",)
    assert opened(forge.encode(image, format)).notes == ()


def test_a_record_of_ours_is_known_by_the_files_hash_and_is_no_loss(forge, opened):
    info = PngInfo()
    info.add_text(CHUNK, "{}")
    assert opened(forge.encode(forge.image(30, 20), "PNG", pnginfo=info)).notes == ()


@given(st.binary(max_size=200), st.sampled_from(["JPEG", "PNG", "WEBP", "AVIF"]))
def test_metadata_of_any_bytes_are_looked_for_without_a_fault(data, format):
    starts = {"JPEG": b"\xff\xd8\xff\xe1", "PNG": b"\x89PNG\r\n\x1a\n", "WEBP": b"RIFF....WEBPEXIF"}
    assert isinstance(metadata_kinds(starts.get(format, b"") + data, format), list)


def test_of_deep_values_the_upper_bits_are_taken_and_noted(forge, opened):
    deep = "of 16 bits a value the upper eight are taken"
    for format in ("PNG", "TIFF"):
        found = opened(forge.encode(forge.image(30, 20, "I;16"), format))
        assert found.notes == (deep,)
        assert np.array_equal(levels(found.rgb)[..., 0], levels(forge.image(30, 20, "I;16")) >> 8)
    header = struct.pack(">IIBBBBB", 2, 1, 16, 4, 0, 0, 0)
    gray_alpha = forge.png(header, b"\0" + struct.pack(">HHHH", 0x80FF, 0xFFFF, 0x10FF, 0x8000))
    found = opened(gray_alpha)
    assert (found.gray, found.notes) == (True, (deep,))
    assert levels(found.restore(found.rgb, same((1, 2)))).tolist() == [[[0x80, 0xFF], [0x10, 0x80]]]
    colours = forge.png(
        struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0), b"\0" + struct.pack(">HHH", 256, 512, 767)
    )
    assert (levels(opened(colours).rgb).tolist(), opened(colours).notes) == ([[[1, 2, 2]]], (deep,))


def test_what_nobody_saw_does_not_shine_through_at_the_edges(forge, opened):
    """A red disc whose hidden surroundings are green: whatever enlarges the colours finds no green."""
    y, x = np.mgrid[:40, :50]
    inside = (x - 20) ** 2 + (y - 18) ** 2 < 100
    array = np.where(inside[..., None], (200, 30, 20, 255), (0, 255, 0, 0)).astype(np.uint8)
    found = opened(forge.encode(Image.fromarray(array), "PNG"))
    assert np.array_equal(levels(found.rgb)[inside], array[inside][:, :3])
    handed = found.padded(doubled((40, 50)))
    assert handed.shape == (1, 3, 40, 56)
    assert handed[0, 1].max() < 0.15
    nothing = Image.new("RGB", (5, 4), (7, 8, 9))
    assert without_hidden(nothing, Image.new("L", (5, 4), 0)).getpixel((2, 2)) == (7, 8, 9)


@given(data=st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damaged_bytes_are_an_image_or_one_line(data, forge, opened):
    whole, _ = data.draw(forge.files(("JPEG", "PNG", "WEBP", "TIFF", "GIF")))
    damaged = bytearray(whole[: data.draw(st.integers(0, len(whole)))])
    for _ in range(data.draw(st.integers(0, 4))):
        if damaged:
            damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    found = outcome(opened, bytes(damaged))
    if isinstance(found, UserError):
        assert found.fix
        assert "\n" not in str(found)
    else:
        assert found.rgb.mode == "RGB"
        found.restore(found.rgb, same(found.size))


def outcome(opened, data):
    """An image, or why it is none."""
    try:
        return opened(data)
    except UserError as error:
        return error


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", r"is not an image that can be read \(the file has no bytes\): known formats: JPEG"),
        (b"no image", "is not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "of an unsupported kind .*PostScript"),
        ("bomb", r"60000 x 60000 pixels, more than the limit of 400 Mpx\): cut it"),
        ("half", "is damaged .*: open it in an editor"),
        ("float", "of an unsupported kind .*32-bit.*: convert it"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "of an unsupported kind .*HEI"),
    ],
)
def test_what_is_no_image_is_one_line_with_the_fix(data, message, forge, opened):
    made = {
        "bomb": forge.png_with_header(struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)),
        "half": forge.encode(forge.image(64, 64), "JPEG")[:900],
        "float": forge.encode(Image.new("F", (4, 4)), "TIFF"),
    }
    with pytest.raises(UserError, match=message) as error:
        opened(made.get(data, data))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("step", "format"),
    [
        ("uhr.pixels.editing.restoration", "PNG"),
        ("uhr.pixels.decode.upright", "JPEG"),
        ("uhr.pixels.decoders._attach_colours", "TIFF"),
        ("uhr.pixels.decode.decode_planes", "GIF"),
        ("uhr.models.generate.input_images._metadata_note", "WEBP"),
    ],
)
@pytest.mark.parametrize("bug", [TypeError, ValueError, KeyError, AssertionError])
def test_a_bug_of_ours_is_not_reported_as_damage(step, format, bug, forge, opened, monkeypatch):
    def broken(*_, **__):
        raise bug("a bug")

    data = forge.encode(forge.image(8, 8), format)
    opened(data)
    monkeypatch.setattr(step, broken)
    with pytest.raises(bug, match="a bug"):
        opened(data)


def test_a_missing_file_a_folder_and_a_pipe_are_no_images(tmp_path):
    with pytest.raises(UserError, match=r"nothing\.png does not exist: name an image, or a folder"):
        open_image(tmp_path / "nothing.png")
    with pytest.raises(UserError, match="is a folder: name a single image"):
        open_image(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="is not a regular file"):
        open_image(tmp_path / "pipe")


def test_a_file_that_may_not_be_read_is_no_damaged_one(forge, tmp_path, monkeypatch):
    path = tmp_path / "theirs.png"
    path.write_bytes(forge.encode(forge.image(9, 9), "PNG"))

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.open", refuse)
    with pytest.raises(UserError, match=r"theirs\.png: the file cannot be read \(Permission denied\)"):
        open_image(path)
