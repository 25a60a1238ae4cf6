"""The order in which windows are attended: rows of windows side by side, swept from the left to the right.

Moving one window to the right, a neighbourhood keeps most of its keys: of a box of nine only the three
windows of the new column are unread. So a batch of window rows shares one buffer of keys and one of values,
made of slots of a window each; a step writes the slots whose content has left the neighbourhood and leaves
the others. The order of keys is free: softmax does not care.

A batch holds only rows that have the same neighbours, and a step uses only the slots it filled: windows at
the border of the grid have fewer keys, not masked ones. No mask means that SDPA keeps its flash kernel, and
that no padding can ever be attended.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from uhr.models.attention.rules import Piece


@dataclass(frozen=True)
class Slot:
    """Keys in the buffer at [start, start + tokens): those of `piece`, whose window stands in `column`."""

    piece: Piece
    column: int
    start: int

    @property
    def stop(self) -> int:
        return self.start + self.piece.tokens

    def holds(self, other: Slot) -> bool:
        """The same tokens at the same place: nothing to copy."""
        return self.start == other.start and self.source == other.source

    @property
    def source(self) -> tuple[int, int, int, int, int, int]:
        """What is copied, independent of where to and of which window asks."""
        part = self.piece
        return part.row, self.column, part.top, part.bottom, part.left, part.right


@dataclass(frozen=True)
class Step:
    """The windows of rows [first, last) in one column: the slots they see, and those that must be written."""

    first: int
    last: int
    column: int
    slots: tuple[Slot, ...]
    fresh: tuple[Slot, ...]
    begins: bool
    """The first step of a batch: what all its steps share must be written as well."""

    @property
    def width(self) -> int:
        """Keys in the slots."""
        return self.slots[-1].stop if self.slots else 0


def steps(around: Sequence[Piece], rows: int, columns: int, most_rows: int) -> Iterator[Step]:
    """All windows of a rows x columns grid, each once, `most_rows` at most in a step."""
    for first, last in _batches(around, rows, most_rows):
        inside = [part for part in around if 0 <= first + part.row < rows]
        held: tuple[Slot, ...] = ()
        for column in range(columns):
            wanted = [part for part in inside if 0 <= column + part.column < columns]
            slots = _place(held, wanted, column)
            fresh = tuple(slot for slot in slots if not any(slot.holds(old) for old in held))
            yield Step(first, last, column, slots, fresh, begins=column == 0)
            held = slots


def most_keys(around: Sequence[Piece]) -> int:
    """Keys that a step has at most."""
    return sum(part.tokens for part in around)


def _batches(around: Sequence[Piece], rows: int, most_rows: int) -> Iterator[tuple[int, int]]:
    """Runs of window rows that have the same neighbours above and below."""
    offsets = {part.row for part in around}

    def neighbours(row: int) -> frozenset[int]:
        return frozenset(offset for offset in offsets if 0 <= row + offset < rows)

    first = 0
    for row in range(1, rows + 1):
        full = row - first == most_rows
        if row == rows or full or neighbours(row) != neighbours(first):
            yield first, row
            first = row


def _place(held: Sequence[Slot], wanted: Sequence[Piece], column: int) -> tuple[Slot, ...]:
    """A slot for each wanted piece, packed without gaps; what is already in a slot that stays is left
    there."""
    if len({part.tokens for part in wanted}) > 1:
        return _in_a_row(wanted, column)
    want = {Slot(part, column + part.column, 0).source: part for part in wanted}
    stays = {i: want.pop(slot.source) for i, slot in enumerate(held[: len(wanted)]) if slot.source in want}
    missing = iter(want.values())
    ordered = [stays[i] if i in stays else next(missing) for i in range(len(wanted))]
    return _in_a_row(ordered, column)


def _in_a_row(ordered: Sequence[Piece], column: int) -> tuple[Slot, ...]:
    slots, start = [], 0
    for part in ordered:
        slots.append(Slot(part, column + part.column, start))
        start += part.tokens
    return tuple(slots)
