"""The order in which windows are attended: a batch of window rows at a time, swept from left to right.

Moving one window to the right, a neighbourhood keeps most of its keys: of a box of nine only the three
windows of the new column are new. So a batch of window rows shares one buffer of keys and one of values,
made of slots of one window each; a step writes the slots whose content has left the neighbourhood and keeps
the others. The order of keys is free: softmax does not depend on it.

A batch has only rows that have the same neighbours, and a step uses only the slots it filled: windows at
the border of the grid have fewer keys, not masked ones. No mask means that SDPA keeps its flash kernel, and
that no padding can ever be attended.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from uhr.models.attention.mask import Piece


@dataclass(frozen=True)
class BufferSlot:
    """Keys in the buffer at [start, start + tokens): those of `piece`, whose window is in `column`."""

    piece: Piece
    column: int
    start: int

    @property
    def stop(self) -> int:
        return self.start + self.piece.tokens

    def same_content(self, other: BufferSlot) -> bool:
        """Whether both have the same tokens at the same place, so that nothing is copied."""
        return self.start == other.start and self.source == other.source

    @property
    def source(self) -> tuple[int, int, int, int, int, int]:
        """What is copied, independent of its place in the buffer and of the window that reads it."""
        part = self.piece
        return part.row, self.column, part.top, part.bottom, part.left, part.right


@dataclass(frozen=True)
class SweepStep:
    """The windows of rows [first, last) in one column, the slots they see, and those that must be written."""

    first: int
    last: int
    column: int
    slots: tuple[BufferSlot, ...]
    fresh: tuple[BufferSlot, ...]
    begins: bool
    """Whether it is the first step of a batch, for which the shared keys must be written as well."""

    @property
    def width(self) -> int:
        """Keys in the slots."""
        return self.slots[-1].stop if self.slots else 0


def steps(around: Sequence[Piece], rows: int, columns: int, most_rows: int) -> Iterator[SweepStep]:
    """Yield the steps that cover each window of a rows x columns grid once, `most_rows` at most in a step."""
    for first, last in _batches(around, rows, most_rows):
        inside = [part for part in around if 0 <= first + part.row < rows]
        previous: tuple[BufferSlot, ...] = ()
        for column in range(columns):
            needed = [part for part in inside if 0 <= column + part.column < columns]
            slots = _place(previous, needed, column)
            fresh = tuple(slot for slot in slots if not any(slot.same_content(old) for old in previous))
            yield SweepStep(first, last, column, slots, fresh, begins=column == 0)
            previous = slots


def most_keys(around: Sequence[Piece]) -> int:
    """Return the most keys that a step has."""
    return sum(part.tokens for part in around)


def _batches(around: Sequence[Piece], rows: int, most_rows: int) -> Iterator[tuple[int, int]]:
    """Yield runs of window rows that have the same neighbours above and below."""
    offsets = {part.row for part in around}

    def neighbours(row: int) -> frozenset[int]:
        return frozenset(offset for offset in offsets if 0 <= row + offset < rows)

    first = 0
    for row in range(1, rows + 1):
        full = row - first == most_rows
        if row == rows or full or neighbours(row) != neighbours(first):
            yield first, row
            first = row


def _place(previous: Sequence[BufferSlot], needed: Sequence[Piece], column: int) -> tuple[BufferSlot, ...]:
    """Return a slot for each needed piece, packed without gaps; a piece keeps the slot that it is already
    in."""
    if len({part.tokens for part in needed}) > 1:
        return _packed(needed, column)
    missing_pieces = {BufferSlot(part, column + part.column, 0).source: part for part in needed}
    kept = {
        i: missing_pieces.pop(slot.source)
        for i, slot in enumerate(previous[: len(needed)])
        if slot.source in missing_pieces
    }
    missing = iter(missing_pieces.values())
    ordered = [kept[i] if i in kept else next(missing) for i in range(len(needed))]
    return _packed(ordered, column)


def _packed(ordered: Sequence[Piece], column: int) -> tuple[BufferSlot, ...]:
    slots, start = [], 0
    for part in ordered:
        slots.append(BufferSlot(part, column + part.column, start))
        start += part.tokens
    return tuple(slots)
