"""JPEG 2000 of every depth and colour space: right pixels, or the variant is unsupported and named."""

import io
import struct

import cv2
import numpy as np
import pytest
from PIL import Image

from uhr.pixels.decode import decode
from uhr.pixels.headers import read_header
from uhr.pixels.types import PixelFault

SOC = b"\xff\x4f\xff\x51"
WIDTH, HEIGHT = 70, 64


def codestream(pixels: np.ndarray, bits: int) -> bytes:
    """A lossless codestream of [H, W, C] integers of 2 to 16 bits.

    OpenCV and Pillow write 16 and 8 bits. The coefficients of fewer are the same but for the mean that is
    taken off the values before they are transformed, half the range: so the values are raised by the
    difference, and the depth in the header is changed.
    """
    stored = 16 if bits > 8 else 8
    raised = pixels.astype(int) + (1 << stored - 1) - (1 << bits - 1)
    if bits > 8:
        order = [2, 1, 0, 3][: raised.shape[2]] if raised.shape[2] > 1 else [0]
        settings = [cv2.IMWRITE_JPEG2000_COMPRESSION_X1000, 1000]
        data = cv2.imencode(".jp2", raised[..., order].astype(np.uint16), settings)[1].tobytes()
    else:
        buffer = io.BytesIO()
        image = Image.fromarray(
            raised[..., 0].astype(np.uint8) if raised.shape[2] == 1 else raised.astype(np.uint8)
        )
        image.save(buffer, "JPEG2000", no_jp2=True, mct=0)
        data = buffer.getvalue()
    data = bytearray(data[data.index(SOC) :])
    (count,) = struct.unpack_from(">H", data, 40)
    assert count == pixels.shape[2]
    data[42 : 42 + 3 * count : 3] = bytes([bits - 1]) * count
    return bytes(data)


def box(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body) + 8) + kind + body


def jp2(stream: bytes, *inner: bytes, space: int | None = 16, before: bytes = b"") -> bytes:
    """The codestream in a JP2 file with boxes of one's own in its header."""
    width, height, count = (
        int.from_bytes(stream[at : at + n], "big") for at, n in ((8, 4), (12, 4), (40, 2))
    )
    ihdr = box(b"ihdr", struct.pack(">IIHBBBB", height, width, count, stream[42], 7, 0, 0))
    colour = b"" if space is None else box(b"colr", struct.pack(">BBBI", 1, 0, 0, space))
    head = b"\0\0\0\x0cjP  \r\n\x87\n" + box(b"ftyp", b"jp2 \0\0\0\0jp2 ")
    return head + box(b"jp2h", ihdr + colour + b"".join(inner)) + before + box(b"jp2c", stream)


def samples_of(bits: int, count: int) -> np.ndarray:
    samples = np.random.default_rng(bits).integers(0, 1 << bits, (HEIGHT, WIDTH, count))
    # white, which must not overflow, and black
    samples[:8], samples[8:12] = (1 << bits) - 1, 0
    return samples


def eight_bits(values: np.ndarray, bits: int) -> np.ndarray:
    return values >> bits - 8 if bits > 8 else np.round(values * 255 / ((1 << bits) - 1)).astype(int)


def fault_of(data: bytes) -> PixelFault:
    with pytest.raises(PixelFault) as caught:
        decode(data)
    return caught.value


@pytest.mark.parametrize("bits", [2, 4, 5, 7, 8, 9, 10, 12, 14, 16])
@pytest.mark.parametrize("count", [1, 3, 4])
@pytest.mark.parametrize("boxed", [True, False])
def test_every_depth_gives_its_samples(bits, count, boxed) -> None:
    samples = samples_of(bits, count)
    stream = codestream(samples, bits)
    decoded = decode(jp2(stream, space=17 if count == 1 else 16) if boxed else stream)
    expected = eight_bits(samples, bits)
    colours = np.repeat(expected, 3, axis=2) if count == 1 else expected[..., :3]
    assert np.array_equal(decoded.bgr[..., ::-1], colours)
    assert decoded.header.bit_depth == bits
    assert decoded.header.mode == {1: "L", 3: "RGB", 4: "RGBA"}[count]
    if count == 4:
        assert np.array_equal(decoded.planes.alpha, expected[..., 3])
        assert "taken for opacity" in decoded.notes[0]


def test_gray_with_opacity_of_eight_bits_is_read_and_of_more_named(forge) -> None:
    image = forge.image(70, 64, "LA")
    data = forge.encode(image, "JPEG2000")
    decoded = decode(data)
    gray, alpha = (np.asarray(band) for band in image.split())
    assert np.array_equal(decoded.bgr[..., 0], gray)
    assert np.array_equal(decoded.planes.alpha, alpha)
    start = data.index(SOC)
    deeper = data[: start + 42] + b"\x0b\1\1\x0b" + data[start + 46 :]
    assert fault_of(deeper).kind == "unsupported"
    assert read_header(deeper).bit_depth == 12


def test_sycc_is_converted(forge) -> None:
    image = forge.image(WIDTH, HEIGHT).convert("YCbCr")
    stream = codestream(np.asarray(image), 8)
    assert np.array_equal(decode(jp2(stream, space=18)).rgb(), np.asarray(image.convert("RGB")))


def test_cmyk_is_converted_by_its_profile(forge) -> None:
    inks = np.asarray(forge.image(WIDTH, HEIGHT, "CMYK"))
    profile = forge.cmyk_profile()
    colour = box(b"colr", b"\2\0\0" + profile)
    decoded = decode(jp2(codestream(inks, 8), colour, space=None))
    tiff = forge.encode(Image.fromarray(inks, "CMYK"), "TIFF", icc_profile=profile)
    assert decoded.header.mode == "CMYK"
    assert np.array_equal(decoded.rgb(), decode(tiff).rgb())
    plain = decode(jp2(codestream(inks, 8), space=12))
    assert np.array_equal(plain.rgb(), np.asarray(Image.fromarray(inks, "CMYK").convert("RGB")))


@pytest.mark.parametrize("method", [2, 3])
def test_a_profile_in_a_colour_box_is_applied(forge, method) -> None:
    pixels = np.asarray(forge.image(WIDTH, HEIGHT))
    profile = forge.wide_gamut_profile()
    stream = codestream(pixels, 8)
    decoded = decode(jp2(stream, box(b"colr", bytes([method, 0, 0]) + profile), space=None))
    png = forge.encode(Image.fromarray(pixels), "PNG", icc_profile=profile)
    assert decoded.header.has_icc
    assert np.array_equal(decoded.rgb(), decode(png).rgb())
    assert decoded.planes.profile == profile


def test_code_points_in_a_colour_box_mean_what_cicp_means(damage, forge) -> None:
    pixels = np.asarray(forge.image(WIDTH, HEIGHT))
    stream = codestream(pixels, 8)

    def named(primaries: int, transfer: int, matrix: int = 0) -> bytes:
        body = struct.pack(">BBBHHHB", 5, 0, 0, primaries, transfer, matrix, 0x80)
        return jp2(stream, box(b"colr", body), space=None)

    png = forge.encode(Image.fromarray(pixels), "PNG")
    chunk = damage.png_chunk(b"cICP", bytes([12, 13, 0, 1]))
    assert np.array_equal(decode(named(12, 13)).rgb(), decode(png[:33] + chunk + png[33:]).rgb())
    assert "PQ" in fault_of(named(9, 16)).message
    assert "matrix 9" in fault_of(named(9, 14, 9)).message


def test_a_palette_is_looked_up(forge) -> None:
    image = forge.image(WIDTH, HEIGHT, "P")
    indices = np.asarray(image)
    table = np.array(image.getpalette()).reshape(-1, 3)
    pclr = box(b"pclr", struct.pack(">HB", len(table), 3) + b"\7\7\7" + table.astype(np.uint8).tobytes())
    cmap = box(b"cmap", b"".join(struct.pack(">HBB", 0, 1, column) for column in range(3)))
    decoded = decode(jp2(codestream(indices[..., None], 8), pclr, cmap))
    assert decoded.header.mode == "P"
    assert np.array_equal(decoded.rgb(), np.asarray(image.convert("RGB")))
    short = box(b"pclr", struct.pack(">HB", 4, 3) + b"\7\7\7" + bytes(12))
    assert fault_of(jp2(codestream(indices[..., None], 8), short, cmap)).kind == "corrupt"


def cdef(*channels: tuple[int, int, int]) -> bytes:
    return box(
        b"cdef", struct.pack(">H", len(channels)) + b"".join(struct.pack(">HHH", *c) for c in channels)
    )


COLOURS = [(0, 0, 1), (1, 0, 2), (2, 0, 3)]


def test_a_defined_opacity_needs_no_note() -> None:
    samples = samples_of(8, 4)
    decoded = decode(jp2(codestream(samples, 8), cdef(*COLOURS, (3, 1, 0))))
    assert np.array_equal(decoded.planes.alpha, samples[..., 3])
    assert decoded.notes == []


@pytest.mark.parametrize(
    ("space", "inner", "message"),
    [
        (14, (), "CIELab"),
        (20, (), "e-sRGB"),
        (21, (), "ROMM-RGB"),
        (13, (), "YCCK"),
        (99, (), "colour space 99"),
        (16, (cdef((0, 0, 3), (1, 0, 2), (2, 0, 1)),), "another order"),
        (17, (), "3 channels in 1 colours"),
    ],
)
def test_a_colour_space_that_is_not_read_is_named(space, inner, message) -> None:
    data = jp2(codestream(samples_of(8, 3), 8), *inner, space=space)
    fault = fault_of(data)
    assert fault.kind == "unsupported"
    assert message in fault.message
    assert read_header(data).bit_depth == 8


@pytest.mark.parametrize(
    ("component", "message"),
    [(b"\x87\1\1", "signed"), (b"\7\2\2", "subsampled"), (b"\3\1\1", "4, 8 bits"), (b"\x18\1\1", "bits")],
)
def test_a_component_that_is_not_read_is_named(component, message) -> None:
    stream = codestream(samples_of(8, 3), 8)
    data = stream[:45] + component + stream[48:]
    fault = fault_of(data)
    assert fault.kind == "unsupported"
    assert message in fault.message


def test_premultiplied_opacity_is_unsupported() -> None:
    data = jp2(codestream(samples_of(8, 4), 8), cdef(*COLOURS, (3, 2, 0)))
    assert "premultiplied" in fault_of(data).message


def test_an_orientation_in_an_exif_box_is_noted_and_not_applied(forge) -> None:
    block = b"MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    exif = box(b"uuid", b"JpgTiffExif->JP2" + block)
    stream = codestream(samples_of(8, 3), 8)
    decoded = decode(jp2(stream, before=exif))
    assert np.array_equal(decoded.rgb(), decode(stream).rgb())
    assert "orientation 6" in decoded.notes[0]


@pytest.mark.parametrize("boxed", [True, False])
@pytest.mark.parametrize("settings", [{}, {"tile_size": (32, 32)}, {"irreversible": True}])
@pytest.mark.parametrize("keep", [0.01, 0.03, 0.1, 0.5, 0.9, 0.999])
def test_a_cut_file_is_truncated(forge, boxed, settings, keep) -> None:
    data = forge.encode(forge.image(120, 90), "JPEG2000", no_jp2=not boxed, **settings)
    assert fault_of(data[: int(keep * len(data))]).kind == "truncated"
    for missing in (1, 2, 3):
        assert fault_of(data[:-missing]).kind == "truncated"


def test_a_last_tile_part_without_a_length_reaches_the_end(forge) -> None:
    stream = forge.encode(forge.image(64, 64), "JPEG2000", no_jp2=True)
    start = stream.index(b"\xff\x90\0\x0a")
    data = stream[: start + 6] + bytes(4) + stream[start + 10 :]
    assert np.array_equal(decode(data).rgb(), decode(stream).rgb())
    assert fault_of(data[:-2]).kind == "truncated"


def test_bytes_that_are_no_marker_are_corrupt(forge) -> None:
    stream = forge.encode(forge.image(64, 64), "JPEG2000", no_jp2=True)
    start = stream.index(b"\xff\x90\0\x0a")
    assert fault_of(stream[:start] + b"\0\0" + stream[start + 2 :]).kind == "corrupt"
