"""BMP: depth, masks, palettes, colours and the end of the file are what its header says they are."""

import io
import struct

import numpy as np
import pytest
from PIL import Image

from uhr.pixels.decode import decode
from uhr.pixels.types import PixelFault


def fault_of(data: bytes) -> PixelFault:
    with pytest.raises(PixelFault) as caught:
        decode(data)
    return caught.value


def bmp(
    bits: int, pixels: bytes, masks: tuple[int, ...] = (), size: tuple[int, int] = (4, 3), **fields
) -> bytes:
    """A BMP of a BITMAPINFOHEADER, or with `colours` a BITMAPV4HEADER whose last 68 bytes those are."""
    palette = b"".join(bytes([i, 255 - i, 7, 0]) for i in range(1 << bits)) if bits <= 8 else b""
    compression = fields.get("compression", 3 if masks else 0)
    tail = fields.get("colours", b"")
    info = struct.pack("<IiiHHIIiiII", 40 + len(tail), *size, 1, bits, compression, 0, 0, 0, 0, 0) + tail
    body = info + struct.pack(f"<{len(masks)}I", *masks) + palette
    return b"BM" + struct.pack("<IHHI", 14 + len(body) + len(pixels), 0, 0, 14 + len(body)) + body + pixels


RGB565, RGB555 = (0xF800, 0x07E0, 0x001F), (0x7C00, 0x03E0, 0x001F)


@pytest.mark.parametrize(
    ("bits", "masks", "row", "depth"),
    [
        (1, (), 4, 8),
        (4, (), 4, 8),
        (8, (), 4, 8),
        (16, (), 8, 5),
        (16, RGB555, 8, 5),
        (16, RGB565, 8, None),
        (24, (), 12, 8),
        (32, (), 16, 8),
        (32, (0xFF0000, 0xFF00, 0xFF), 16, 8),
    ],
)
def test_depth_and_end_of_a_bmp(bits, masks, row, depth) -> None:
    pixels = np.random.default_rng(bits).bytes(3 * row)
    data = bmp(bits, pixels, masks)
    decoded = decode(data)
    assert decoded.header.bit_depth == depth
    # Pillow cuts five bits to 255 / 31 and does not round
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    assert np.abs(decoded.rgb() - expected).max() <= (1 if bits == 16 else 0)
    for missing in (1, row, 3 * row, 3 * row + 20):
        assert fault_of(data[:-missing]).kind == "truncated"


@pytest.mark.parametrize(
    ("bits", "masks"),
    [
        (16, (0x0F00, 0x00F0, 0x000F)),
        (16, (0x001F, 0x07E0, 0xF800)),
        (32, (0x3FF00000, 0x000FFC00, 0x000003FF)),
        (32, (0xFF000000, 0x00FF0000, 0x0000FF00)),
    ],
)
def test_any_masks_of_a_bmp_are_read(bits, masks) -> None:
    stored = np.random.default_rng(0).integers(0, 1 << bits, (3, 4), dtype=np.uint64)
    rgb = decode(bmp(bits, stored.astype(f"<u{bits // 8}").tobytes(), masks)).rgb()[::-1]
    for channel, mask in enumerate(masks):
        lowest = mask & -mask
        values, most = (stored & np.uint64(mask)) // np.uint64(lowest), mask // lowest
        expected = values >> np.uint64(most.bit_length() - 8) if most > 255 else values * 255 / most
        assert np.abs(rgb[..., channel] - expected.astype(float)).max() <= 0.5


@pytest.mark.parametrize(("bits", "colours"), [(8, [0, 255]), (8, [0, 255, 7]), (4, list(range(16)))])
def test_gray_palettes_that_pillow_takes_for_other_depths_are_read(bits, colours) -> None:
    # two colours, black and white, make one bit a pixel of it there
    indices = np.random.default_rng(0).integers(0, len(colours), (3, 8))
    palette = b"".join(bytes([level] * 3 + [0]) for level in colours)
    rows = indices if bits == 8 else indices[:, ::2] << 4 | indices[:, 1::2]
    info = struct.pack("<IiiHHIIiiII", 40, 8, 3, 1, bits, 0, 0, 0, 0, len(colours), 0)
    body = info + palette + rows.astype(np.uint8).tobytes()
    data = b"BM" + struct.pack("<IHHI", 14 + len(body), 0, 0, 54 + len(palette)) + body
    decoded = decode(data)
    assert np.array_equal(decoded.rgb()[::-1, :, 0], np.array(colours)[indices])
    assert (decoded.header.mode, decoded.header.bit_depth) == ("L", 8)


def test_rows_from_the_top_and_the_header_of_os2_are_read() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    top_down = bmp(24, pixels[..., ::-1].tobytes(), size=(4, -3))
    assert np.array_equal(decode(top_down).rgb(), pixels)
    core = struct.pack("<IHHHH", 12, 4, 3, 1, 24) + pixels[::-1, :, ::-1].tobytes()
    os2 = b"BM" + struct.pack("<IHHI", 14 + len(core), 0, 0, 26) + core
    assert np.array_equal(decode(os2).rgb(), pixels)


@pytest.mark.parametrize("bits", [8, 4])
def test_run_lengths_of_a_bmp_are_read(bits) -> None:
    # a run, single pixels, the end of a row; a shorter row; a jump of two to the right; the end
    run, single = (b"\x03\x05", b"\0\x03\x01\x02\x03\0") if bits == 8 else (b"\x03\x56", b"\0\x03\x12\x30")
    coded = run + single + b"\0\0" + run + b"\0\0" + b"\0\2\2\0" + run + b"\0\1"
    first = [5, 5, 5] if bits == 8 else [5, 6, 5]
    indices = np.array([[*first, 1, 2, 3], [*first, 0, 0, 0], [0, 0, *first, 0]])
    data = bmp(bits, coded, size=(6, 3), compression=1 if bits == 8 else 2)
    expected = np.stack([7 + 0 * indices, 255 - indices, indices], axis=2)
    assert np.array_equal(decode(data).rgb()[::-1], expected)
    assert fault_of(data[:-6]).kind == "truncated"


def test_channels_of_five_and_six_bits_are_scaled_to_255() -> None:
    values = np.arange(12, dtype=np.uint16) * 5 % 32
    pixels = (values << 11 | (2 * values + 1) << 5 | 31 - values).astype("<u2").tobytes()
    rgb = decode(bmp(16, pixels, RGB565)).rgb()[::-1].reshape(12, 3).astype(int)
    expected = np.stack([values * 255 / 31, (2 * values + 1) * 255 / 63, (31 - values) * 255 / 31], axis=1)
    assert np.abs(rgb - expected).max() <= 1


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (bmp(24, bytes(36), compression=4), "JPEG"),
        (bmp(24, bytes(36), compression=5), "PNG"),
        (bmp(16, bytes(24), (0xF0F0, 0x0F00, 0x000F)), "masks 0xf0f0"),
        (bmp(20, bytes(36)), "20 bits a pixel"),
        (bmp(24, bytes(36), compression=1), "24 bits a pixel with compression 1"),
        (bmp(24, bytes(36), compression=11), "compression 11"),
    ],
)
def test_a_bmp_that_is_not_read_is_named(data, message) -> None:
    fault = fault_of(data)
    assert fault.kind == "unsupported"
    assert message in fault.message


MASKS = struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0)


def calibrated(points: tuple[float, ...], gammas: tuple[float, float, float]) -> bytes:
    """The last fields of a BITMAPV4HEADER: XYZ of primaries with these x and y, which add up to D65 white."""
    columns = np.array([[x, y, 1 - x - y] for x, y in zip(points[::2], points[1::2], strict=True)]).T
    ends = columns * np.linalg.solve(columns, [0.3127 / 0.329, 1, 0.3583 / 0.329])
    fixed = [round(value * (1 << 30)) for value in ends.T.ravel()]
    return (
        MASKS
        + bytes(4)
        + struct.pack("<9i", *fixed)
        + struct.pack("<3I", *(round(g * 65536) for g in gammas))
    )


SRGB_POINTS, ADOBE_POINTS = (0.64, 0.33, 0.3, 0.6, 0.15, 0.06), (0.64, 0.33, 0.21, 0.71, 0.15, 0.06)


def test_calibrated_colours_of_a_bmp_are_converted(damage, forge) -> None:
    pixels = np.asarray(forge.image(40, 30))
    stored = pixels[::-1, :, ::-1].tobytes()

    def shown(colours: bytes):
        return decode(bmp(24, stored, size=(40, 30), colours=colours))

    for colours in (MASKS + b"BGRs" + bytes(48), MASKS + bytes(52), calibrated(SRGB_POINTS, (2.2, 2.2, 2.2))):
        assert np.array_equal(shown(colours).rgb(), pixels)
        assert shown(colours).notes == []
    png = forge.encode(Image.fromarray(pixels), "PNG")
    chunks = damage.png_chunk(b"gAMA", struct.pack(">I", 55556))
    chunks += damage.png_chunk(
        b"cHRM", struct.pack(">8I", 31270, 32900, 64000, 33000, 21000, 71000, 15000, 6000)
    )
    expected = decode(png[:33] + chunks + png[33:]).rgb()
    found = shown(calibrated(ADOBE_POINTS, (1.8, 1.8, 1.8))).rgb()
    assert np.abs(found.astype(int) - expected).max() <= 1
    assert np.abs(found.astype(int) - pixels).max() > 10
    assert "ignored" in shown(calibrated(SRGB_POINTS, (2.2, 1.8, 2.2))).notes[0]
    assert "another file" in shown(MASKS + b"KNIL" + bytes(48)).notes[0]


def test_a_profile_that_a_bmp_embeds_is_applied(forge) -> None:
    pixels = np.asarray(forge.image(40, 30))
    profile = forge.wide_gamut_profile()
    tail = MASKS + b"DEBM" + bytes(48 + 4) + struct.pack("<III", 124, len(profile), 0)
    plain = bmp(24, profile + pixels[::-1, :, ::-1].tobytes(), size=(40, 30), colours=tail)
    data = plain[:10] + struct.pack("<I", 14 + 124 + len(profile)) + plain[14:]
    decoded = decode(data)
    png = forge.encode(Image.fromarray(pixels), "PNG", icc_profile=profile)
    assert decoded.header.has_icc
    assert np.array_equal(decoded.rgb(), decode(png).rgb())


@pytest.mark.parametrize("text", [b"BM is a text, and no image at all, by any means", b"BMW\n", b"BM"])
def test_text_that_begins_like_a_bmp_is_not_an_image(text) -> None:
    assert fault_of(text).kind == "not an image"
