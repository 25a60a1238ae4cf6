"""PNG chunks that no pixel depends on decide nothing; those that pixels depend on are whole, or a fault."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest

from uhr.pixels.decode import decode
from uhr.pixels.formats import header_walks
from uhr.pixels.formats.png import PngFile
from uhr.pixels.headers import read_header
from uhr.pixels.types import PixelFault

ROTATED = b"MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
LONG = 9_000_000
SIGNATURE = b"\x89PNG\r\n\x1a\n"


def fault_of(data: bytes) -> PixelFault:
    with pytest.raises(PixelFault) as caught:
        decode(data)
    return caught.value


@pytest.fixture(scope="module")
def whole(forge) -> bytes:
    return forge.encode(forge.image(300, 200), "PNG")


@pytest.fixture
def chunk(damage):
    return damage.png_chunk


def chunks_of(data: bytes) -> list[tuple[bytes, bytes]]:
    found, position = [], 8
    while position < len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        found.append((kind, data[position + 8 : position + 8 + length]))
        position += 12 + length
    return found


def before(data: bytes, *chunks: bytes) -> bytes:
    return data[:33] + b"".join(chunks) + data[33:]


def behind(data: bytes, *chunks: bytes) -> bytes:
    return data[:-12] + b"".join(chunks) + data[-12:]


METADATA = {
    b"tEXt": b"prompt\0" + b"y" * LONG,
    b"iTXt": b"workflow\0\0\0\0\0" + b"y" * LONG,
    b"zTXt": b"a\0\0" + zlib.compress(b"y" * LONG),
    b"caBX": b"y" * LONG,
    b"prIv": b"y" * LONG,
    b"tIME": b"y" * LONG,
    b"iCCP": b"a\0\0" + b"y" * LONG,
}


@pytest.mark.parametrize("place", [before, behind])
@pytest.mark.parametrize("kind", METADATA)
def test_metadata_of_many_megabytes_decides_nothing(kind, place, whole, chunk) -> None:
    data = place(whole, chunk(kind, METADATA[kind]))
    assert np.array_equal(decode(data).bgr, decode(whole).bgr)
    assert PngFile(data).decodable == whole


@pytest.mark.parametrize("place", [before, behind])
def test_an_orientation_in_a_long_exif_chunk_or_before_long_text_is_read(
    place, whole, chunk, tmp_path
) -> None:
    long = chunk(b"eXIf", ROTATED + bytes(LONG))
    short = chunk(b"eXIf", ROTATED)
    text = chunk(b"iTXt", b"workflow\0\0\0\0\0" + b"y" * LONG)
    path = tmp_path / "a.png"
    for data in (place(whole, long), place(whole, short, text), place(whole, text, short)):
        path.write_bytes(data)
        assert read_header(data).orientation == read_header(path).orientation == 6
        assert decode(data).rgb().shape == (300, 200, 3)


def test_chunks_are_found_behind_image_data_of_any_division(whole, chunk, forge, tmp_path) -> None:
    data = b"".join(body for kind, body in chunks_of(whole) if kind == b"IDAT")
    text = chunk(b"tEXt", b"a\0" + b"y" * 100_000)
    path = tmp_path / "a.png"
    for sizes in ([7], [1000], [1, 2, 3], [8192, 8192, 8192, 5], [10**9]):
        parts, position = [], 0
        while position < len(data):
            size = sizes[len(parts) % len(sizes)]
            parts.append(chunk(b"IDAT", data[position : position + size]))
            position += size
        for late in (chunk(b"eXIf", ROTATED), chunk(b"eXIf", ROTATED) + text, text + chunk(b"eXIf", ROTATED)):
            divided = whole[:33] + b"".join(parts) + late + whole[-12:]
            path.write_bytes(divided)
            assert read_header(path).orientation == 6
            assert read_header(divided + b"behind the end") == read_header(path)
        assert read_header(whole[:33] + b"".join(parts) + text + whole[-12:]).orientation == 1


def test_nothing_that_the_decoder_does_not_need_is_inflated(whole, chunk) -> None:
    bomb = zlib.compress(bytes(200_000_000), 9)
    data = before(whole, chunk(b"iCCP", b"a\0\0" + bomb), *[chunk(b"zTXt", b"a\0\0" + bomb)] * 20)
    decoded = decode(data)
    assert np.array_equal(decoded.rgb(), decode(whole).rgb())
    assert decoded.notes == ["ICC profile ignored: it has more than 16 MiB"]
    assert PngFile(data).decodable == whole


def test_a_profile_of_megabytes_is_applied_whatever_text_is_there(forge, chunk) -> None:
    plain = forge.encode(forge.image(40, 30), "PNG")
    profile = forge.wide_gamut_profile()
    right = decode(forge.encode(forge.image(40, 30), "PNG", icc_profile=profile)).rgb()
    noise = np.random.default_rng(0).bytes(3_000_000)
    long = chunk(b"iCCP", b"long\0\0" + zlib.compress(profile + noise))
    text = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(90_000_000)))
    decoded = decode(before(plain, text, long))
    assert decoded.notes == []
    assert np.array_equal(decoded.rgb(), right)
    assert not np.array_equal(decoded.rgb(), decode(plain).rgb())


def damaged(data: bytes, kind: bytes) -> bytes:
    """The last byte of the first such chunk's checksum is changed."""
    at = data.find(kind)
    end = at + 8 + int.from_bytes(data[at - 4 : at], "big")
    return data[: end - 1] + bytes([data[end - 1] ^ 1]) + data[end:]


@pytest.mark.parametrize("kind", [b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"])
def test_a_wrong_checksum_of_what_pixels_depend_on_is_corrupt(kind, forge) -> None:
    data = forge.encode(forge.image(30, 20, "P"), "PNG", transparency=3)
    fault = fault_of(damaged(data, kind))
    assert fault.kind == "corrupt"
    assert kind.decode() in fault.message


@pytest.mark.parametrize("kind", [b"tEXt", b"gAMA", b"prIv", b"iCCP", b"eXIf"])
def test_a_wrong_checksum_of_metadata_is_a_note(kind, whole, chunk) -> None:
    body = {b"gAMA": b"\0\0\xb1\x8f", b"eXIf": ROTATED}.get(kind, b"a\0\0" + zlib.compress(b"b"))
    for place in (before, behind):
        decoded = decode(place(whole, damaged(chunk(kind, body), kind)))
        assert np.array_equal(decoded.rgb(), decode(whole).rgb())
        assert f"the {kind.decode()} chunk is ignored: its checksum is wrong" in decoded.notes


def test_palettes_and_transparency_that_no_pixel_uses_are_left_out(whole, chunk, forge) -> None:
    suggested = chunk(b"PLTE", bytes(range(30)))
    for data in (whole, forge.encode(forge.image(30, 20, "LA"), "PNG")):
        odd = before(data, suggested, chunk(b"bKGD", bytes(6)))
        assert np.array_equal(decode(odd).rgb(), decode(data).rgb())
        assert decode(odd).notes == []
    with_alpha = forge.encode(forge.image(30, 20, "RGBA"), "PNG")
    assert decode(before(with_alpha, chunk(b"tRNS", bytes(6)))).notes == []
    assert np.array_equal(decode(behind(whole, chunk(b"tRNS", bytes(6)))).rgb(), decode(whole).rgb())


def test_an_unknown_critical_chunk_is_unsupported_by_name(whole, chunk) -> None:
    fault = fault_of(before(whole, chunk(b"JDAT", b"x")))
    assert (fault.kind, "JDAT" in fault.message) == ("unsupported", True)
    assert fault_of(before(whole, damaged(chunk(b"JDAT", b"x"), b"JDAT"))).kind == "corrupt"


def test_more_image_data_than_the_header_declares_is_corrupt_and_bytes_behind_them_are_a_note(forge) -> None:
    header = struct.pack(">IIBBBBB", 60, 40, 8, 2, 0, 0, 0)
    rows = b"".join(b"\0" + row.tobytes() for row in np.asarray(forge.image(60, 40)))
    right = decode(forge.png(header, rows)).rgb()
    fault = fault_of(forge.png(header, rows + rows))
    assert (fault.kind, "Too much image data" in fault.message) == ("corrupt", True)
    packed = zlib.compress(rows)
    data = forge.png(header, rows).replace(
        struct.pack(">I", len(packed)) + b"IDAT" + packed,
        struct.pack(">I", len(packed) + 9) + b"IDAT" + packed,
    )
    end = data.find(packed) + len(packed)
    checksum = struct.pack(">I", zlib.crc32(b"IDAT" + packed + b"some more"))
    decoded = decode(data[:end] + b"some more" + checksum + data[end + 4 :])
    assert np.array_equal(decoded.rgb(), right)
    assert decoded.notes == ["extra bytes behind the compressed image data"]


@pytest.mark.parametrize("size", [(1_000_001, 1), (1, 1_000_001)])
def test_a_side_beyond_the_limit_of_libpng_is_unsupported_with_the_limit_named(size, forge) -> None:
    fault = fault_of(forge.png_with_header(struct.pack(">IIBBBBB", *size, 8, 0, 0, 0, 0)))
    assert fault.kind == "unsupported"
    assert "1,000,000 px" in fault.message


def test_a_side_within_the_limit_is_decoded(forge) -> None:
    header = struct.pack(">IIBBBBB", 1_000_000, 1, 8, 0, 0, 0, 0)
    assert decode(forge.png(header, b"\0" + bytes(1_000_000))).bgr.shape == (1, 1_000_000, 3)


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_one_transparent_gray_value_at_every_depth(depth, forge, chunk) -> None:
    width, top = 16, (1 << depth) - 1
    values = [n * top // (width - 1) for n in range(width)]
    bits = "".join(f"{value:0{depth}b}" for value in values)
    row = int(bits, 2).to_bytes(len(bits) // 8, "big")
    data = forge.png(struct.pack(">IIBBBBB", width, 1, depth, 0, 0, 0, 0), b"\0" + row)
    key = values[width // 2]
    decoded = decode(before(data, chunk(b"tRNS", struct.pack(">H", key))))
    assert decoded.notes == []
    gray = [value >> 8 if depth == 16 else value * 255 // top for value in values]
    expected = [255 if value == key else shown for value, shown in zip(values, gray, strict=True)]
    assert decoded.rgb()[0, :, 0].tolist() == expected


def test_an_interlaced_image_is_clean(forge) -> None:
    pixels = np.asarray(forge.image(53, 37))
    passes = (
        (0, 0, 8, 8),
        (4, 0, 8, 8),
        (0, 4, 4, 8),
        (2, 0, 4, 4),
        (0, 2, 2, 4),
        (1, 0, 2, 2),
        (0, 1, 1, 2),
    )
    rows = b"".join(
        b"\0" + row.tobytes() for x, y, right, down in passes for row in pixels[y::down, x::right]
    )
    decoded = decode(forge.png(struct.pack(">IIBBBBB", 53, 37, 8, 2, 0, 0, 1), rows))
    assert decoded.notes == []
    assert np.array_equal(decoded.rgb(), pixels)


def test_too_many_chunks_are_unsupported_with_the_limit_named(whole, chunk, monkeypatch) -> None:
    monkeypatch.setattr(header_walks, "MOST_PARTS", 50)
    with pytest.raises(PixelFault, match="a PNG of more than 50 chunks") as caught:
        read_header(before(whole, *[chunk(b"tEXt", b"a\0b")] * 60))
    assert caught.value.kind == "unsupported"


def test_of_an_animation_the_default_image_is_decoded(forge, chunk) -> None:
    from PIL import Image

    first, second = (Image.new("RGB", (16, 16), colour) for colour in ("red", "blue"))
    for default in (False, True):
        data = forge.encode(
            first, "PNG", save_all=True, append_images=[second, second], default_image=default
        )
        decoded = decode(data)
        assert np.array_equal(decoded.rgb(), np.asarray(first))
        assert {kind for kind, _ in chunks_of(PngFile(data).decodable)} == {b"IHDR", b"IDAT", b"IEND"}


def test_a_chunk_that_claims_more_bytes_than_the_file_has_costs_no_memory(forge) -> None:
    data = bytearray(forge.encode(forge.image(48, 40), "PNG"))
    struct.pack_into(">I", data, data.index(b"IDAT") - 4, 0x7FFFFFFF)
    fault = fault_of(bytes(data))
    assert fault.kind == "corrupt"
    assert "ends within its IDAT chunk of 2,147,483,647 bytes" in fault.message
    assert fault_of(bytes(data[:200])).kind == "truncated"
