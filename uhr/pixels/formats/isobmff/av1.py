"""The sequence header of an AV1 bitstream (AV1 specification 5.5): size and colours."""

from __future__ import annotations

from typing import NamedTuple

_SEQUENCE_HEADER = 1


class _Bits:
    """Reads big-endian bit fields; past the end they are zero."""

    def __init__(self, data: bytes) -> None:
        self._value, self._left = int.from_bytes(data, "big"), 8 * len(data)

    def take(self, count: int) -> int:
        self._left -= count
        value = self._value >> self._left if self._left >= 0 else self._value << -self._left
        return value & ((1 << count) - 1)

    def variable_length(self) -> None:
        """Read uvlc(): a number after as many zeros as it has bits."""
        zeros = 0
        while zeros < 32 and not self.take(1):
            zeros += 1
        self.take(zeros if zeros < 32 else 0)


class SequenceHeader(NamedTuple):
    """Largest width and height of a frame in pixels, and the code points of H.273 of colour primaries and
    transfer characteristics; 2 is unspecified.
    """

    width: int
    height: int
    primaries: int
    transfer: int


def sequence_header(data: bytes) -> SequenceHeader | None:
    """Read the first one among the OBUs at the start of a bitstream."""
    position = 0
    while position < len(data):
        first = data[position]
        position += 2 if first & 0x04 else 1
        length = len(data) - position
        if first & 0x02:
            length, position = _leb128(data, position)
        if first >> 3 & 0x0F == _SEQUENCE_HEADER:
            return _sequence_header(_Bits(data[position : position + length]))
        position += length
    return None


def _leb128(data: bytes, position: int) -> tuple[int, int]:
    """Read a little-endian number of seven bits per byte; return it and the offset after it."""
    value = 0
    for place in range(8):
        byte = data[position] if position < len(data) else 0
        position += 1
        value |= (byte & 0x7F) << 7 * place
        if not byte & 0x80:
            break
    return value, position


def _sequence_header(bits: _Bits) -> SequenceHeader:
    take = bits.take
    profile, _, reduced = take(3), take(1), take(1)
    if reduced:
        take(5)
    else:
        _operating_points(bits)
    digits = take(4) + 1, take(4) + 1
    width, height = take(digits[0]) + 1, take(digits[1]) + 1
    if not reduced and take(1):  # frame ids
        take(7)
    take(3)
    if not reduced:
        take(4)
        order_hint = take(1)
        take(2 * order_hint)
        screen_content = 2 if take(1) else take(1)
        if screen_content and not take(1):
            take(1)
        take(3 * order_hint)
    take(3)
    # color_config()
    high = take(1)
    if profile == 2 and high:
        take(1)
    if profile != 1:
        take(1)
    primaries, transfer = (take(8), take(8)) if take(1) else (2, 2)
    return SequenceHeader(width, height, primaries, transfer)


def _operating_points(bits: _Bits) -> None:
    take = bits.take
    delay_bits = 0
    if take(1):  # timing information
        take(64)
        if take(1):
            bits.variable_length()
        if take(1):  # decoder model
            delay_bits = take(5) + 1
            take(42)
    display_delay = take(1)
    for _ in range(take(5) + 1):
        take(12)
        if take(5) > 7:
            take(1)
        if delay_bits and take(1):
            take(2 * delay_bits + 1)
        if display_delay and take(1):
            take(4)
