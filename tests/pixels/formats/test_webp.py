"""WebP chunks that no pixel depends on decide nothing, wherever they are."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from uhr.pixels.decode import decode
from uhr.pixels.headers import read_header
from uhr.pixels.types import PixelFault

ROTATED = b"MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
LONG = 20_000_000


def container(plain: bytes, before: bytes, behind: bytes, flags: int, damage) -> bytes:
    """A simple WebP in the extended format, with chunks before and behind its image data."""
    header = read_header(plain)
    flags |= 0x10 if header.has_alpha else 0
    size = (header.raw_width - 1).to_bytes(3, "little") + (header.raw_height - 1).to_bytes(3, "little")
    chunks = damage.webp_chunk(b"VP8X", bytes([flags, 0, 0, 0]) + size) + before + plain[12:] + behind
    return b"RIFF" + struct.pack("<I", len(chunks) + 4) + b"WEBP" + chunks


@pytest.fixture(params=[("RGB", False), ("RGB", True)], ids=["lossy", "lossless"])
def plain(request, forge) -> bytes:
    mode, lossless = request.param
    return forge.encode(forge.image(60, 40, mode), "WEBP", lossless=lossless)


def test_metadata_of_many_megabytes_decides_nothing(plain, damage, tmp_path) -> None:
    chunk = damage.webp_chunk
    exif, long_exif = chunk(b"EXIF", ROTATED), chunk(b"EXIF", ROTATED + bytes(LONG))
    xmp, unknown = chunk(b"XMP ", b"x" * LONG), chunk(b"prIv", b"x" * (LONG + 1))
    many = chunk(b"abcd", b"x") * 20_000
    right = np.rot90(decode(plain).bgr, -1)[..., ::-1]
    path = tmp_path / "a.webp"
    for before, behind in ((b"", xmp + exif), (b"", exif + xmp), (unknown, long_exif), (many, many + exif)):
        data = container(plain, before, behind, 0x08 | 0x04, damage)
        path.write_bytes(data)
        assert read_header(path).orientation == 6
        decoded = decode(data)
        assert decoded.notes == []
        assert np.array_equal(decoded.rgb(), right)


def test_a_profile_is_applied_and_one_that_is_too_large_is_a_note(plain, damage, forge) -> None:
    profile = forge.wide_gamut_profile()
    for size, notes in ((0, []), (3_000_000, []), (LONG, ["ICC profile ignored: it has more than 16 MiB"])):
        data = container(plain, damage.webp_chunk(b"ICCP", profile + bytes(size)), b"", 0x20, damage)
        decoded = decode(data)
        assert decoded.notes == notes
        assert np.array_equal(decoded.rgb(), decode(plain).rgb()) == bool(notes)
    missing = decode(container(plain, b"", b"", 0x20, damage))
    assert missing.notes == ["ICC profile ignored: it cannot be read"]


def test_a_file_shorter_than_its_container_declares_is_truncated_also_within_metadata(plain, damage) -> None:
    data = container(plain, b"", damage.webp_chunk(b"XMP ", b"x" * 1000), 0x04, damage)
    with pytest.raises(PixelFault) as caught:
        decode(data[:-500])
    assert caught.value.kind == "truncated"


def test_a_canvas_of_another_size_than_the_image_is_corrupt(plain, damage) -> None:
    data = container(plain, b"", b"", 0, damage)
    for size in ((61, 40), (60, 39), (600, 400)):
        with pytest.raises(PixelFault) as caught:
            decode(damage.with_size(data, "WEBP", *size))
        assert caught.value.kind == "corrupt"
