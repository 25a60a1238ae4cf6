"""PNM, QOI, GIF and ICO: depth, colours and the end of the file are what the file says they are."""

import io
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from uhr.pixels.decode import PixelLimits, decode
from uhr.pixels.formats.qoi import LINEAR
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
    ("data", "message"),
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
def test_a_pnm_that_contradicts_itself_is_corrupt(data, message) -> None:
    fault = fault_of(data)
    assert fault.kind == "corrupt"
    assert message in fault.message


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
    image = forge.image(40, 30)
    for options, notes in (({}, [LINEAR]), ({"colorspace": "sRGB"}, [])):
        decoded = decode(forge.encode(image, "QOI", **options))
        assert np.array_equal(decoded.rgb(), np.asarray(image))
        assert decoded.notes == notes


def test_a_qoi_ends_where_its_pixels_do(forge) -> None:
    data = forge.encode(forge.image(40, 30), "QOI")
    for missing in (1, 8, 9, 500):
        assert fault_of(data[:-missing]).kind == "truncated"
    taller = data[:8] + struct.pack(">I", 60) + data[12:]
    assert fault_of(taller).kind == "truncated"
    shorter = data[:8] + struct.pack(">I", 15) + data[12:]
    assert fault_of(shorter).kind == "corrupt"
    bomb = data[:4] + struct.pack(">II", 18_000, 18_000) + data[12:]
    assert fault_of(bomb).kind == "truncated"


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
    image = forge.image(90, 70, "P")
    more = {"save_all": True, "append_images": [forge.image(90, 70, "P", seed=1)]} if animated else {}
    data = forge.encode(image, "GIF", **more)
    for keep in (8, 12, 40, len(data) // 3, len(data) // 2, len(data) - 1):
        assert fault_of(data[:keep]).kind == "truncated", keep
    assert np.array_equal(decode(data + b"stray bytes").rgb(), decode(data).rgb())


def test_a_gif_without_its_frame_data_is_not_kept(forge) -> None:
    data = forge.encode(forge.image(90, 70, "P"), "GIF")
    start = data.index(b"\x2c\0\0\0\0") + 11
    assert fault_of(data[:start]).kind == "truncated"
    assert fault_of(data[:start] + b"\0\x3b").kind in ("truncated", "corrupt")
    assert fault_of(data[:13] + b"\x3b").kind in ("truncated", "corrupt")


def test_a_first_frame_that_is_smaller_than_the_screen_leaves_it_transparent(forge) -> None:
    data = bytearray(forge.encode(forge.image(40, 30, "P"), "GIF"))
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
    image = forge.image(64, 64, mode)
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
    data = bytearray(forge.encode(forge.image(64, 64), "ICO", sizes=[(64, 64)]))
    data[len(data) // 2] ^= 0x55
    assert fault_of(bytes(data)).kind == "corrupt"
