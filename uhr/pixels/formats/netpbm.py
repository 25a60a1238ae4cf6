"""PBM, PGM and PPM (netpbm's manual pages pbm(5), pgm(5), ppm(5)), plain and binary, of any maximum.

For a maximum of 2^n - 1 above 255 the upper eight bits are used, as in all formats here. Any other maximum
is scaled to 255 and rounded.
"""

from __future__ import annotations

import re

import numpy as np

from uhr.pixels.planes import Planes
from uhr.pixels.types import FileBytes, Header, PixelFault

_GAP = re.compile(rb"(?:[ \t\n\v\f\r]+|#[^\n\r]*[\n\r])*")
_NUMBER = re.compile(rb"[0-9]{1,10}(?![0-9])")
_SPACE = b" \t\n\v\f\r"
_COMMENT = re.compile(rb"#[^\n\r]*")
_NUMBERS = re.compile(rb"[0-9 \t\n\v\f\r]*")

_CHUNK = 1 << 16


def header(source: FileBytes) -> Header:
    """Read the header. Raises `PixelFault` for one that is truncated or damaged."""
    return _parsed(source)[0]


def _parsed(source: FileBytes) -> tuple[Header, int, int, int]:
    """Read the header, the digit of the signature, the maximum, and the offset of the values."""
    kind = int(source.at(1, 1))
    numbers, position = [], 2
    for _ in range(2 if kind in (1, 4) else 3):
        position = _behind_gap(source, position)
        digits = source.at(position, 11)
        found = _NUMBER.match(digits)
        if not found:
            text = digits.decode("latin-1")
            raise PixelFault("corrupt", f"the header of the PNM has {text!r} where a number belongs")
        numbers.append(int(found[0]))
        position += found.end()
    width, height, most = numbers if len(numbers) == 3 else (*numbers, 1)
    if source.at(position, 1) not in [bytes([space]) for space in _SPACE]:
        kind_of_fault = "truncated" if position >= source.size else "corrupt"
        raise PixelFault(kind_of_fault, "the header of the PNM does not end in white space")
    if not 0 < most < 65536:
        raise PixelFault("corrupt", f"the PNM has a maximum of {most}, only 1..65535 is defined")
    mode = "RGB" if kind in (3, 6) else "L"
    return Header("PPM", width, height, mode, most.bit_length()), kind, most, position + 1


def _behind_gap(source: FileBytes, position: int) -> int:
    """Return the offset after white space and comments. Raises `PixelFault` if the file ends in them."""
    while True:
        chunk = source.at(position, _CHUNK)
        gap = _GAP.match(chunk)
        end = gap.end() if gap else 0
        position += end
        if end == len(chunk):
            if not chunk:
                raise PixelFault("truncated", "the PNM ends in its header")
        elif chunk[end : end + 1] == b"#":
            position = _behind_line(source, position)
        else:
            return position


def _behind_line(source: FileBytes, position: int) -> int:
    """Return the offset of the next end of a line, or of the file."""
    while True:
        chunk = source.at(position, _CHUNK)
        ends = [end for end in (chunk.find(b"\n"), chunk.find(b"\r")) if end >= 0]
        if ends or not chunk:
            return position + min(ends, default=0)
        position += len(chunk)


def planes(data: bytes, header: Header) -> Planes:
    """Read the pixels of the first image. Raises `PixelFault` for a truncated or damaged file."""
    _, kind, most, start = _parsed(FileBytes(data, len(data)))
    channels = 3 if header.mode == "RGB" else 1
    shape = (header.raw_height, header.raw_width, channels)
    values = (_binary if kind >= 4 else _plain)(data, start, kind, most, shape)
    if kind not in (1, 4) and values.max() > most:
        raise PixelFault("corrupt", f"the PNM has a value of {values.max()}, above its maximum of {most}")
    if most != 255:
        values = _to_eight_bits(most)[values]
    if channels == 1:
        values = np.repeat(values, 3, axis=2)
    return Planes(np.ascontiguousarray(values[..., ::-1]))


def _to_eight_bits(most: int) -> np.ndarray:
    """Return the table from values 0..most to uint8."""
    values = np.arange(most + 1, dtype=np.uint32)
    if most > 255 and most & (most + 1) == 0:
        return (values >> (most.bit_length() - 8)).astype(np.uint8)
    return ((values * 255 + most // 2) // most).astype(np.uint8)


def _binary(data: bytes, start: int, kind: int, most: int, shape: tuple[int, int, int]) -> np.ndarray:
    """Read binary values: uint8 or uint16 [H, W, C], 0..most."""
    height, width, channels = shape
    row = -(-width // 8) if kind == 4 else width * channels * (2 if most > 255 else 1)
    end = start + row * height
    if len(data) < end:
        raise _truncated(row * height, len(data) - start, "bytes")
    # a second image may follow
    if len(data) - end >= row and data[end : end + 1] != b"P":
        raise PixelFault(
            "corrupt", f"the PNM has {len(data) - end} bytes behind the last of its {height} rows"
        )
    if kind == 4:
        packed = np.frombuffer(data, np.uint8, row * height, start).reshape(height, row)
        # 1 is black
        return (1 - np.unpackbits(packed, axis=1, count=width))[..., None]
    if most > 255:
        return np.frombuffer(data, ">u2", height * width * channels, start).astype(np.uint16).reshape(shape)
    return np.frombuffer(data, np.uint8, row * height, start).reshape(shape)


def _plain(data: bytes, start: int, kind: int, most: int, shape: tuple[int, int, int]) -> np.ndarray:
    """Read values in decimal digits, as `_binary`."""
    text = _COMMENT.sub(b"", data[start:])
    needed = shape[0] * shape[1] * shape[2]
    if kind == 1:
        # digits that need no gap between them
        digits = np.frombuffer(text.translate(None, b" \t\n\v\f\r"), np.uint8)[:needed]
        if digits.size and not ((digits == 48) | (digits == 49)).all():
            raise PixelFault("corrupt", "the plain PBM has other characters than 0 and 1")
        values = 49 - digits
    else:
        numbers = _NUMBERS.match(text)
        end = numbers.end() if numbers else 0
        # a gap at the end lets the parser return an empty array without a warning
        values = np.fromstring(text[:end] or b" ", np.int64, sep=" ")[:needed]
        if values.size < needed and end < len(text):
            raise PixelFault(
                "corrupt", f"the plain PNM has a character {text[end : end + 1]!r} among its values"
            )
    if values.size < needed:
        raise _truncated(needed, values.size, "values")
    values = values.reshape(shape)
    if values.max() > most:
        raise PixelFault("corrupt", f"the PNM has a value of {values.max()}, above its maximum of {most}")
    return values.astype(np.uint16 if most > 255 else np.uint8)


def _truncated(needed: int, found: int, unit: str) -> PixelFault:
    return PixelFault("truncated", f"the PNM ends after {found} of {needed} {unit}")
