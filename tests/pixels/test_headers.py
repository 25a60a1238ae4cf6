"""Headers agree with Pillow on whatever an encoder writes, and meet garbage with a `PixelFault` at most."""

import io
import os
import struct
import time
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from uhr.pixels.headers import FIRST_BYTES, read_header
from uhr.pixels.types import Header, PixelFault

COLOUR_MODELS = {"1": "L", "I;16": "L", "I": "L"}


def agrees_with_pillow(data: bytes) -> None:
    header, image = read_header(data), Image.open(io.BytesIO(data))
    orientation = image.getexif().get(0x0112, 1)
    assert header.format == image.format
    assert (header.raw_width, header.raw_height) == image.size
    assert header.mode == COLOUR_MODELS.get(image.mode, image.mode)
    assert header.orientation == orientation
    assert header.has_icc == bool(image.info.get("icc_profile"))
    turned = orientation >= 5
    assert (header.width, header.height) == (image.size[::-1] if turned else image.size)


def header_or_fault(data: bytes) -> Header | PixelFault:
    """Any other exception fails the test."""
    try:
        return read_header(data)
    except PixelFault as fault:
        return fault


@given(data=st.data())
def test_jpeg_png_and_webp_agree_with_pillow(data, forge) -> None:
    agrees_with_pillow(data.draw(forge.files(("JPEG", "PNG", "WEBP")))[0])


@given(data=st.data())
def test_other_formats_agree_with_pillow(data, forge) -> None:
    agrees_with_pillow(data.draw(forge.files(("GIF", "BMP", "AVIF")))[0])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_tiff_keeps_its_stored_grid_apart_from_its_orientation(forge, orientation) -> None:
    # Pillow gives a TIFF's size as displayed; the tag and the two raw sides are what was written
    header = read_header(forge.encode(forge.image(30, 20), "TIFF", orientation))
    assert (header.raw_width, header.raw_height, header.orientation) == (30, 20, orientation)
    assert (header.width, header.height) == ((20, 30) if orientation >= 5 else (30, 20))


@pytest.mark.parametrize(("mode", "bits"), [("1", 1), ("L", 8), ("I;16", 16), ("P", 8), ("RGBA", 8)])
def test_bit_depth_of_a_png_is_the_files(forge, mode, bits) -> None:
    assert read_header(forge.encode(forge.image(9, 9, mode), "PNG")).bit_depth == bits


@given(data=st.data())
def test_a_path_and_its_bytes_have_one_header(data, forge, tmp_path_factory) -> None:
    content, _ = data.draw(forge.files())
    path = tmp_path_factory.mktemp("header") / "no-extension"
    path.write_bytes(content)
    assert read_header(path) == read_header(content)


@given(size=st.integers(1, 5), segments=st.integers(1, 4))
@settings(max_examples=20)
def test_segments_far_longer_than_the_first_bytes_are_stepped_over(
    forge, tmp_path_factory, size, segments
) -> None:
    plain = forge.encode(forge.image(31, 17), "JPEG", 6)
    length = min(size * FIRST_BYTES, 65_535)
    filler = (
        b"\xff\xed"
        + struct.pack(">H", length)
        + b"\xff\xd8\xff\xda" * (length // 4)
        + bytes(length % 4 - 2 & 3)
    )
    filler = filler[: 2 + length].ljust(2 + length, b"\0")
    data = plain[:2] + filler * segments + plain[2:]
    path = tmp_path_factory.mktemp("long") / "long.jpg"
    path.write_bytes(data)
    assert read_header(path) == read_header(plain)
    assert read_header(path).orientation == 6


def test_a_thumbnail_in_the_exif_block_is_not_taken_for_the_image(forge) -> None:
    thumbnail = forge.encode(forge.image(160, 120), "JPEG")
    block = forge.image(5, 5).getexif()
    block[0x0112] = 3
    body = block.tobytes() + thumbnail
    segment = b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body
    plain = forge.encode(forge.image(64, 48), "JPEG")
    header = read_header(plain[:2] + segment + plain[2:])
    assert (header.raw_width, header.raw_height, header.orientation) == (64, 48, 3)


def test_an_orientation_behind_the_image_of_a_png_is_found(forge) -> None:
    plain = forge.encode(forge.image(40, 30), "PNG")
    body = b"eXIf" + b"MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x08\0\0\0\0\0\0"
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    late = plain[:-12] + chunk + plain[-12:]
    agrees_with_pillow(late)
    assert read_header(late).orientation == 8
    wrong = plain[:-12] + chunk[:-1] + b"\x00" + plain[-12:]
    assert read_header(wrong).orientation == 1, "a chunk whose checksum does not hold is not believed"


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_is_upright(forge, value) -> None:
    assert read_header(forge.encode(forge.image(8, 4), "JPEG", value)).orientation == 1


@given(data=st.data(), share=st.floats(0, 1))
def test_a_cut_file_has_its_header_or_a_fault(data, forge, share) -> None:
    content, format = data.draw(forge.files(("JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP")))
    outcome = header_or_fault(content[: int(share * len(content))])
    if isinstance(outcome, PixelFault):
        assert outcome.kind in ("empty file", "not an image", "truncated", "corrupt")
    else:
        assert (outcome.format, outcome.raw_width) == (format, read_header(content).raw_width)


@given(data=st.data(), noise=st.binary(min_size=1, max_size=40), where=st.floats(0, 1))
def test_damaged_bytes_give_a_header_or_a_fault(data, forge, noise, where) -> None:
    content, _ = data.draw(forge.files(("JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP")))
    start = int(where * len(content))
    outcome = header_or_fault(content[:start] + noise + content[start + len(noise) :])
    if not isinstance(outcome, PixelFault):
        assert min(outcome.raw_width, outcome.raw_height) > 0
        assert outcome.orientation in range(1, 9)


SIGNATURES = (
    b"",
    b"\xff\xd8\xff",
    b"\x89PNG\r\n\x1a\n",
    b"RIFF\0\0\0\0WEBP",
    b"GIF89a",
    b"II*\0",
    b"BM",
    b"P6 ",
)


@given(start=st.sampled_from(SIGNATURES), rest=st.binary(max_size=300))
def test_garbage_behind_a_signature_is_a_fault_or_a_header(start, rest) -> None:
    assert header_or_fault(start + rest)


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"", "empty file"),
        (b"hello world", "not an image"),
        (b"P3 is not the plan", "not an image"),
        (bytes(1000), "not an image"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "unsupported"),
        (b"\xff\x0a" + bytes(50), "unsupported"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\x04CgBI" + bytes(60), "unsupported"),
        (b"\xff\xd8\xff\xe0", "truncated"),
    ],
)
def test_what_is_no_image_says_so(data, kind) -> None:
    with pytest.raises(PixelFault) as caught:
        read_header(data)
    assert caught.value.kind == kind


def test_a_camera_raw_file_is_not_taken_for_its_thumbnail(forge) -> None:
    raw = forge.encode(forge.image(160, 120), "TIFF", tiffinfo={254: 1})
    with pytest.raises(PixelFault, match="camera raw") as caught:
        read_header(raw)
    assert caught.value.kind == "unsupported"


def test_a_file_that_cannot_be_read_is_unreadable(tmp_path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (tmp_path, tmp_path / "missing", pipe):
        with pytest.raises(PixelFault) as caught:
            read_header(path)
        assert caught.value.kind == "unreadable"


def test_a_giant_image_costs_no_more_than_its_header(forge) -> None:
    claim = struct.pack(">IIBBBBB", 2_000_000_000, 2_000_000_000, 16, 6, 0, 0, 0)
    data = forge.png_with_header(claim)
    assert read_header(data).pixels == 4 * 10**18
    assert Image.MAX_IMAGE_PIXELS is not None, "Pillow's own guard is left as it was"


def test_a_header_takes_less_than_a_tenth_of_a_millisecond(forge, tmp_path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(forge.encode(forge.image(640, 480), "JPEG", 6, icc_profile=forge.srgb_profile()))
    best = min(_seconds(path) for _ in range(50))
    assert best < 1e-4


def _seconds(path) -> float:
    start = time.perf_counter()
    for _ in range(20):
        read_header(path)
    return (time.perf_counter() - start) / 20
