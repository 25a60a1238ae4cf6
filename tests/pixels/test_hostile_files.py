"""A file with any numbers costs little time and memory and raises nothing but `PixelFault`."""

import contextlib
import itertools
import struct
import time
import tracemalloc
import zlib

import numpy as np
import pytest

from uhr.pixels.decode import PixelLimits, decode
from uhr.pixels.headers import FORMATS, read_header
from uhr.pixels.types import LARGEST_PROFILE, FileBytes, PixelFault

WRITTEN_BY_PILLOW = [format for format in FORMATS if format != "QOI"]
EXTREMES = [b"\0\0\0\0", b"\xff\xff\xff\xff", b"\0\0\0\x80", b"\0\1\0\0"]


def fault_of(call) -> PixelFault:
    with pytest.raises(PixelFault) as caught:
        call()
    return caught.value


@pytest.mark.parametrize("format", WRITTEN_BY_PILLOW)
def test_no_number_in_a_header_raises_anything_but_a_fault(format, forge, tmp_path) -> None:
    data = forge.encode(forge.image(24, 24), format)
    path, limits = tmp_path / "file", PixelLimits(pixels=1_000_000)
    for at, value in itertools.product(range(4, min(len(data) - 4, 160), 3), EXTREMES):
        changed = data[:at] + value + data[at + 4 :]
        path.write_bytes(changed)
        for call in (lambda: read_header(path), lambda changed=changed: decode(changed, limits).rgb()):
            with contextlib.suppress(PixelFault):
                call()


@pytest.mark.parametrize("format", WRITTEN_BY_PILLOW)
def test_the_first_bytes_of_a_file_are_no_image(format, forge, tmp_path) -> None:
    data = forge.encode(forge.image(24, 24), format)
    path = tmp_path / "file"
    for count in range(1, 40):
        path.write_bytes(data[:count])
        # some headers are whole by then
        with contextlib.suppress(PixelFault):
            read_header(path)
        assert fault_of(lambda count=count: decode(data[:count])).kind != "empty file"


def test_offsets_beyond_any_file_are_read_as_its_end(tmp_path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(100))
    with open(path, "rb") as file:
        source = FileBytes(b"", 100, file.fileno())
        assert source.at(1 << 64, 8) == source.at(100, 1 << 64) == b""
        assert source.at(90, 1 << 64) == bytes(10)


@pytest.mark.parametrize("start", [b"\0\0\0\x18ftypavif\0\0\0\0avifmif1", b"\0\0\0\x0cjP  \r\n\x87\n"])
def test_a_box_of_64_bits_is_no_overflow(start, tmp_path) -> None:
    path = tmp_path / "file"
    path.write_bytes(start + struct.pack(">I4sQ", 1, b"free", (1 << 64) - 1) + bytes(40))
    assert fault_of(lambda: read_header(path)).kind == "truncated"


def test_a_gray_value_above_a_maximum_of_one_is_corrupt() -> None:
    fault = fault_of(lambda: decode(b"P5 4 4 1\n" + b"\x02" * 16))
    assert (fault.kind, "above its maximum of 1" in fault.message) == ("corrupt", True)


def bmp(size: int, bits: int, compression: int, masks: bytes, pixels: bytes) -> bytes:
    head = struct.pack("<IiiHHIIiiII", size, 4, 4, 1, bits, compression, 0, 0, 0, 0, 0) + masks
    return b"BM" + struct.pack("<IHHI", 0, 0, 0, 14 + len(head)) + head + pixels


@pytest.mark.parametrize("masks", [(0x1FFFF, 0, 0), (0xF80000, 0x7E0, 0x1F), (0, 0, 0)])
def test_masks_of_bits_that_a_pixel_does_not_have_are_unsupported(masks) -> None:
    data = bmp(40, 16, 3, struct.pack("<3I", *masks), b"\x12\x34" * 16)
    assert fault_of(lambda: decode(data)).kind == "unsupported"


def test_a_bmp_that_ends_in_the_place_of_its_profile_is_no_error_of_another_kind() -> None:
    whole = bmp(124, 24, 0, bytes(16) + b"DEBM" + bytes(64), bytes(48))
    for end in range(60, 14 + 124):
        assert fault_of(lambda end=end: decode(whole[:end])).kind in ("truncated", "corrupt")


def lzw(codes: list[int], bits: int) -> bytes:
    """Sub-blocks of LZW codes, as wide as a decoder expects each."""
    clear, packed, held, out = 1 << bits, 0, 0, bytearray()
    width, free, begun = bits + 1, clear + 2, False
    for code in codes:
        packed |= code << held
        held += width
        while held >= 8:
            out.append(packed & 255)
            packed, held = packed >> 8, held - 8
        if code == clear:
            width, free, begun = bits + 1, clear + 2, False
            continue
        if begun and free < 4096:
            free += 1
            width += free == 1 << width and width < 12
        begun = True
    out.append(packed & 255)
    return (
        b"".join(bytes([len(out[i : i + 255])]) + out[i : i + 255] for i in range(0, len(out), 255)) + b"\0"
    )


def test_codes_of_a_gif_that_make_more_pixels_than_its_frame_end_the_decode() -> None:
    # each of the last codes makes 4,000 pixels
    codes = [4, 0, *range(6, 4096), *[4095] * 400_000]
    head = b"GIF89a" + struct.pack("<HHBBB", 9, 9, 0x81, 0, 0) + bytes(12)
    data = head + b"," + struct.pack("<HHHHB", 0, 0, 9, 9, 0) + b"\2" + lzw(codes, 2) + b";"
    fault_of(lambda: decode(data[:40] + b"\0;"))  # compiles the decoder
    begin = time.process_time()
    fault = fault_of(lambda: decode(data))
    assert (fault.kind, "more than the 9 x 9 pixels" in fault.message) == ("corrupt", True)
    assert time.process_time() - begin < 1


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


PNG_START = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0))


def test_chunks_without_an_end_are_not_followed_from_each_of_them() -> None:
    data = PNG_START + (chunk(b"IDAT", b"") + chunk(b"aaAa", b"")) * 2700
    begin = time.process_time()
    assert read_header(data).orientation == 1
    assert time.process_time() - begin < 0.5


def test_bytes_that_are_no_chunk_of_a_png_are_not_handed_to_the_decoder() -> None:
    # which would allocate the length of the next one
    junk = struct.pack(">I", 2) + b"\x80\0\0\0" + bytes(6)
    image = struct.pack(">I", 0xFF0003E3) + b"IDAT" + bytes(1000)
    begin = time.process_time()
    for end, kind in ((b"", "truncated"), (chunk(b"IEND", b""), "corrupt")):
        assert fault_of(lambda end=end: decode(PNG_START + junk + image + end)).kind == kind
    assert time.process_time() - begin < 0.5


def test_of_many_damaged_texts_of_a_png_one_is_inflated() -> None:
    text = b"Raw profile type exif\0\0" + zlib.compress(b"exif 1 " + b"z" * 2_000_000, 9)
    image = chunk(b"IDAT", zlib.compress(b"\0\0")) + chunk(b"IEND", b"")
    begin = time.process_time()
    assert read_header(PNG_START + chunk(b"zTXt", text) * 400 + image).orientation == 1
    assert time.process_time() - begin < 0.5


@pytest.mark.parametrize("tag", [258, 338, 339])
def test_a_tag_of_millions_of_numbers_is_not_read_whole(tag, tiff_files) -> None:
    values = [number & 0xFFFF for number in range(1 << 20)]
    data = tiff_files.write(np.zeros((8, 8, 3), np.uint8), tiff_files.Layout(), {tag: (3, values)})
    tracemalloc.start()
    try:
        with contextlib.suppress(PixelFault):
            read_header(data)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 12 << 20


def test_a_profile_of_any_size_in_a_tiff_is_left_out(forge) -> None:
    profile = forge.wide_gamut_profile() + bytes(LARGEST_PROFILE)
    decoded = decode(forge.encode(forge.image(24, 24), "TIFF", icc_profile=profile))
    assert decoded.planes.profile is None
    assert decoded.notes == ["ICC profile ignored: it has more than 16 MiB"]


def test_memory_that_does_not_suffice_is_a_fault(forge, monkeypatch) -> None:
    def full(*_: object) -> None:
        raise MemoryError

    data = forge.encode(forge.image(24, 24), "PNG")
    monkeypatch.setattr(np, "frombuffer", full)
    assert fault_of(lambda: decode(data)).kind == "too large"
