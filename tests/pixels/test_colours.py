"""Colours that a file names by numbers (cICP, gAMA, cHRM, EXIF) come out as an equal ICC profile's would."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from uhr.pixels import code_points
from uhr.pixels.decode import decode
from uhr.pixels.headers import read_header
from uhr.pixels.types import PixelFault

# linear light of another space to linear light of sRGB (CSS Color 4, section 10, multiplied out)
P3_TO_SRGB = np.array(
    [[1.2249402, -0.2249402, 0.0], [-0.0420570, 1.0420570, 0.0], [-0.0196376, -0.0786361, 1.0982736]]
)
BT2020_TO_SRGB = np.array(
    [
        [1.6604910, -0.5876411, -0.0728499],
        [-0.1245505, 1.1328999, -0.0083494],
        [-0.0181508, -0.1005789, 1.1187297],
    ]
)
SRGB_CHRM = (31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)
ADOBE_CHRM = (31270, 32900, 64000, 33000, 21000, 71000, 15000, 6000)


def srgb_to_linear(values: np.ndarray) -> np.ndarray:
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def linear_to_srgb(values: np.ndarray) -> np.ndarray:
    values = values.clip(0, 1)
    return np.where(values <= 0.0031308, values * 12.92, 1.055 * values ** (1 / 2.4) - 0.055)


def converted(pixels: np.ndarray, matrix: np.ndarray, gamma: float | None = None) -> np.ndarray:
    """By arithmetic: uint8 [..., 3] of a space with the sRGB curve, or a gamma, to sRGB."""
    values = pixels / 255
    linear = srgb_to_linear(values) if gamma is None else values**gamma
    return np.round(linear_to_srgb(linear @ matrix.T) * 255)


@pytest.fixture
def pixels(forge) -> np.ndarray:
    return np.asarray(forge.image(48, 32))


def png_with(damage, forge, pixels: np.ndarray, *chunks: tuple[bytes, bytes], **settings) -> bytes:
    """The pixels as a PNG with these chunks behind its IHDR."""
    data = forge.encode(Image.fromarray(pixels), "PNG", **settings)
    return data[:33] + b"".join(damage.png_chunk(*chunk) for chunk in chunks) + data[33:]


def cicp(primaries: int, transfer: int, matrix: int = 0, full: int = 1) -> tuple[bytes, bytes]:
    return b"cICP", bytes([primaries, transfer, matrix, full])


def gama(encoding: int) -> tuple[bytes, bytes]:
    return b"gAMA", struct.pack(">I", encoding)


def chrm(values: tuple[int, ...]) -> tuple[bytes, bytes]:
    return b"cHRM", struct.pack(">8I", *values)


@pytest.mark.parametrize(
    ("primaries", "transfer", "matrix", "gamma"),
    [
        (12, 13, P3_TO_SRGB, None),
        (9, 13, BT2020_TO_SRGB, None),
        (9, 14, BT2020_TO_SRGB, None),
        (1, 8, np.eye(3), 1.0),
        (1, 4, np.eye(3), 2.2),
        (12, 5, P3_TO_SRGB, 2.8),
    ],
)
def test_cicp_is_converted_to_srgb(damage, forge, pixels, primaries, transfer, matrix, gamma) -> None:
    decoded = decode(png_with(damage, forge, pixels, cicp(primaries, transfer)))
    # LittleCMS computes in 16 bits or less
    assert np.abs(decoded.rgb().astype(int) - converted(pixels, matrix, gamma)).max() <= 2
    assert np.array_equal(decoded.bgr[..., ::-1], pixels), "gray measures see the stored values"
    assert bool(decoded.notes) == (transfer == 14), "a camera curve leaves a note"


def test_code_points_are_converted_as_an_equal_profile_is(damage, forge, pixels) -> None:
    profile = forge.wide_gamut_profile(563 / 256)
    embedded = decode(forge.encode(Image.fromarray(pixels), "PNG", icc_profile=profile)).rgb()
    named = decode(png_with(damage, forge, pixels, gama(45472), chrm(ADOBE_CHRM)))
    assert np.abs(named.rgb().astype(int) - embedded).max() <= 1
    assert np.abs(embedded.astype(int) - pixels).max() > 10
    built = ImageCms.ImageCmsProfile(io.BytesIO(named.planes.profile))
    assert built.profile.xcolor_space.strip() == "RGB", "what was applied can be embedded again"


@pytest.mark.parametrize(
    "chunks",
    [
        (cicp(1, 13),),
        (cicp(2, 2),),
        (gama(45455),),
        (gama(45455), chrm(SRGB_CHRM)),
        (chrm(SRGB_CHRM),),
        ((b"sRGB", b"\0"), gama(100_000)),
        (cicp(1, 13), gama(100_000), chrm(ADOBE_CHRM)),
    ],
)
def test_what_amounts_to_srgb_moves_nothing_and_leaves_no_note(damage, forge, pixels, chunks) -> None:
    decoded = decode(png_with(damage, forge, pixels, *chunks))
    assert np.array_equal(decoded.rgb(), pixels)
    assert decoded.notes == []


def test_cicp_goes_before_a_profile_and_a_profile_before_gamma(damage, forge, pixels) -> None:
    profile = forge.wide_gamut_profile()
    by_profile = decode(forge.encode(Image.fromarray(pixels), "PNG", icc_profile=profile)).rgb()
    for chunk, expected in (
        (cicp(1, 13), pixels),
        (cicp(2, 2), by_profile),
        (gama(100_000), by_profile),
    ):
        decoded = decode(png_with(damage, forge, pixels, chunk, icc_profile=profile))
        assert np.array_equal(decoded.rgb(), expected), chunk


def test_a_gamma_applies_to_gray_and_leaves_alpha_alone(damage, forge) -> None:
    image = forge.image(40, 24, "LA")
    gray, alpha = (np.asarray(band) for band in image.split())
    data = forge.encode(image, "PNG")
    chunk = damage.png_chunk(*gama(100_000))
    decoded = decode(data[:33] + chunk + data[33:])
    assert np.array_equal(decoded.planes.alpha, alpha)
    decoded.planes.alpha = None
    expected = converted(np.repeat(gray[..., None], 3, 2), np.eye(3), 1.0)
    assert np.abs(decoded.rgb().astype(int) - expected).max() <= 2


@pytest.mark.parametrize(("transfer", "name"), [(16, "PQ"), (18, "HLG"), (17, "428"), (9, "logarithmic")])
def test_a_curve_that_srgb_cannot_show_is_unsupported_and_its_header_is_known(
    damage, forge, pixels, transfer, name
) -> None:
    data = png_with(damage, forge, pixels, cicp(9, transfer))
    assert (read_header(data).raw_width, read_header(data).bit_depth) == (48, 8)
    with pytest.raises(PixelFault, match=name) as caught:
        decode(data)
    assert caught.value.kind == "unsupported"


def test_an_icc_profile_for_hdr_is_unsupported(forge, pixels) -> None:
    profile = bytearray(code_points.icc_profile(code_points.ColourSpace(code_points.PRIMARIES[9])))
    # in place of the first tag, `desc`: the same offset, now a cicpType
    start = int.from_bytes(profile[136:140], "big")
    profile[132:136], profile[start : start + 12] = b"cicp", b"cicp\0\0\0\0" + bytes([9, 16, 0, 1])
    with pytest.raises(PixelFault, match="PQ") as caught:
        decode(forge.encode(Image.fromarray(pixels), "PNG", icc_profile=bytes(profile)))
    assert caught.value.kind == "unsupported"


def test_narrow_range_values_are_unsupported(damage, forge, pixels) -> None:
    with pytest.raises(PixelFault, match="narrow-range"):
        decode(png_with(damage, forge, pixels, cicp(1, 13, 0, 0)))


@pytest.mark.parametrize(
    ("chunks", "message"),
    [
        ((cicp(12, 13, 1),), "matrix 1"),
        ((cicp(77, 13),), "primaries 77"),
        ((cicp(1, 77),), "curve 77"),
        ((gama(0),), "a gamma of 0"),
        ((gama(45455), chrm((0,) * 8)), "no gamut"),
        ((chrm((31270, 32900, *(30000, 30000) * 3)),), "no gamut"),
        # white outside the triangle of the primaries
        ((chrm((73000, 26000, *SRGB_CHRM[2:])),), "no gamut"),
    ],
)
def test_numbers_that_mean_nothing_are_ignored_with_a_note(damage, forge, pixels, chunks, message) -> None:
    decoded = decode(png_with(damage, forge, pixels, *chunks))
    assert np.array_equal(decoded.rgb(), pixels)
    assert any(message in note for note in decoded.notes), decoded.notes


def exif_with(tags: dict[int, int], index: bytes = b"") -> bytes:
    """An EXIF block whose first directory points to one of these SHORTs, and to an interoperability index."""
    entries = [struct.pack(">HHIHxx", tag, 3, 1, value) for tag, value in sorted(tags.items())]
    exif, interop = 26, 26 + 2 + 12 * (len(entries) + bool(index)) + 4
    if index:
        entries.append(struct.pack(">HHII", 0xA005, 4, 1, interop))
    block = b"MM\0\x2a\0\0\0\x08" + struct.pack(">HHHIIxxxx", 1, 0x8769, 4, 1, exif)
    block += struct.pack(">H", len(entries)) + b"".join(entries) + bytes(4)
    return block + struct.pack(">HHHI4sxxxx", 1, 1, 2, 4, index) if index else block


@pytest.mark.parametrize(
    ("block", "is_adobe"),
    [
        (exif_with({0xA001: 65535}, b"R03\0"), True),
        (exif_with({0xA001: 2}), True),
        (exif_with({0xA001: 1}, b"R98\0"), False),
        (exif_with({0xA001: 65535}), False),
    ],
)
def test_a_camera_names_adobe_rgb_in_its_exif_block(forge, block, is_adobe) -> None:
    data = forge.encode(forge.image(48, 32), "JPEG", quality=95, exif=b"Exif\0\0" + block)
    decoded = decode(data)
    profile = forge.wide_gamut_profile(563 / 256)
    settings = {"quality": 95, "icc_profile": profile} if is_adobe else {"quality": 95}
    expected = decode(forge.encode(forge.image(48, 32), "JPEG", **settings)).rgb()
    assert np.abs(decoded.rgb().astype(int) - expected).max() <= 1


def test_an_icc_profile_goes_before_adobe_rgb_in_exif(forge) -> None:
    block = b"Exif\0\0" + exif_with({0xA001: 2})
    image = forge.image(48, 32)
    data = forge.encode(image, "JPEG", exif=block, icc_profile=forge.srgb_profile())
    assert np.array_equal(decode(data).rgb(), decode(forge.encode(image, "JPEG")).rgb())


def test_every_primaries_of_the_standard_gives_a_profile_whose_white_is_white() -> None:
    for number, points in code_points.PRIMARIES.items():
        profile = code_points.icc_profile(code_points.ColourSpace(points, 2.2))
        transform = ImageCms.buildTransform(
            ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB"), "RGB", "RGB", 1
        )
        white = np.asarray(ImageCms.applyTransform(Image.new("RGB", (1, 1), "white"), transform))
        assert (white >= 254).all(), number


@pytest.mark.parametrize("kind", [b"tEXt", b"zTXt"])
def test_orientation_in_a_text_chunk_of_imagemagick_is_read(damage, forge, kind) -> None:
    block = b"Exif\0\0MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    text = b"\nexif\n%8d\n" % len(block) + block.hex().encode() + b"\n"
    body = text if kind == b"tEXt" else b"\0" + zlib.compress(text)
    data = forge.encode(forge.image(20, 10), "PNG")
    late = data[:33] + damage.png_chunk(kind, b"Raw profile type exif\0" + body) + data[33:]
    assert Image.open(io.BytesIO(late)).getexif()[0x0112] == 6
    assert (read_header(late).orientation, read_header(late).width) == (6, 10)
