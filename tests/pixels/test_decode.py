"""The one decode: equal to Pillow's pixels, upright, in sRGB, and strict about what is not whole."""

import io
import threading

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps

from uhr.pixels.decode import PixelLimits, decode, fit, jpeg_preview, read_bytes, resize
from uhr.pixels.types import PixelFault


def fault_of(data: bytes, **limits: int) -> PixelFault:
    with pytest.raises(PixelFault) as caught:
        decode(data, PixelLimits(**limits))
    return caught.value


@given(data=st.data())
def test_the_stored_grid_is_pillows_to_the_bit(data, forge) -> None:
    content, _ = data.draw(forge.files(("JPEG", "PNG", "WEBP", "GIF", "BMP", "AVIF")))
    image = Image.open(io.BytesIO(content))
    bgr = decode(content).bgr
    if image.mode == "I;16":
        expected = np.repeat((np.asarray(image) >> 8).astype(np.uint8)[..., None], 3, axis=2)
    else:
        expected = np.asarray(image.convert("RGB"))[..., ::-1]
    # CMYK without a profile is a convention, which the two libraries round differently
    assert np.abs(bgr.astype(int) - expected).max() <= (2 if image.mode == "CMYK" else 0)


@given(data=st.data())
def test_gray_is_opencvs_of_the_full_colour_decode(data, forge) -> None:
    content, _ = data.draw(forge.files(("JPEG", "PNG", "WEBP")))
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    bgr = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
    assert np.array_equal(decode(content).gray(), cv2.cvtColor(bgr, cv2.COLOR_BGR2GRAY))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_rgb_is_upright_for_every_orientation(forge, format, orientation) -> None:
    image = forge.image(40, 24)
    data = forge.encode(image, format, orientation)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    decoded = decode(data)
    assert np.array_equal(decoded.rgb(), expected)
    assert decoded.bgr.shape[:2] == (24, 40), "the stored grid is not turned"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_box_is_cut_in_upright_pixels(forge, orientation) -> None:
    data = forge.encode(forge.image(50, 30), "PNG", orientation)
    whole = decode(data).rgb()
    assert np.array_equal(decode(data).rgb((3, 5, 20, 11)), whole[5:16, 3:23])


@pytest.mark.parametrize(
    ("format", "mode"),
    [("PNG", "LA"), ("PNG", "RGBA"), ("PNG", "P"), ("WEBP", "RGBA"), ("GIF", "P"), ("TIFF", "RGBA")],
)
def test_transparency_is_laid_over_white(forge, format, mode) -> None:
    image = forge.image(32, 20, mode)
    settings_of = {"transparency": 5} if mode == "P" else {"lossless": True} if format == "WEBP" else {}
    data = forge.encode(image, format, **settings_of)
    rgba = Image.open(io.BytesIO(data)).convert("RGBA")
    expected = np.asarray(Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB"))
    assert np.abs(decode(data).rgb().astype(int) - expected).max() <= 1


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_colour_key_of_a_png_is_transparent(forge, mode) -> None:
    image = Image.new(mode, (8, 8), 10 if mode == "L" else (10, 20, 30))
    image.putpixel((2, 3), 200 if mode == "L" else (200, 100, 50))
    data = forge.encode(image, "PNG", transparency=10 if mode == "L" else (10, 20, 30))
    rgb = decode(data).rgb()
    assert (rgb[0, 0] == 255).all()
    assert tuple(rgb[3, 2]) == ((200,) * 3 if mode == "L" else (200, 100, 50))


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_sixteen_bit_gray_keeps_its_upper_eight_bits(forge, format) -> None:
    values = np.arange(0, 65536, 64, dtype=np.uint16).reshape(32, 32)
    rgb = decode(forge.encode(Image.fromarray(values), format)).rgb()
    assert np.array_equal(rgb[..., 0], (values >> 8).astype(np.uint8))
    assert np.array_equal(rgb[..., 0], rgb[..., 2])


def test_sixteen_bit_colour_keeps_its_upper_eight_bits() -> None:
    values = np.random.default_rng(0).integers(0, 65536, (20, 30, 3), dtype=np.uint16)
    for suffix in (".png", ".tiff"):
        data = cv2.imencode(suffix, values)[1].tobytes()
        assert np.array_equal(decode(data).rgb()[..., ::-1], (values >> 8).astype(np.uint8))


@pytest.mark.parametrize("mode", ["F", "I"])
def test_floats_and_wide_integers_are_unsupported(forge, mode) -> None:
    fault = fault_of(forge.encode(Image.new(mode, (9, 9)), "TIFF"))
    assert fault.kind == "unsupported"


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_of_an_animation_the_first_frame_counts(forge, format) -> None:
    first, second = (Image.new("RGB", (16, 16), colour) for colour in ("red", "blue"))
    settings_of = {"lossless": True} if format == "WEBP" else {}
    data = forge.encode(first, format, save_all=True, append_images=[second], **settings_of)
    decoded = decode(data)
    assert np.array_equal(decoded.rgb(), np.asarray(first))
    assert decoded.header.animated == (format in ("PNG", "WEBP"))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_a_wide_gamut_comes_out_as_srgb(forge, format) -> None:
    profile = forge.wide_gamut_profile()
    settings_of = {"lossless": True} if format == "WEBP" else {}
    data = forge.encode(forge.image(40, 30), format, icc_profile=profile, **settings_of)
    image = Image.open(io.BytesIO(data))
    transform = ImageCms.buildTransform(
        ImageCms.ImageCmsProfile(io.BytesIO(profile)),
        ImageCms.createProfile("sRGB"),
        "RGB",
        "RGB",
        1,
        ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )
    expected = np.asarray(ImageCms.applyTransform(image.convert("RGB"), transform))
    decoded = decode(data)
    assert np.array_equal(decoded.rgb(), expected)
    assert np.abs(expected.astype(int) - np.asarray(image.convert("RGB"))).max() > 10, "the profile matters"
    assert np.array_equal(decoded.bgr, np.asarray(image.convert("RGB"))[..., ::-1]), (
        "gray measures see no profile"
    )


@pytest.mark.parametrize("format", ["JPEG", "TIFF"])
def test_cmyk_is_converted_by_its_profile(forge, format) -> None:
    profile = forge.cmyk_profile()
    data = forge.encode(forge.image(40, 30, "CMYK"), format, icc_profile=profile)
    stored = Image.open(io.BytesIO(data))
    transform = ImageCms.buildTransform(
        ImageCms.ImageCmsProfile(io.BytesIO(profile)),
        ImageCms.createProfile("sRGB"),
        "CMYK",
        "RGB",
        1,
        ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )
    expected = np.asarray(ImageCms.applyTransform(stored, transform)).astype(int)
    assert np.array_equal(decode(data).rgb(), expected)
    assert np.abs(expected - np.asarray(stored.convert("RGB"))).mean() > 5, "the profile matters"


def test_gray_under_a_colour_profile_stays_gray(forge) -> None:
    tagged = forge.encode(forge.image(20, 20, "L"), "JPEG", icc_profile=forge.wide_gamut_profile(1.0))
    rgb = decode(tagged).rgb()
    assert np.ptp(rgb.astype(int), axis=2).max() <= 1
    plain = decode(forge.encode(forge.image(20, 20, "L"), "JPEG")).rgb()
    assert rgb.mean() > plain.mean() + 20, "linear light, encoded in sRGB, is brighter"


def test_an_srgb_profile_moves_nothing(forge) -> None:
    plain, tagged = (
        decode(forge.encode(forge.image(30, 30), "PNG", **with_profile))
        for with_profile in ({}, {"icc_profile": forge.srgb_profile()})
    )
    assert np.array_equal(plain.rgb(), tagged.rgb())
    assert tagged.notes == []


@pytest.mark.parametrize("profile", [b"no profile at all", b"\0" * 400])
def test_a_broken_profile_leaves_the_colours_and_says_so(forge, profile) -> None:
    decoded = decode(forge.encode(forge.image(30, 30), "PNG", icc_profile=profile))
    assert np.array_equal(decoded.rgb(), decoded.bgr[..., ::-1])
    assert any("ICC profile ignored" in note for note in decoded.notes)


def test_a_profile_of_another_colour_space_is_ignored_and_noted(forge) -> None:
    decoded = decode(forge.encode(forge.image(30, 30, "CMYK"), "JPEG", icc_profile=forge.srgb_profile()))
    assert "it is for RGB, the picture is CMYK" in decoded.notes[0]


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("keep", [0.3, 0.6, 0.99])
def test_a_truncated_file_fails_as_truncated(forge, format, keep) -> None:
    settings_of = {"progressive": True} if format == "JPEG" and keep == 0.6 else {}
    data = forge.encode(forge.image(300, 200), format, **settings_of)
    assert fault_of(data[: int(keep * len(data))]).kind == "truncated"


@pytest.mark.parametrize("missing", [1, 2, 20])
def test_a_jpeg_without_its_last_bytes_is_truncated(forge, missing) -> None:
    assert fault_of(forge.encode(forge.image(64, 64), "JPEG")[:-missing]).kind == "truncated"


@pytest.mark.parametrize("keep", [0.5, 0.95])
def test_a_truncated_gif_or_tiff_fails(forge, keep) -> None:
    for format in ("GIF", "TIFF"):
        data = forge.encode(forge.image(300, 200, "P" if format == "GIF" else "RGB"), format)
        assert fault_of(data[: int(keep * len(data))]).kind in ("truncated", "corrupt")


def test_a_jpeg_whose_scan_stops_early_is_corrupt_although_libjpeg_fills_it_up(forge) -> None:
    data = bytearray(forge.encode(forge.image(300, 200), "JPEG"))
    middle = len(data) // 2
    data[middle : middle + 2] = b"\xff\xd9"
    fault = fault_of(bytes(data))
    assert fault.kind == "corrupt"
    assert "premature end" in fault.message


def test_a_wrong_byte_in_a_png_is_corrupt(forge) -> None:
    data = bytearray(forge.encode(forge.image(300, 200), "PNG"))
    data[len(data) // 2] ^= 0xFF
    assert fault_of(bytes(data)).kind == "corrupt"


@given(data=st.data(), noise=st.binary(min_size=1, max_size=60), where=st.floats(0, 1))
def test_damaged_bytes_give_an_image_or_a_fault(data, forge, noise, where) -> None:
    content, _ = data.draw(forge.files(("JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP", "AVIF")))
    start = int(where * len(content))
    try:
        decoded = decode(content[:start] + noise + content[start + len(noise) :], PixelLimits(pixels=10**6))
    except PixelFault:
        return
    assert decoded.rgb().shape == (decoded.header.height, decoded.header.width, 3)


def test_decoders_print_nothing_on_the_terminal(forge, capfd) -> None:
    data = forge.encode(forge.image(100, 100), "JPEG")
    fault_of(data[: len(data) // 2])
    fault_of(forge.encode(forge.image(100, 100), "PNG")[:-500])
    assert capfd.readouterr().err == ""


def test_what_others_print_meanwhile_is_passed_on(forge, capfd) -> None:
    import os

    data = forge.encode(forge.image(2000, 2000), "PNG")
    done = threading.Event()

    def chatter() -> None:
        while not done.is_set():
            os.write(2, b"a line of somebody else\n")

    thread = threading.Thread(target=chatter)
    thread.start()
    try:
        notes = decode(data).notes
    finally:
        done.set()
        thread.join()
    assert notes == []
    assert "a line of somebody else" in capfd.readouterr().err


def test_a_bomb_is_refused_by_its_header(forge) -> None:
    import struct

    bomb = forge.png_with_header(struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0))
    fault = fault_of(bomb)
    assert fault.kind == "too large"
    assert "100000 x 100000" in fault.message
    assert "400 Mpx" in fault.message


@pytest.mark.parametrize("format", ["PNG", "GIF", "TIFF"])
def test_the_pixel_limit_is_inclusive_and_the_same_for_all_formats(forge, format) -> None:
    data = forge.encode(forge.image(20, 10, "P" if format == "GIF" else "RGB"), format)
    assert decode(data, PixelLimits(pixels=200)).bgr.shape == (10, 20, 3)
    assert fault_of(data, pixels=199).kind == "too large"


def test_an_image_beyond_pillows_own_guard_is_opened(forge, monkeypatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    assert decode(forge.encode(forge.image(30, 20, "P"), "GIF")).rgb().shape == (20, 30, 3)
    assert Image.MAX_IMAGE_PIXELS == 50


def test_a_file_larger_than_the_limit_is_not_read(forge, tmp_path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(forge.encode(forge.image(20, 10), "PNG"))
    with pytest.raises(PixelFault, match="more than the limit") as caught:
        read_bytes(path, PixelLimits(file_bytes=100))
    assert caught.value.kind == "too large"


def test_empty_missing_and_folder_are_distinguished(tmp_path) -> None:
    empty = tmp_path / "empty.jpg"
    empty.touch()
    for path, kind in (
        (empty, "empty file"),
        (tmp_path / "none.jpg", "unreadable"),
        (tmp_path, "unreadable"),
    ):
        with pytest.raises(PixelFault) as caught:
            decode(read_bytes(path))
        assert caught.value.kind == kind


def test_the_format_is_the_contents_whatever_the_name(forge, tmp_path) -> None:
    path = tmp_path / "photo.png"
    path.write_bytes(forge.encode(forge.image(20, 10), "JPEG"))
    assert decode(read_bytes(path)).rgb().shape == (10, 20, 3)


@given(factor=st.integers(1, 6), height=st.integers(1, 12), width=st.integers(1, 12), seed=st.integers(0, 9))
def test_shrinking_by_a_whole_factor_is_the_mean_of_each_block(factor, height, width, seed) -> None:
    pixels = np.random.default_rng(seed).integers(
        0, 256, (height * factor, width * factor, 3), dtype=np.uint8
    )
    blocks = pixels.reshape(height, factor, width, factor, 3).mean(axis=(1, 3))
    assert np.abs(resize(pixels, height, width) - blocks).max() <= 1


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 80), st.integers(1, 80))
def test_resize_gives_the_requested_size_and_keeps_a_constant(height, width, new_height, new_width) -> None:
    resized = resize(np.full((height, width, 3), 77, np.uint8), new_height, new_width)
    assert resized.shape == (new_height, new_width, 3)
    assert (resized == 77).all()


def test_fit_never_enlarges() -> None:
    pixels = np.zeros((30, 60, 3), np.uint8)
    assert fit(pixels, 100) is pixels
    assert fit(pixels, 20).shape == (10, 20, 3)
    assert fit(np.zeros((1, 900, 3), np.uint8), 100).shape == (1, 100, 3)


def test_a_preview_is_a_small_upright_jpeg(forge) -> None:
    decoded = decode(forge.encode(forge.image(800, 400), "JPEG", 6))
    data, width, height = jpeg_preview(decoded.rgb(long_side=320), 320)
    assert (width, height) == (160, 320) == Image.open(io.BytesIO(data)).size
    whole = resize(decoded.rgb(), 320, 160).astype(int)
    assert np.abs(decode(data).rgb() - whole).mean() < 3
