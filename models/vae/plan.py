"""Choose where whole activations are stored, so that an image of any size fits the memory with least work.

Every GroupNorm needs the whole image's statistics before any layer after it can be computed. A segment is the
layers between two stored activations; each of its norms but the first costs one more pass over the layers
before it. Storing activations often costs little work and much memory: at 8192 x 8192 a single activation of
the last decoder block is 32 GiB in float32, while the segment from the block before it to the image stores
half of that and computes six times as much. `make_plan` finds the cheapest segments that fit.

Memory is counted in bytes: the caller's input, the result, the stored activation (the input and output of a
segment share the space: bands of the input are freed while bands of the output are written), keys and values,
and the scratch of one band, with a convolution kernel's copies of its input and output. Weights are not
counted.
"""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass
from typing import Any

from uhr.base.errors import UserError
from uhr.base.formatting import sufficient_bytes
from uhr.models.vae.attention import VaeAttention
from uhr.models.vae.program import Layer, Unit, shapes
from uhr.models.vae.stream import Conv, Double, Join, Norm, Shape, Split

SCRATCH = 1 << 30
"""Bytes of scratch up to which bands grow, if the memory allows it; larger bands are no faster."""


@dataclass(frozen=True)
class TiledSegment:
    """Units `first` to `last - 1`, read in bands of at most `rows` rows and stored in bands of at most
    `stored_rows`; `stored` and `scratch` are in bytes."""

    first: int
    last: int
    rows: int
    stored_rows: int
    stored: int
    scratch: int
    flops: int


@dataclass(frozen=True)
class TilingPlan:
    segments: tuple[TiledSegment, ...]
    fixed: int
    """Bytes of input and result."""
    plain_flops: int
    """Operations of one untiled run."""

    @property
    def peak(self) -> int:
        """Upper bound of the bytes alive at once."""
        return self.fixed + max(segment.stored + segment.scratch for segment in self.segments)

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
    """One encode or decode that is to be planned."""

    units: list[Unit]
    input_shape: Shape
    itemsize: int
    """Bytes per value."""
    stored_on_cpu: bool
    """Whether activations are stored on the CPU, so that they cost no memory of the device."""
    fixed: int
    """Bytes of input and result."""

    @functools.cached_property
    def shapes(self) -> list[Shape]:
        return shapes(self.units, self.input_shape)


def make_plan(task: Task, memory: int) -> TilingPlan:
    """Return the plan with the least work whose `peak` is at most `memory` bytes.

    Raises UserError, which names the least memory that is enough, if there is none.
    """
    cuts = _cheapest(task, memory - task.fixed)
    if cuts is None:
        least = least_memory(task)
        shape = f"{task.input_shape.width}x{task.input_shape.height}"
        raise UserError(
            f"exact tiling of a {shape} input in {sufficient_bytes(memory)} is not possible",
            f"set memory to at least {sufficient_bytes(least)}"
            + ("" if task.stored_on_cpu else ", or hold: cpu"),
        )
    segments = tuple(
        _with_widest_bands(task, first, last, memory - task.fixed) for first, last in itertools.pairwise(cuts)
    )
    return TilingPlan(segments, task.fixed, untiled_flops(task))


def least_memory(task: Task) -> int:
    """Return the fewest bytes for which `make_plan` finds a plan."""
    return task.fixed + _least(task)


def untiled_bytes(task: Task) -> int:
    """Return the peak bytes of an untiled run: input and output of the largest layer with their copies in a
    kernel's own layout, and the residual branch; attention by a kernel of linear memory."""
    peak = 0
    for unit, shape in zip(task.units, task.shapes, strict=False):
        branch = shape.size(task.itemsize) if isinstance(unit[0], Split) else 0
        for layer in unit:
            out = layer.shape(shape)
            here = 2 * (shape.size(task.itemsize) + out.size(task.itemsize))
            if isinstance(layer, VaeAttention):
                here = 7 * shape.size(task.itemsize)
            peak, shape = max(peak, branch + here), out
    return task.fixed + peak


def largest_tensor(task: Task) -> int:
    """Return the number of values in the largest tensor of an untiled run of one sample."""
    most = 0
    for unit, shape in zip(task.units, task.shapes, strict=False):
        for layer in unit:
            shape = layer.shape(shape)
            most = max(most, shape.size(1))
    return most


def _cheapest(task: Task, memory: int) -> list[int] | None:
    """Return the cuts 0 = p0 < p1 < ... < pn = len(units) with the least work, a shortest path over the
    units; None if none fits `memory`."""
    best: list[tuple[float, list[int]]] = [(0.0, [0])]
    for last in range(1, len(task.units) + 1):
        options = [
            (best[first][0] + _flops(task, first, last), [*best[first][1], last])
            for first in range(last)
            if best[first][1]
            and _possible(task, first, last)
            and _least_of_segment(task, first, last) <= memory
        ]
        best.append(min(options, default=(math.inf, [])))
    return best[-1][1] or None


def _least(task: Task) -> int:
    """Return the smallest memory for which `_cheapest` finds a path: its largest segment, minimised."""
    best = [0]
    for last in range(1, len(task.units) + 1):
        best.append(
            min(
                max(best[first], _least_of_segment(task, first, last))
                for first in range(last)
                if _possible(task, first, last)
            )
        )
    return best[-1]


def _possible(task: Task, first: int, last: int) -> bool:
    """Attention must be a segment of its own."""
    return last - first == 1 or not any(isinstance(unit[0], VaeAttention) for unit in task.units[first:last])


def _least_of_segment(task: Task, first: int, last: int) -> int:
    """Return the least memory of a segment: its bands one row high."""
    return (
        _stored(task, first, last) + _scratch(task, first, last, 1) + task.shapes[last].size(task.itemsize, 1)
    )


def _stored(task: Task, first: int, last: int) -> int:
    """Return the bytes of stored activations: output replaces input band by band, so the larger of the
    two."""
    sizes = [shape.size(task.itemsize) for shape in task.shapes]
    ends = [sizes[place] for place in (first, last) if 0 < place < len(task.units)]
    stored = 0 if task.stored_on_cpu else max(ends, default=0)
    return stored + (2 * sizes[first] if isinstance(task.units[first][0], VaeAttention) else 0)


def _flops(task: Task, first: int, last: int) -> int:
    """Sum all passes of a segment: one up to each norm that has work before it, and the last one."""
    total = so_far = 0
    for unit, shape in zip(task.units[first:last], task.shapes[first:last], strict=True):
        for layer in unit:
            if isinstance(layer, Norm):
                total += so_far
            so_far += _work(layer, shape)
            shape = layer.shape(shape)
    return total + so_far


def untiled_flops(task: Task) -> int:
    """Return the operations of an untiled run."""
    total = 0
    for unit, shape in zip(task.units, task.shapes, strict=False):
        for layer in unit:
            total += _work(layer, shape)
            shape = layer.shape(shape)
    return total


def _work(layer: Layer, shape: Shape) -> int:
    if isinstance(layer, Join) and layer.shortcut is not None:
        return 2 * layer.shortcut.in_channels * shape.channels * shape.height * shape.width
    return layer.flops(shape) if isinstance(layer, Conv | VaeAttention) else 0


def _with_widest_bands(task: Task, first: int, last: int, memory: int) -> TiledSegment:
    """Divide the free memory: three quarters for the band that is computed, the rest for the stored one."""
    stored, row = _stored(task, first, last), task.shapes[last].size(task.itemsize, 1)
    least = _scratch(task, first, last, 1)
    free = max(min(memory - stored, SCRATCH), least + row)
    low, high = 1, task.shapes[first].height
    while low < high:
        middle = (low + high + 1) // 2
        if _scratch(task, first, last, middle) <= max(free * 3 // 4, least):
            low = middle
        else:
            high = middle - 1
    scratch = _scratch(task, first, last, low)
    stored_rows = min((free - scratch) // row, task.shapes[last].height)
    return TiledSegment(
        first, last, low, stored_rows, stored, scratch + stored_rows * row, _flops(task, first, last)
    )


def _scratch(task: Task, first: int, last: int, rows: int) -> int:
    """Return an upper bound of the bytes alive while one band passes through a segment, its own included."""
    shape, size = task.shapes[first], task.itemsize
    source = shape.size(size, rows)
    queued, branches, peak = source, {}, 0
    for unit in task.units[first:last]:
        for layer in unit:
            input_bytes, taken = shape.size(size, rows), rows
            shape, rows = layer.shape(shape), _rows(layer, rows)
            out, extra = shape.size(size, rows), 0
            if isinstance(layer, Conv):
                # the band with its edge rows, and once more where columns are padded on one side only
                copies = 1 + (layer.pads[2] != layer.pads[3])
                extra = copies * (input_bytes + 2 * (layer.kernel - 1) * input_bytes // taken)
                # kernels copy input and output once more, in a layout of their own
                extra += input_bytes + out
                queued += (layer.kernel - 1) * input_bytes // taken
            elif isinstance(layer, Norm):
                # a float32 copy, and the moments' kernel writes a normalised copy that is not used
                extra = shape.size(4, rows) * (1 if size == 4 else 3)
            elif isinstance(layer, Split):
                branches[layer.tag] = input_bytes + 8 * input_bytes // taken
                queued += branches[layer.tag]
            elif isinstance(layer, Join):
                extra = out if layer.shortcut is not None else 0
            elif isinstance(layer, VaeAttention):
                extra = 5 * input_bytes
            peak = max(peak, queued + input_bytes + out + extra)
            if isinstance(layer, Join):
                queued -= branches[layer.tag]
    # the statistics of the stored rows are gathered while they are written
    return max(peak, queued + shape.size(size, rows) + shape.size(4, rows) * (1 if size == 4 else 2))


def _rows(layer: Layer, rows: int) -> int:
    """Return the most rows that `rows` rows of input give, at the bottom edge included."""
    if isinstance(layer, Conv):
        return (rows + layer.kernel - 1 - 1) // layer.stride + 1
    return 2 * rows if isinstance(layer, Double) else rows
