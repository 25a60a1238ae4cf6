"""An AVIF of tiles: the file is assembled here box by box (ISO/IEC 23008-12, 6.6.2.3)."""

import io
import struct

import numpy as np
import pytest
from PIL import Image

from uhr.pixels.decode import decode
from uhr.pixels.formats.isobmff import heif
from uhr.pixels.types import FileBytes, PixelFault

SIDE = 64


def box(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body) + 8) + kind + body


def full(kind: bytes, body: bytes, version: int = 0, flags: int = 0) -> bytes:
    return box(kind, struct.pack(">I", version << 24 | flags) + body)


def tile(pixels: np.ndarray) -> tuple[bytes, bytes, bytes]:
    """The AV1 data of an image, and its av1C and colr boxes."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "AVIF", quality=100, subsampling="4:4:4", speed=9)
    data = buffer.getvalue()
    facts = heif.read(FileBytes(data, len(data)))
    start, count = facts.bitstream
    return data[start : start + count], box(b"av1C", facts.config), box(b"colr", facts.find(b"colr"))


def grid(
    tiles: list[np.ndarray], rows: int, columns: int, width: int, height: int, side: int = SIDE
) -> bytes:
    """Item 1 is the grid, items 2 and up its tiles, whose `ispe` says `side`."""
    coded = [tile(pixels) for pixels in tiles]
    numbers = range(2, 2 + len(tiles))
    payload = struct.pack(">BBBBHH", 0, 0, rows - 1, columns - 1, width, height)
    entries = [struct.pack(">HH4sB", n, 0, b"grid" if n == 1 else b"av01", 0) for n in (1, *numbers)]
    iinf = full(
        b"iinf", struct.pack(">H", len(entries)) + b"".join(full(b"infe", e, version=2) for e in entries)
    )
    iref = full(b"iref", box(b"dimg", struct.pack(f">HH{len(tiles)}H", 1, len(tiles), *numbers)))
    sizes = (struct.pack(">II", width, height), struct.pack(">II", side, side))
    properties = [full(b"ispe", size) for size in sizes]
    properties += [full(b"pixi", b"\3\x08\x08\x08"), coded[0][1], coded[0][2]]
    uses = {1: (1, 3, 5), **dict.fromkeys(numbers, (2, 3, 0x84, 5))}
    ipma = struct.pack(">I", len(uses)) + b"".join(
        struct.pack(">HB", n, len(u)) + bytes(u) for n, u in uses.items()
    )
    iprp = box(b"iprp", box(b"ipco", b"".join(properties)) + full(b"ipma", ipma))
    head = box(b"ftyp", b"avif\0\0\0\0avifmif1miaf")

    def meta(first: int) -> bytes:
        places = [(1, 1, 0, len(payload))]
        for number, (data, *_) in zip(numbers, coded, strict=True):
            places.append((number, 0, first, len(data)))
            first += len(data)
        items = b"".join(
            struct.pack(">HHHHII", n, method, 0, 1, at, count) for n, method, at, count in places
        )
        iloc = full(b"iloc", b"\x44\0" + struct.pack(">H", len(places)) + items, version=1)
        hdlr = full(b"hdlr", bytes(4) + b"pict" + bytes(13))
        pitm = full(b"pitm", struct.pack(">H", 1))
        return full(b"meta", hdlr + pitm + iloc + iinf + iref + iprp + box(b"idat", payload))

    start = len(head) + len(meta(0)) + 8
    return head + meta(start) + box(b"mdat", b"".join(data for data, *_ in coded))


@pytest.fixture
def tiles(forge) -> list[np.ndarray]:
    return [np.asarray(forge.image(SIDE, SIDE, seed=seed)) for seed in range(4)]


def test_tiles_are_put_together_and_cut_to_the_size_of_the_grid(tiles) -> None:
    decoded = decode(grid(tiles, 2, 2, 120, 100))
    whole = np.concatenate([np.concatenate(tiles[:2], axis=1), np.concatenate(tiles[2:], axis=1)])
    assert (decoded.header.raw_width, decoded.header.raw_height) == (120, 100)
    assert (decoded.header.mode, decoded.header.bit_depth) == ("RGB", 8)
    assert np.abs(decoded.rgb().astype(int) - whole[:100, :120]).max() < 12


def test_colours_and_damage_of_a_grid_are_those_of_its_tiles(tiles) -> None:
    data = grid(tiles, 2, 2, 128, 128)
    hdr = data.replace(b"nclx\0\x01\0\x0d", b"nclx\0\x09\0\x10")
    for changed, kind in (
        (hdr, "unsupported"),
        (data[:-1], "truncated"),
        (data[: len(data) // 2], "truncated"),
    ):
        with pytest.raises(PixelFault) as caught:
            decode(changed)
        assert caught.value.kind == kind
    with pytest.raises(PixelFault) as caught:
        decode(grid(tiles, 2, 2, 128, 128, side=SIDE * 2))
    assert caught.value.kind == "corrupt"
