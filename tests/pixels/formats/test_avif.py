"""AVIF by its boxes: brands, depth, orientation, transparency and colours are those of the file."""

import io
import struct

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from uhr.pixels import exif as exif_module
from uhr.pixels.decode import decode
from uhr.pixels.formats.isobmff import av1, heif
from uhr.pixels.formats.isobmff.avif import _ORIENTATIONS
from uhr.pixels.headers import read_header
from uhr.pixels.types import FileBytes, PixelFault

SRGB_NCLX = b"nclx\0\x01\0\x0d"


def avif(image: Image.Image, **settings) -> bytes:
    buffer = io.BytesIO()
    sampling = {} if image.mode == "L" else {"subsampling": "4:4:4"}
    image.save(buffer, "AVIF", **{"quality": 100, "speed": 9, **sampling, **settings})
    return buffer.getvalue()


def with_nclx(data: bytes, primaries: int, transfer: int) -> bytes:
    assert SRGB_NCLX in data
    return data.replace(SRGB_NCLX, b"nclx" + struct.pack(">HH", primaries, transfer))


@pytest.fixture(scope="module")
def plain(forge) -> bytes:
    return avif(forge.image(64, 48))


def fault_of(data: bytes) -> PixelFault:
    with pytest.raises(PixelFault) as caught:
        decode(data)
    return caught.value


@pytest.mark.parametrize("major", [b"avif", b"mif1", b"msf1", b"miaf", b"MA1B", b"heic", b"isom", b"abcd"])
def test_a_compatible_brand_makes_an_avif_of_any_major_brand(plain, major) -> None:
    data = plain[:8] + major + plain[12:]
    assert np.array_equal(decode(data).rgb(), decode(plain).rgb())
    assert read_header(data) == read_header(plain)


@pytest.mark.parametrize(
    "brand",
    [
        b"heic",
        b"heix",
        b"hevc",
        b"hevx",
        b"heim",
        b"heis",
        b"hevm",
        b"hevs",
        b"mif1",
        b"msf1",
        b"miaf",
        b"avci",
    ],
)
@pytest.mark.parametrize("compatible", [b"", b"mif1heic", b"miaf"])
def test_a_heif_without_an_avif_brand_is_unsupported(brand, compatible) -> None:
    box = b"ftyp" + brand + bytes(4) + compatible
    data = struct.pack(">I", len(box) + 4) + box + bytes(200)
    fault = fault_of(data)
    assert fault.kind == "unsupported"
    assert "HEI" in fault.message


def test_an_avif_brand_around_another_codec_is_unsupported_and_the_codec_named(plain) -> None:
    data = plain.replace(b"av01Color", b"hvc1Color")
    assert data != plain
    fault = fault_of(data)
    assert fault.kind == "unsupported"
    assert "hvc1" in fault.message


@pytest.mark.parametrize(("mode", "expected"), [("L", "L"), ("RGB", "RGB"), ("RGBA", "RGBA"), ("LA", "RGBA")])
def test_mode_and_size_are_the_files(forge, mode, expected) -> None:
    header = read_header(avif(forge.image(70, 31, mode)))
    assert (header.mode, header.raw_width, header.raw_height, header.bit_depth) == (expected, 70, 31, 8)
    assert header.has_alpha == (expected == "RGBA")


@pytest.mark.parametrize("bits", [8, 10, 12])
@pytest.mark.parametrize("colour", [True, False])
def test_bit_depth_is_the_files(bits, colour) -> None:
    y, x = np.mgrid[0:64, 0:96]
    pixels = np.stack([x * 600, y * 900, (x + y) * 300], -1) if colour else x * 600
    pixels = (pixels >> 16 - bits).astype(np.uint8 if bits == 8 else np.uint16)
    settings = [cv2.IMWRITE_AVIF_DEPTH, bits, cv2.IMWRITE_AVIF_QUALITY, 100]
    done, data = cv2.imencode(".avif", pixels, settings)
    assert done
    decoded = decode(data.tobytes())
    assert decoded.header.bit_depth == bits
    shown = pixels if colour else np.repeat(pixels[..., None], 3, axis=2)
    assert np.abs(decoded.bgr - shown * (255 / ((1 << bits) - 1))).max() < 4


@pytest.mark.parametrize("orientation", range(1, 9))
def test_irot_and_imir_turn_the_image(forge, orientation) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = avif(forge.image(64, 48), exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    decoded = decode(data)
    assert decoded.header.orientation == orientation
    assert np.array_equal(decoded.rgb(), expected)
    assert decoded.bgr.shape == (48, 64, 3)


def test_the_orientation_in_exif_has_no_effect(forge, plain) -> None:
    exif = Image.Exif()
    exif[0x0100] = 6
    data = avif(forge.image(64, 48), exif=exif)
    # Pillow moves an orientation to irot: a tag of the same type and value becomes one here
    width = b"\x01\x00\x00\x04\x00\x00\x00\x01"
    assert data.count(width) == 1
    data = data.replace(width, b"\x01\x12\x00\x04\x00\x00\x00\x01")
    assert exif_module.orientation(data[data.index(b"MM\0*") :]) == 6
    assert read_header(data).orientation == 1
    assert np.array_equal(decode(data).rgb(), decode(plain).rgb())


def equals_png(damage, forge, data: bytes, chunk: tuple[bytes, bytes]) -> bool:
    """Whether an AVIF looks as a PNG of its stored values with a colour chunk does."""
    decoded = decode(data)
    png = forge.encode(Image.fromarray(np.ascontiguousarray(decoded.bgr[..., ::-1])), "PNG")
    expected = decode(png[:33] + damage.png_chunk(*chunk) + png[33:])
    return np.array_equal(decoded.rgb(), expected.rgb()) and not np.array_equal(decoded.rgb(), load(png))


def load(data: bytes) -> np.ndarray:
    return decode(data).rgb()


@pytest.mark.parametrize(("primaries", "transfer"), [(12, 13), (9, 14), (9, 1), (1, 8), (1, 4)])
def test_nclx_means_what_cicp_means_in_a_png(damage, forge, plain, primaries, transfer) -> None:
    data = with_nclx(plain, primaries, transfer)
    assert equals_png(damage, forge, data, (b"cICP", bytes([primaries, transfer, 0, 1])))


@pytest.mark.parametrize(("transfer", "name"), [(16, "PQ"), (18, "HLG")])
def test_hdr_is_unsupported_with_its_header_known(plain, transfer, name) -> None:
    data = with_nclx(plain, 9, transfer)
    assert read_header(data).raw_width == 64
    fault = fault_of(data)
    assert (fault.kind, name in fault.message) == ("unsupported", True)


def test_without_a_colour_box_the_bitstream_says(forge, damage) -> None:
    settings = {"codec": "aom", "advanced": {"color-primaries": "smpte432"}}
    data = avif(forge.image(64, 48), **settings)
    source = FileBytes(data, len(data))
    start, count = heif.read(source).bitstream
    assert av1.sequence_header(data[start : start + count]) == (64, 48, 12, 13)
    assert np.array_equal(decode(data).rgb(), decode(data).bgr[..., ::-1]), (
        "nclx, which says sRGB, goes first"
    )
    without = data.replace(b"colrnclx", b"freenclx")
    assert equals_png(damage, forge, without, (b"cICP", bytes([12, 13, 0, 1])))
    hdr = {"codec": "aom", "advanced": {"color-primaries": "bt2020", "transfer-characteristics": "smpte2084"}}
    hidden = avif(forge.image(64, 48), **hdr).replace(b"colrnclx", b"freenclx")
    assert "PQ" in fault_of(hidden).message


def test_an_embedded_profile_goes_before_nclx(forge) -> None:
    profile = forge.wide_gamut_profile()
    data = avif(forge.image(64, 48), icc_profile=profile)
    decoded = decode(data)
    assert decoded.header.has_icc
    assert decoded.planes.profile == profile
    png = forge.encode(
        Image.fromarray(np.ascontiguousarray(decoded.bgr[..., ::-1])), "PNG", icc_profile=profile
    )
    assert np.array_equal(decoded.rgb(), decode(png).rgb())


def test_of_a_sequence_the_first_frame_is_taken(forge) -> None:
    first, second = forge.image(64, 48), forge.image(64, 48, seed=1)
    data = avif(first, save_all=True, append_images=[second])
    decoded = decode(data)
    assert decoded.header.animated
    assert (decoded.header.raw_width, decoded.header.raw_height) == (64, 48)
    assert np.abs(decoded.rgb().astype(int) - np.asarray(first)).max() < 12
    assert np.array_equal(decode(data[:8] + b"msf1" + data[12:]).rgb(), decoded.rgb())


def with_aperture(data: bytes, *fields: int) -> bytes:
    """With a `clap` of these eight numbers in place of `pixi`, which is optional: property 2 of the image,
    whose essential bit is set.
    """
    found = data.index(b"pixi")
    pixi = data[found - 4 : found - 4 + int.from_bytes(data[found - 4 : found], "big")]
    clap = struct.pack(">I4sIIIIiIiI", 40, b"clap", *fields)
    return grown(data, pixi, clap).replace(b"\x01\x02\x83\x04", b"\x01\x82\x83\x04")


@pytest.mark.parametrize(
    ("fields", "x", "y", "width", "height"),
    [
        ((64, 1, 48, 1, 0, 1, 0, 1), 0, 0, 64, 48),
        ((60, 1, 40, 1, 0, 1, 0, 1), 2, 4, 60, 40),
        ((60, 1, 40, 1, -2, 1, 4, 1), 0, 8, 60, 40),
        ((61, 1, 96, 2, 3, 2, 0, 1), 3, 0, 61, 48),
    ],
)
def test_a_clean_aperture_cuts_the_image(plain, fields, x, y, width, height) -> None:
    decoded = decode(with_aperture(plain, *fields))
    assert (decoded.header.raw_width, decoded.header.raw_height) == (width, height)
    assert np.array_equal(decoded.rgb(), decode(plain).rgb()[y : y + height, x : x + width])


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ((61, 1, 48, 1, 0, 1, 0, 1), "unsupported"),
        ((60, 1, 40, 1, 5, 1, 0, 1), "corrupt"),
        ((64, 0, 48, 1, 0, 1, 0, 1), "corrupt"),
        ((0, 1, 48, 1, 0, 1, 0, 1), "corrupt"),
    ],
)
def test_a_clean_aperture_between_or_outside_the_pixels_is_a_fault(plain, fields, kind) -> None:
    assert fault_of(with_aperture(plain, *fields)).kind == kind


def grown(data: bytes, old: bytes, new: bytes) -> bytes:
    """The file with a longer box in the property container; all lengths and the place of the data follow."""
    more = len(new) - len(old)
    place = data.index(old)
    changed = bytearray(data[:place] + new + data[place + len(old) :])
    for kind in (b"ipco", b"iprp", b"meta"):
        at = changed.index(kind) - 4
        struct.pack_into(">I", changed, at, struct.unpack_from(">I", changed, at)[0] + more)
    start = data.index(b"mdat") + 4
    at = changed.index(struct.pack(">I", start), changed.index(b"iloc"))
    struct.pack_into(">I", changed, at, start + more)
    return bytes(changed)


@pytest.mark.parametrize("keep", [0.02, 0.05, 0.2, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_a_cut_avif_is_truncated(forge, keep, mode) -> None:
    data = avif(forge.image(64, 48, mode))
    assert fault_of(data[: int(keep * len(data))]).kind == "truncated"
    open_ended = data.index(b"mdat") - 4
    without_length = data[:open_ended] + bytes(4) + data[open_ended + 4 :]
    assert np.array_equal(decode(without_length).rgb(), decode(data).rgb())
    assert fault_of(without_length[:-1]).kind == "truncated"


def test_stray_bytes_behind_the_boxes_do_no_harm(plain) -> None:
    for stray in (b"\0", bytes(100), b"\xff" * 50):
        assert np.array_equal(decode(plain + stray).rgb(), decode(plain).rgb())


def test_all_orientations_of_the_table_are_different() -> None:
    assert set(_ORIENTATIONS.values()) == set(range(1, 9))
