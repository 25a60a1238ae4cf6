"""Where to put activations down, so that an image of any size passes in a given memory with least work.

Every GroupNorm needs the whole image's statistics before anything behind it can be computed. Between two
places where the activation is put down (a segment), each norm but the first therefore costs one more pass
over the layers before it. Putting the activation down often is cheap in work and dear in memory; at 8192 x
8192 a single activation of the last decoder block is 32 GiB in float32, while the segment from the block
before it to the image holds half of that and computes six times as much. `make_plan` finds the cheapest
set of places that fits.

What is counted (bytes): the caller's input, the result, the activation that is put down (input and output of
a segment share the space: bands of the input go as bands of the output come), keys and values, and the
scratch of one band, with a convolution kernel's copies of its input and output. Not counted: weights.
"""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass
from typing import Any

from uhr.base.errors import UserError
from uhr.models.vae.attention import Attention
from uhr.models.vae.program import Layer, Unit, shapes
from uhr.models.vae.stream import Conv, Double, Join, Norm, Shape, Split

SCRATCH = 1 << 30
"""Bands grow until their scratch is this, if the memory allows it: beyond, they are no faster."""


@dataclass(frozen=True)
class Segment:
    """Units `first` to `last - 1`, read in bands of at most `rows` rows, put down in bands of at most
    `put`."""

    first: int
    last: int
    rows: int
    put: int
    held: int
    scratch: int
    flops: int


@dataclass(frozen=True)
class Plan:
    segments: tuple[Segment, ...]
    fixed: int
    """Bytes of input and result."""
    plain_flops: int
    """Work of one untiled run."""

    @property
    def peak(self) -> int:
        """Upper bound of the bytes alive at once."""
        return self.fixed + max(segment.held + segment.scratch for segment in self.segments)

    @property
    def flops(self) -> int:
        return sum(segment.flops for segment in self.segments)

    def describe(self) -> dict[str, Any]:
        """JSON for `--plan`: memory in bytes, work against an untiled run."""
        return {
            "peak_bytes": self.peak,
            "work": round(self.flops / self.plain_flops, 2),
            "segments": len(self.segments),
        }


@dataclass(frozen=True)
class Task:
    """One encode or decode: the units, the input's shape, bytes per value of the pass, whether activations
    are put down on the CPU and so cost nothing here, and bytes of input and result."""

    units: list[Unit]
    given: Shape
    itemsize: int
    elsewhere: bool
    fixed: int

    @functools.cached_property
    def shapes(self) -> list[Shape]:
        return shapes(self.units, self.given)


def make_plan(task: Task, memory: int) -> Plan:
    """The least work whose `peak` is at most `memory` bytes; UserError with the least memory that is
    possible."""
    cuts = _cheapest(task, memory - task.fixed)
    if cuts is None:
        least = least_memory(task)
        shape = f"{task.given.width}x{task.given.height}"
        raise UserError(
            f"exact tiling of a {shape} input in {_words(memory)} is not possible",
            f"give it at least {_words(least)}" + ("" if task.elsewhere else ", or hold: cpu"),
        )
    segments = tuple(
        _with_widest_bands(task, first, last, memory - task.fixed) for first, last in itertools.pairwise(cuts)
    )
    return Plan(segments, task.fixed, once(task))


def least_memory(task: Task) -> int:
    """Bytes with less of which `make_plan` finds nothing."""
    return task.fixed + _least(task)


def whole_bytes(task: Task) -> int:
    """Bytes of an untiled run: input and output of the largest layer with their copies in a kernel's own
    layout, and the residual branch; attention by a kernel of linear memory."""
    peak = 0
    for unit, shape in zip(task.units, task.shapes, strict=False):
        branch = shape.size(task.itemsize) if isinstance(unit[0], Split) else 0
        for layer in unit:
            out = layer.shape(shape)
            here = 2 * (shape.size(task.itemsize) + out.size(task.itemsize))
            if isinstance(layer, Attention):
                here = 7 * shape.size(task.itemsize)
            peak, shape = max(peak, branch + here), out
    return task.fixed + peak


def most_values(task: Task) -> int:
    """Values of the largest tensor of an untiled run of one sample."""
    most = 0
    for unit, shape in zip(task.units, task.shapes, strict=False):
        for layer in unit:
            shape = layer.shape(shape)
            most = max(most, shape.size(1))
    return most


def _cheapest(task: Task, memory: int) -> list[int] | None:
    """Places 0 = p0 < p1 < ... < pn = the end that minimise the work, or None. Shortest path over the
    units."""
    best: list[tuple[float, list[int]]] = [(0.0, [0])]
    for last in range(1, len(task.units) + 1):
        options = [
            (best[first][0] + _flops(task, first, last), [*best[first][1], last])
            for first in range(last)
            if best[first][1] and _possible(task, first, last) and _need(task, first, last) <= memory
        ]
        best.append(min(options, default=(math.inf, [])))
    return best[-1][1] or None


def _least(task: Task) -> int:
    """The smallest memory for which `_cheapest` finds something: the widest segment of the best path."""
    best = [0]
    for last in range(1, len(task.units) + 1):
        best.append(
            min(
                max(best[first], _need(task, first, last))
                for first in range(last)
                if _possible(task, first, last)
            )
        )
    return best[-1]


def _possible(task: Task, first: int, last: int) -> bool:
    """Attention is a segment of its own."""
    return last - first == 1 or not any(isinstance(unit[0], Attention) for unit in task.units[first:last])


def _need(task: Task, first: int, last: int) -> int:
    """The least memory of a segment: its bands one row high."""
    return (
        _held(task, first, last) + _scratch(task, first, last, 1) + task.shapes[last].size(task.itemsize, 1)
    )


def _held(task: Task, first: int, last: int) -> int:
    """Activations at rest: the input's bands make room for the output's, so the larger of the two."""
    sizes = [shape.size(task.itemsize) for shape in task.shapes]
    ends = [sizes[place] for place in (first, last) if 0 < place < len(task.units)]
    held = 0 if task.elsewhere else max(ends, default=0)
    return held + (2 * sizes[first] if isinstance(task.units[first][0], Attention) else 0)


def _flops(task: Task, first: int, last: int) -> int:
    """All passes of a segment: one to each norm that has work before it in the segment, and the last."""
    total = so_far = 0
    for unit, shape in zip(task.units[first:last], task.shapes[first:last], strict=True):
        for layer in unit:
            if isinstance(layer, Norm):
                total += so_far
            so_far += _work(layer, shape)
            shape = layer.shape(shape)
    return total + so_far


def once(task: Task) -> int:
    """Operations of an untiled run."""
    total = 0
    for unit, shape in zip(task.units, task.shapes, strict=False):
        for layer in unit:
            total += _work(layer, shape)
            shape = layer.shape(shape)
    return total


def _work(layer: Layer, shape: Shape) -> int:
    if isinstance(layer, Join) and layer.shortcut is not None:
        return 2 * layer.shortcut.in_channels * shape.channels * shape.height * shape.width
    return layer.flops(shape) if isinstance(layer, Conv | Attention) else 0


def _with_widest_bands(task: Task, first: int, last: int, memory: int) -> Segment:
    """Most of the room goes to the band that is worked on, the rest to the one that its rows are put down
    in."""
    held, row = _held(task, first, last), task.shapes[last].size(task.itemsize, 1)
    least = _scratch(task, first, last, 1)
    room = max(min(memory - held, SCRATCH), least + row)
    low, high = 1, task.shapes[first].height
    while low < high:
        middle = (low + high + 1) // 2
        if _scratch(task, first, last, middle) <= max(room * 3 // 4, least):
            low = middle
        else:
            high = middle - 1
    scratch = _scratch(task, first, last, low)
    put = min((room - scratch) // row, task.shapes[last].height)
    return Segment(first, last, low, put, held, scratch + put * row, _flops(task, first, last))


def _scratch(task: Task, first: int, last: int, rows: int) -> int:
    """Upper bound of the bytes alive in one band's way through a segment, its own included."""
    shape, size = task.shapes[first], task.itemsize
    source = shape.size(size, rows)
    beside, branches, peak = source, {}, 0
    for unit in task.units[first:last]:
        for layer in unit:
            given, taken = shape.size(size, rows), rows
            shape, rows = layer.shape(shape), _rows(layer, rows)
            out, extra = shape.size(size, rows), 0
            if isinstance(layer, Conv):
                # the band with its edge rows, and once more where columns are padded on one side only
                copies = 1 + (layer.pads[2] != layer.pads[3])
                extra = copies * (given + 2 * (layer.kernel - 1) * given // taken)
                # kernels hold input and output once more, in a layout of their own
                extra += given + out
                beside += (layer.kernel - 1) * given // taken
            elif isinstance(layer, Norm):
                # a float32 copy, and the moments' kernel writes what it does not need
                extra = shape.size(4, rows) * (1 if size == 4 else 3)
            elif isinstance(layer, Split):
                branches[layer.tag] = given + 8 * given // taken
                beside += branches[layer.tag]
            elif isinstance(layer, Join):
                extra = out if layer.shortcut is not None else 0
            elif isinstance(layer, Attention):
                extra = 5 * given
            peak = max(peak, beside + given + out + extra)
            if isinstance(layer, Join):
                beside -= branches[layer.tag]
    # what is put down is also looked at for its statistics
    return max(peak, beside + shape.size(size, rows) + shape.size(4, rows) * (1 if size == 4 else 2))


def _rows(layer: Layer, rows: int) -> int:
    """Most rows that come out for `rows` that go in, the bottom's included."""
    if isinstance(layer, Conv):
        return (rows + layer.kernel - 1 - 1) // layer.stride + 1
    return 2 * rows if isinstance(layer, Double) else rows


def _words(size: int) -> str:
    """Rounded up, so that what an error asks for is enough."""
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size >= scale:
            return f"{math.ceil(size / scale * 100) / 100:.2f} {unit}"
    return f"{size} B"
