"""Hierarchical local attention by SDPA on gathered keys: any device, any dtype, differentiable.

Memory is linear in the number of tokens: besides the output there is one buffer of keys and values whose size
does not grow with the image. The result equals dense attention under `mask.dense_mask`.

Tensors are [batch, tokens, heads, head_dim], as diffusers' attention processors have them; image and guide
tokens in window-first order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from uhr.models.attention.layout import WindowLayout
from uhr.models.attention.mask import Piece, pieces, sliding_mask
from uhr.models.attention.sweep import SweepStep, most_keys, steps
from uhr.models.attention.window_rules import WindowRules

KeysValues = tuple[torch.Tensor, torch.Tensor]
"""Keys and values, [B, tokens, H, D] each."""

CPU_BUFFER = 8 * 2**20
ACCELERATOR_BUFFER = 512 * 2**20
"""Bytes of gathered keys and values: small enough for a CPU's cache, large enough to keep a GPU busy."""


class Beside(NamedTuple):
    """What windows see besides their neighbourhood: every window the `shared` tokens [B, S, H, D], and its
    own m tokens of `own` [B, windows * m, H, D]."""

    shared: KeysValues
    own: KeysValues | None = None


@dataclass(frozen=True)
class Around:
    """A grid of rows x columns windows, `side` tokens a side, and the neighbourhood that each of them
    sees."""

    rows: int
    columns: int
    side: int
    pieces: tuple[Piece, ...]
    sliding: int | None
    """Reach in tokens where each query has a neighbourhood of its own."""

    @classmethod
    def image(cls, layout: WindowLayout, rules: WindowRules) -> Around:
        sliding = rules.distance if rules.neighbourhood == "sliding" else None
        around = pieces(rules.neighbourhood, rules.distance, layout.window)
        return cls(layout.rows, layout.columns, layout.window, around, sliding)

    @classmethod
    def guide(cls, layout: WindowLayout, rules: WindowRules) -> Around:
        """Return the guide's own grid of blocks, for guide tokens that see only near ones."""
        block = layout.guide_block
        around = pieces("box", rules.guide_reach, block)
        return cls(layout.guide_height // block, layout.guide_width // block, block, around, None)


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    guide: KeysValues | None,
    layout: WindowLayout,
    rules: WindowRules,
    buffer: int | None = None,
) -> torch.Tensor:
    """Attend from text and image: [B, T + N, H, D] from joint query, key and value of that shape.

    Text rows see text and image; image rows see text, their neighbourhood, and the `guide` tokens of the
    rules. `buffer` bounds the gathered keys and values in bytes (one window's at least); the default is
    `CPU_BUFFER` or `ACCELERATOR_BUFFER`.
    """
    text = query.shape[1] - layout.tokens
    assert text >= 0, f"{query.shape[1]} tokens are less than the grid's {layout.tokens}"
    own, shared = None, (key[:, :text], value[:, :text])
    if guide is not None and rules.image_to_guide == "own":
        own = guide
    elif guide is not None:
        shared = (torch.cat([shared[0], guide[0]], dim=1), torch.cat([shared[1], guide[1]], dim=1))
    return local(query, key, value, Beside(shared, own), Around.image(layout, rules), text, buffer)


def attend_guide(
    query: torch.Tensor, guide: KeysValues, text: KeysValues, layout: WindowLayout, rules: WindowRules
) -> torch.Tensor:
    """Attend from guide queries [B, M, H, D] to the guide's own keys and, if the rules allow it, the
    text's."""
    key, value = guide
    seen = text if rules.guide_to_text else (key[:, :0], value[:, :0])
    if rules.guide_is_local(layout):
        blocks = [layout.guide_to_blocks(x) for x in (query, key, value)]
        return layout.guide_from_blocks(local(*blocks, Beside(seen), Around.guide(layout, rules)))
    both = [torch.cat(pair, dim=1) for pair in zip(seen, guide, strict=True)]
    return dense(query, *both)


def dense(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Full attention on [B, S, H, D]."""
    out = F.scaled_dot_product_attention(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2))
    return out.transpose(1, 2)


@torch.compiler.disable
def local(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    beside: Beside,
    around: Around,
    lead: int = 0,
    buffer: int | None = None,
) -> torch.Tensor:
    """Attend in the windows of one grid: query, key, value [B, lead + N, H, D] -> the same shape.

    The first `lead` rows are not part of the grid and see all of key and value.
    """
    if buffer is None:
        buffer = CPU_BUFFER if query.device.type == "cpu" else ACCELERATOR_BUFFER
    own = (key[:, :0], value[:, :0]) if beside.own is None else beside.own
    out: torch.Tensor = _Local.apply(query, key, value, *beside.shared, *own, around, lead, buffer)
    return out


class _Local(torch.autograd.Function):
    """Windowed attention whose backward pass gathers again, so that only the inputs are saved.

    Autograd through the forward pass would keep each gathered copy, with a gradient of the size of all keys.
    """

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> torch.Tensor:
        *tensors, around, lead, buffer = arguments
        ctx.save_for_backward(*tensors)
        ctx.around, ctx.lead, ctx.buffer = around, lead, buffer
        query, key, value = tensors[:3]
        out = torch.empty_like(query, memory_format=torch.contiguous_format)
        if lead:
            out[:, :lead] = dense(query[:, :lead], key, value)
        for sample, target in zip(_samples(tensors, lead), out[:, lead:], strict=True):
            sweep = _Sweep(sample, around, buffer)
            place = sweep.windows(target)
            for step in sweep:
                place[step.first : step.last, step.column] = sweep.attend(step).transpose(1, 2)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        tensors, lead = ctx.saved_tensors, ctx.lead
        wide = torch.promote_types(tensors[0].dtype, torch.float32)
        sums = [torch.zeros(t.shape, dtype=wide, device=t.device) for t in tensors]
        if lead:
            _add_lead_gradients(tensors, lead, grad[:, :lead], sums)
        for sample, grads, upstream in zip(
            _samples(tensors, lead), _samples(sums, lead), grad[:, lead:], strict=True
        ):
            sweep = _Sweep(sample, ctx.around, ctx.buffer)
            place = sweep.windows(upstream)
            for step in sweep:
                sweep.add_gradients(step, place[step.first : step.last, step.column].transpose(1, 2), grads)
        return *(total.to(t.dtype) for total, t in zip(sums, tensors, strict=True)), None, None, None


def _add_lead_gradients(
    tensors: Sequence[torch.Tensor], lead: int, upstream: torch.Tensor, sums: Sequence[torch.Tensor]
) -> None:
    inputs = [x.detach().requires_grad_() for x in (tensors[0][:, :lead], tensors[1], tensors[2])]
    with torch.enable_grad():
        out = dense(*inputs)
    query, key, value = torch.autograd.grad(out, inputs, upstream)
    sums[0][:, :lead] += query
    sums[1].add_(key)
    sums[2].add_(value)


def _samples(tensors: Sequence[torch.Tensor], lead: int) -> Iterator[tuple[torch.Tensor, ...]]:
    """Iterate over the samples' tensors; query, key and value start at the grid's first token."""
    return zip(*(x[:, lead:] for x in tensors[:3]), *tensors[3:], strict=True)


class _Sweep:
    """The tensors and buffers of one sample; iterating fills the buffers for each step and yields the step.

    A buffer row is [shared | own | slots]; all tensors here are without the batch dimension.
    """

    def __init__(self, sample: tuple[torch.Tensor, ...], around: Around, budget: int) -> None:
        self.query, *keys_and_values = sample
        self.around = around
        pair, shared, own = keys_and_values[:2], keys_and_values[2:4], keys_and_values[4:]
        self.shared = shared
        self.grids = [self.windows(x).unflatten(2, (around.side, around.side)) for x in pair]
        self.own = [x.unflatten(0, (around.rows, around.columns, -1)) for x in own] if own[0].numel() else []
        self.fixed = shared[0].shape[0]
        self.start = self.fixed + (self.own[0].shape[2] if self.own else 0)
        heads, head_dim = self.query.shape[1:]
        length = self.start + most_keys(around.pieces)
        row_bytes = 2 * heads * length * head_dim * self.query.element_size()
        self.most_rows = max(1, min(around.rows, budget // row_bytes))
        shape = (self.most_rows, heads, length, head_dim)
        self.buffers = [self.query.new_empty(shape) for _ in range(2)]
        self.masks: dict[Piece, torch.Tensor] = {}

    def windows(self, x: torch.Tensor) -> torch.Tensor:
        """[N, H, D] -> [rows, columns, window tokens, H, D], a view."""
        return x.unflatten(0, (self.around.rows, self.around.columns, self.around.side**2))

    def __iter__(self) -> Iterator[SweepStep]:
        for step in steps(self.around.pieces, self.around.rows, self.around.columns, self.most_rows):
            rows = step.last - step.first
            for buffer, grid, shared in zip(self.buffers, self.grids, self.shared, strict=True):
                if step.begins:
                    buffer[:rows, :, : self.fixed] = shared.transpose(0, 1)
                for slot in step.fresh:
                    part = slot.piece
                    source = self._part(grid, step, slot.column, part)
                    target = buffer[:rows, :, self.start + slot.start : self.start + slot.stop]
                    shape = (part.bottom - part.top, part.right - part.left)
                    target.unflatten(2, shape).copy_(source.permute(0, 3, 1, 2, 4))
            for buffer, own in zip(self.buffers, self.own, strict=False):
                mine = own[step.first : step.last, step.column]
                buffer[:rows, :, self.fixed : self.start] = mine.transpose(1, 2)
            yield step

    def _part(self, grid: torch.Tensor, step: SweepStep, column: int, part: Piece) -> torch.Tensor:
        rows = grid[step.first + part.row : step.last + part.row, column]
        return rows[:, part.top : part.bottom, part.left : part.right]

    def _inputs(self, step: SweepStep) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        rows, stop = step.last - step.first, self.start + step.width
        query = self.windows(self.query)[step.first : step.last, step.column].transpose(1, 2)
        keys, values = (buffer[:rows, :, :stop] for buffer in self.buffers)
        return query, keys, values

    def _mask(self, step: SweepStep) -> torch.Tensor | None:
        """Return the mask of a sliding neighbourhood, bool [window tokens, keys]; the others need none."""
        if self.around.sliding is None:
            return None
        side, device = self.around.side, self.query.device
        blocks = [torch.ones(side**2, self.start, dtype=torch.bool, device=device)]
        for slot in step.slots:
            if slot.piece not in self.masks:
                self.masks[slot.piece] = sliding_mask(slot.piece, self.around.sliding, side, device)
            blocks.append(self.masks[slot.piece])
        return torch.cat(blocks, dim=1)

    def attend(self, step: SweepStep) -> torch.Tensor:
        """Return the output of a step's windows: [rows, H, window tokens, D]."""
        return F.scaled_dot_product_attention(*self._inputs(step), attn_mask=self._mask(step))

    def add_gradients(self, step: SweepStep, upstream: torch.Tensor, sums: tuple[torch.Tensor, ...]) -> None:
        """Attend again with a graph, and add the gradients of a step's inputs to `sums`, which has the order
        of the sample's tensors."""
        inputs = [x.detach().requires_grad_() for x in self._inputs(step)]
        with torch.enable_grad():
            out = F.scaled_dot_product_attention(*inputs, attn_mask=self._mask(step))
        query, *pair = torch.autograd.grad(out, inputs, upstream)
        self.windows(sums[0])[step.first : step.last, step.column] += query.transpose(1, 2)
        for i, gradient in enumerate(pair):
            grid = self.windows(sums[1 + i]).unflatten(2, (self.around.side, self.around.side))
            sums[3 + i].add_(gradient[:, :, : self.fixed].sum(0).transpose(0, 1))
            if self.own:
                own = sums[5 + i].unflatten(0, (self.around.rows, self.around.columns, -1))
                own[step.first : step.last, step.column] += gradient[:, :, self.fixed : self.start].transpose(
                    1, 2
                )
            for slot in step.slots:
                part = slot.piece
                block = gradient[:, :, self.start + slot.start : self.start + slot.stop]
                shape = (part.bottom - part.top, part.right - part.left)
                target = self._part(grid, step, slot.column, part)
                target += block.unflatten(2, shape).permute(0, 2, 3, 1, 4)
