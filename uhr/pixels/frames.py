"""Whether a file contains more frames than the first, which is the only one that is decoded."""

from __future__ import annotations

from uhr.pixels.types import Header


def several_frames(data: bytes, header: Header) -> bool:
    """Whether the bytes of a whole file announce a second frame or page. The previews and depth maps that a
    JPEG may carry behind its image (MPO), and the sizes of an icon, are no frames.
    """
    if header.format == "GIF":
        return _second_gif_frame(data)
    if header.format == "TIFF":
        return _second_tiff_page(data)
    return header.animated


def _second_gif_frame(data: bytes) -> bool:
    """Walk the blocks of a GIF (GIF89a, 20 to 24) to its second image descriptor."""
    position = 13 + _colour_table(data[10:11])
    frames = 0
    while position < len(data):
        kind = data[position]
        if kind == 0x2C:
            frames += 1
            if frames == 2:
                return True
            position += 11 + _colour_table(data[position + 9 : position + 10])
        elif kind == 0x21:
            position += 2
        else:
            return False
        while position < len(data) and data[position]:
            position += 1 + data[position]
        position += 1
    return False


def _colour_table(flags: bytes) -> int:
    """Bytes of the colour table that a packed field announces."""
    return 3 << (flags[0] & 7) + 1 if flags and flags[0] & 0x80 else 0


def _second_tiff_page(data: bytes) -> bool:
    """Whether the first directory of a TIFF, or a BigTIFF, points to another one."""
    order = "little" if data[:2] == b"II" else "big"

    def number(start: int, count: int) -> int:
        return int.from_bytes(data[start : start + count], order)

    if number(2, 2) == 43:
        directory = number(8, 8)
        return number(directory + 8 + 20 * number(directory, 8), 8) != 0
    directory = number(4, 4)
    return number(directory + 2 + 12 * number(directory, 2), 4) != 0
