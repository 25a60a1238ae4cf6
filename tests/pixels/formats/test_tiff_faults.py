"""Cut, damaged and contradictory TIFFs are faults of the right kind."""

import struct

import numpy as np
import pytest

from uhr.pixels.decode import decode
from uhr.pixels.types import PixelFault

WIDTH, HEIGHT = 37, 29


def samples_of(bits: int, count: int, size: tuple[int, int] = (HEIGHT, WIDTH)) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 1 << bits, (*size, count))


def fault_of(data: bytes) -> PixelFault:
    with pytest.raises(PixelFault) as caught:
        decode(data)
    return caught.value


@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("compression", ["NONE", "DEFLATE", "LZW", "PACKBITS"])
@pytest.mark.parametrize("keep", [0.05, 0.5, 0.9, 0.999])
def test_a_cut_tiff_is_truncated_wherever_its_directory_is(tiff_files, planar, compression, keep) -> None:
    layout = tiff_files.Layout(bits=16, planar=planar, compression=getattr(tiff_files, compression), rows=4)
    data = tiff_files.write(samples_of(16, 3, size=(90, 80)), layout)
    assert fault_of(data[: int(keep * len(data))]).kind == "truncated"
    first = _directory_first(data)
    assert np.array_equal(decode(first).bgr, decode(data).bgr)
    assert fault_of(first[: int(keep * len(first))]).kind == "truncated"


def _directory_first(data: bytes) -> bytes:
    """Move the directory of a little-endian file before the strips."""
    (directory,) = struct.unpack_from("<I", data, 4)
    strips, tail = data[8:directory], bytearray(data[directory:])
    (count,) = struct.unpack_from("<H", tail)
    for at in range(2, 2 + 12 * count, 12):
        tag, kind, many, where = struct.unpack_from("<HHII", tail, at)
        size = {3: 2, 4: 4, 5: 8, 7: 1}[kind] * many
        if size > 4:
            struct.pack_into("<I", tail, at + 8, where - directory + 8)
        if tag == 273:
            place = at + 8 if size <= 4 else where - directory
            offsets = struct.unpack_from(f"<{many}I", tail, place)
            struct.pack_into(f"<{many}I", tail, place, *(offset + len(tail) for offset in offsets))
    return data[:4] + struct.pack("<I", 8) + bytes(tail) + strips


def test_a_wrong_byte_in_a_deflated_strip_is_corrupt(tiff_files) -> None:
    data = bytearray(tiff_files.write(samples_of(8, 3), tiff_files.Layout(compression=tiff_files.DEFLATE)))
    for place in range(200, 1500, 97):
        changed = bytearray(data)
        changed[place] ^= 0x55
        assert fault_of(bytes(changed)).kind == "corrupt"


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        ({257: HEIGHT * 2}, "strips"),
        ({256: WIDTH * 2}, "bytes"),
        ({279: [10]}, "bytes"),
        ({277: (3, [1])}, "samples"),
        ({320: (3, [1, 2, 3]), 262: (3, [3]), 277: (3, [1]), 258: (3, [8])}, "colour map"),
    ],
)
def test_a_directory_that_contradicts_itself_is_corrupt(tiff_files, tags, message) -> None:
    data = tiff_files.write(samples_of(8, 3), tiff_files.Layout(rows=HEIGHT), {278: HEIGHT, **tags})
    fault = fault_of(data)
    assert fault.kind == "corrupt"
    assert message in fault.message


def test_a_sparse_tile_is_unsupported(tiff_files) -> None:
    layout = tiff_files.Layout(tile=16)
    data = tiff_files.write(samples_of(8, 3), layout, {324: [0] * 6, 325: [0] * 6})
    assert fault_of(data).kind == "unsupported"


def test_strips_without_byte_counts_are_read_where_no_compression_hides_their_length(tiff_files) -> None:
    samples = samples_of(8, 3)
    data = tiff_files.write(samples, tiff_files.Layout(rows=5), {279: None})
    assert np.array_equal(decode(data).rgb(), samples)
    packed = tiff_files.Layout(rows=5, compression=tiff_files.DEFLATE)
    assert fault_of(tiff_files.write(samples, packed, {279: None})).kind == "corrupt"


def test_a_strip_that_is_filled_up_is_read(tiff_files) -> None:
    # the last strip has rows of its own only up to the image's height
    samples = samples_of(8, 3, size=(10, 20))
    layout = tiff_files.Layout(rows=8, compression=tiff_files.DEFLATE)
    padded = np.concatenate([samples, np.zeros((6, 20, 3), int)])
    data = tiff_files.write(padded, layout, {257: 10})
    assert np.array_equal(decode(data).rgb(), samples)


def test_a_jpeg_that_names_a_huge_size_in_a_small_tiff_is_corrupt(forge, tiff_files) -> None:
    stream = bytearray(forge.encode(forge.image(80, 48), "JPEG"))
    frame = stream.index(b"\xff\xc0")
    struct.pack_into(">HH", stream, frame + 5, 65_000, 65_000)
    tags = {256: 80, 257: 48, 258: (3, [8, 8, 8]), 259: (3, [7]), 262: (3, [6]), 277: (3, [3]), 278: 48}
    fault = fault_of(tiff_files.assemble([bytes(stream)], tags, tiff_files.Layout()))
    assert (fault.kind, "65000 x 65000" in fault.message) == ("corrupt", True)


def test_more_bands_than_any_image_has_are_unsupported(tiff_files) -> None:
    data = tiff_files.write(samples_of(8, 3), tiff_files.Layout(), {277: (3, [65_535]), 258: (3, [8])})
    assert fault_of(data).kind == "unsupported"


def test_the_number_of_samples_may_follow_from_their_depths(tiff_files) -> None:
    samples = samples_of(8, 3)
    assert np.array_equal(decode(tiff_files.write(samples, tiff_files.Layout(), {277: None})).rgb(), samples)
