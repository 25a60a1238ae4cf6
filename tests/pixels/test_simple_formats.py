"""PNM, QOI, BMP, GIF and ICO: depth, colours and the end of the file are what the file says they are."""

import io
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from uhr.pixels.decode import PixelLimits, decode
from uhr.pixels.qoi import LINEAR
from uhr.pixels.types import PixelFault


def fault_of(data: bytes, **limits: int) -> PixelFault:
    with pytest.raises(PixelFault) as caught:
        decode(data, PixelLimits(**limits))
    return caught.value


# PNM -------------------------------------------------------------------------------------------------------


def pnm(kind: int, values: np.ndarray, most: int, comment: bytes = b"") -> bytes:
    """A file of one of the six kinds, of [H, W] or [H, W, 3] integers 0..most."""
    height, width = values.shape[:2]
    head = b"P%d\n%s%d %d\n" % (kind, comment, width, height) + (b"" if kind in (1, 4) else b"%d\n" % most)
    if kind <= 3:
        return head + b"\n".join(b" ".join(b"%d" % v for v in row.ravel()) for row in values) + b"\n"
    if kind == 4:
        return head + np.packbits(values.astype(np.uint8), axis=1).tobytes()
    return head + values.astype("u1" if most < 256 else ">u2").tobytes()


def shown(values: np.ndarray, kind: int, most: int) -> np.ndarray:
    """RGB by the rule: the upper eight bits of a depth above eight, else scaled to 255 and rounded."""
    if kind in (1, 4):
        values = 255 - 255 * values
    elif most > 255 and most & (most + 1) == 0:
        values = values >> most.bit_length() - 8
    else:
        values = np.floor(values * 255 / most + 0.5).astype(int)
    return values if values.ndim == 3 else np.repeat(values[..., None], 3, axis=2)


@settings(max_examples=200, deadline=None)
@given(
    kind=st.integers(1, 6),
    most=st.sampled_from((1, 3, 15, 100, 127, 255, 256, 1000, 1023, 4095, 65534, 65535)),
    size=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    comment=st.sampled_from((b"", b"# one\n", b"#" * 70 + b"\n" + b"# P6 3 4\n")),
)
def test_every_kind_and_maximum_of_a_pnm(kind, most, size, comment) -> None:
    most = 1 if kind in (1, 4) else most
    shape = (*size, 3) if kind in (3, 6) else size
    values = np.random.default_rng(most).integers(0, most + 1, shape)
    decoded = decode(pnm(kind, values, most, comment))
    assert np.array_equal(decoded.rgb(), shown(values, kind, most))
    assert decoded.header.bit_depth == most.bit_length()
    assert decoded.header.mode == ("RGB" if kind in (3, 6) else "L")


@pytest.mark.parametrize("kind", range(1, 7))
@pytest.mark.parametrize("keep", [0.5, 0.95])
def test_a_cut_pnm_is_truncated(kind, keep) -> None:
    most = 1 if kind in (1, 4) else 255
    data = pnm(
        kind,
        np.random.default_rng(0).integers(0, most + 1, (40, 40, 3) if kind in (3, 6) else (40, 40)),
        most,
    )
    assert fault_of(data[: int(keep * len(data))]).kind == "truncated"
    for start in (3, 5, 7):
        assert fault_of(data[:start]).kind == "truncated"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"P5\n2 2\n1000\n" + struct.pack(">4H", 1, 2, 3, 1001), "above its maximum"),
        (b"P2\n2 2\n7\n1 2 3 8\n", "above its maximum"),
        (b"P2\n2 2\n7\n1 2 -3 4\n", "'-'"),
        (b"P3\n1 1\n7\n1 2 x\n", "'x'"),
        (b"P1\n2 2\n0 1 2 0\n", "other characters"),
        (b"P5\n2 2\n65536\n" + bytes(8), "maximum of 65536"),
        (b"P5\n2 2\n0\n" + bytes(8), "maximum of 0"),
        (b"P5\n0 2\n255\n" + bytes(8), "0 x 2"),
    ],
)
def test_a_pnm_that_contradicts_itself_is_corrupt(data, words) -> None:
    fault = fault_of(data)
    assert fault.kind == "corrupt"
    assert words in fault.message


def test_bits_of_a_plain_pbm_need_no_gap_and_comments_may_be_among_values() -> None:
    assert np.array_equal(decode(b"P1 3 2 011\n100").rgb()[..., 0], [[255, 0, 0], [0, 255, 255]])
    assert np.array_equal(decode(b"P2 2 1 9 0 # zero\n9").rgb()[..., 0], [[0, 255]])


@pytest.mark.parametrize(("head", "name"), [(b"P7\nWIDTH 2\n", "PAM"), (b"PF\n2 2\n-1.0\n", "PFM")])
def test_other_netpbm_formats_are_named(head, name) -> None:
    fault = fault_of(head + bytes(100))
    assert fault.kind == "unsupported"
    assert name in fault.message


# QOI -------------------------------------------------------------------------------------------------------


def textures() -> list[np.ndarray]:
    """Pixels that use every kind of chunk: far, near and equal colours, runs, and changing opacity."""
    rng = np.random.default_rng(0)
    runs = np.repeat(rng.integers(0, 256, (30, 5, 4)), 14, axis=1)
    steps = np.cumsum(rng.integers(-2, 3, (30, 70, 4)), axis=1)
    few = rng.integers(0, 256, (5, 4))[rng.integers(0, 5, (30, 70))]
    flat = np.tile([9, 8, 7, 255], (30, 70, 1))
    return [(a % 256).astype(np.uint8) for a in (rng.integers(0, 256, (30, 70, 4)), runs, steps, few, flat)]


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_a_qoi_is_read_as_pillow_reads_it(forge, mode) -> None:
    for texture in textures():
        image = Image.fromarray(texture, "RGBA").convert(mode)
        data = forge.encode(image, "QOI")
        decoded = decode(data)
        expected = np.asarray(Image.open(io.BytesIO(data)))
        assert np.array_equal(decoded.bgr[..., ::-1], expected[..., :3])
        assert decoded.planes.alpha is None or np.array_equal(decoded.planes.alpha, expected[..., 3])
        assert decoded.header.mode == mode


def test_linear_light_of_a_qoi_is_noted_and_not_believed(forge) -> None:
    """Pillow names it in whatever it writes, unless it is given the colour space."""
    image = forge.picture(40, 30)
    for said, notes in (({}, [LINEAR]), ({"colorspace": "sRGB"}, [])):
        decoded = decode(forge.encode(image, "QOI", **said))
        assert np.array_equal(decoded.rgb(), np.asarray(image))
        assert decoded.notes == notes


def test_a_qoi_ends_where_its_pixels_do(forge) -> None:
    data = forge.encode(forge.picture(40, 30), "QOI")
    for missing in (1, 8, 9, 500):
        assert fault_of(data[:-missing]).kind == "truncated"
    taller = data[:8] + struct.pack(">I", 60) + data[12:]
    assert fault_of(taller).kind == "truncated"
    shorter = data[:8] + struct.pack(">I", 15) + data[12:]
    assert fault_of(shorter).kind == "corrupt"
    bomb = data[:4] + struct.pack(">II", 18_000, 18_000) + data[12:]
    assert fault_of(bomb).kind == "truncated"


# BMP -------------------------------------------------------------------------------------------------------


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
    ("data", "words"),
    [
        (bmp(24, bytes(36), compression=4), "JPEG"),
        (bmp(24, bytes(36), compression=5), "PNG"),
        (bmp(16, bytes(24), (0xF0F0, 0x0F00, 0x000F)), "masks 0xf0f0"),
        (bmp(20, bytes(36)), "20 bits a pixel"),
        (bmp(24, bytes(36), compression=1), "24 bits a pixel with compression 1"),
        (bmp(24, bytes(36), compression=11), "compression 11"),
    ],
)
def test_a_bmp_that_is_not_read_is_named(data, words) -> None:
    fault = fault_of(data)
    assert fault.kind == "unsupported"
    assert words in fault.message


def test_calibrated_colours_of_a_bmp_leave_a_note() -> None:
    masks = struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0)
    srgb = masks + b"BGRs" + bytes(48)
    calibrated = masks + bytes(4) + struct.pack("<9I", *range(1, 10)) + struct.pack("<3I", *[1 << 16] * 3)
    assert decode(bmp(24, bytes(36), colours=srgb)).notes == []
    assert "calibrated" in decode(bmp(24, bytes(36), colours=calibrated)).notes[0]


@pytest.mark.parametrize("text", [b"BM is a text, and no image at all, by any means", b"BMW\n", b"BM"])
def test_text_that_begins_like_a_bmp_is_not_an_image(text) -> None:
    assert fault_of(text).kind == "not an image"


# GIF -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("interlace", [0, 1])
@pytest.mark.parametrize("colours", [2, 3, 17, 256])
@pytest.mark.parametrize("noise", [False, True])
def test_a_gif_is_read_as_pillow_reads_it(forge, interlace, colours, noise) -> None:
    # noise fills the table of codes, and more than once
    size = (301, 203)
    indices = (
        np.random.default_rng(colours).integers(0, colours, size[::-1])
        if noise
        else np.indices(size[::-1])[0]
    )
    image = Image.fromarray((indices % colours).astype(np.uint8))
    image.putpalette(np.random.default_rng(1).integers(0, 256, 3 * colours).astype(np.uint8).tobytes())
    data = forge.encode(image, "GIF", interlace=interlace, optimize=False)
    expected = Image.open(io.BytesIO(data)).convert("RGB")
    assert np.array_equal(decode(data).rgb(), np.asarray(expected))


@pytest.mark.parametrize("animated", [False, True])
def test_a_gif_ends_with_its_trailer(forge, animated) -> None:
    image = forge.picture(90, 70, "P")
    more = {"save_all": True, "append_images": [forge.picture(90, 70, "P", seed=1)]} if animated else {}
    data = forge.encode(image, "GIF", **more)
    for keep in (8, 12, 40, len(data) // 3, len(data) // 2, len(data) - 1):
        assert fault_of(data[:keep]).kind == "truncated", keep
    assert np.array_equal(decode(data + b"stray bytes").rgb(), decode(data).rgb())


def test_a_gif_without_its_frame_data_is_not_kept(forge) -> None:
    data = forge.encode(forge.picture(90, 70, "P"), "GIF")
    start = data.index(b"\x2c\0\0\0\0") + 11
    assert fault_of(data[:start]).kind == "truncated"
    assert fault_of(data[:start] + b"\0\x3b").kind in ("truncated", "corrupt")
    assert fault_of(data[:13] + b"\x3b").kind in ("truncated", "corrupt")


def test_a_first_frame_that_is_smaller_than_the_screen_leaves_it_transparent(forge) -> None:
    data = bytearray(forge.encode(forge.picture(40, 30, "P"), "GIF"))
    whole = decode(bytes(data)).rgb()
    struct.pack_into("<HH", data, 6, 60, 50)
    frame = data.index(b"\x2c\0\0\0\0")
    struct.pack_into("<HH", data, frame + 1, 10, 15)
    rgb = decode(bytes(data)).rgb()
    assert rgb.shape == (50, 60, 3)
    assert np.array_equal(rgb[15:45, 10:50], whole)
    rgb[15:45, 10:50] = 255
    assert (rgb == 255).all()


# ICO -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["png", "bmp"])
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_the_largest_image_of_an_icon_is_taken(forge, kind, mode) -> None:
    image = forge.picture(64, 64, mode)
    data = forge.encode(image, "ICO", sizes=[(16, 16), (64, 64), (32, 32)], bitmap_format=kind)
    decoded = decode(data)
    expected = Image.open(io.BytesIO(data)).convert("RGBA")
    assert (decoded.header.format, decoded.header.raw_width) == ("ICO", 64)
    assert np.array_equal(decoded.bgr[..., ::-1], np.asarray(expected)[..., :3])
    if mode == "RGBA" and kind == "png":
        assert np.array_equal(decoded.planes.alpha, np.asarray(expected)[..., 3])
    for keep in (8, 30, len(data) // 2, len(data) - 1):
        assert fault_of(data[:keep]).kind == "truncated", keep


def test_a_large_image_in_an_icon_is_judged_by_its_size_before_it_is_decoded(forge) -> None:
    png = forge.png_with_header(struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0))
    data = b"\0\0\1\0\1\0" + struct.pack("<BBBBHHII", 0, 0, 0, 0, 1, 32, len(png), 22) + png
    assert fault_of(data).kind == "too large"


def test_a_damaged_png_in_an_icon_is_found_as_in_a_png(forge) -> None:
    data = bytearray(forge.encode(forge.picture(64, 64), "ICO", sizes=[(64, 64)]))
    data[len(data) // 2] ^= 0x55
    assert fault_of(bytes(data)).kind == "corrupt"
