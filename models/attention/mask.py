"""The mask of windowed attention: which tokens attend to which, from `window_rules.py`, as pieces of windows
and as a predicate. N image tokens X, T of text, M of UltraGen's guide Y.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from uhr.models.attention.layout import WindowLayout
from uhr.models.attention.window_rules import WindowRules

if TYPE_CHECKING:
    import torch

MaskMod = Callable[["torch.Tensor", "torch.Tensor", "torch.Tensor", "torch.Tensor"], "torch.Tensor"]
"""(batch, head, query index, key index) -> bool, over indices into [T | X | Y]; FlexAttention's signature."""


@dataclass(frozen=True)
class Piece:
    """A part of a neighbouring window that a window's queries see.

    The neighbour is `row` and `column` windows away; the part is its tokens [top, bottom) x [left, right).
    """

    row: int
    column: int
    top: int
    bottom: int
    left: int
    right: int

    @property
    def tokens(self) -> int:
        return (self.bottom - self.top) * (self.right - self.left)


def pieces(neighbourhood: str, distance: int, side: int) -> tuple[Piece, ...]:
    """Return what a window of side x side tokens sees around itself, itself included, without grid borders.

    For a sliding neighbourhood the parts together are the tokens that any of the window's queries sees;
    `sliding_mask` selects those of each query.
    """
    if neighbourhood == "sliding":
        spans = _sliding_spans(distance, side)
        return tuple(Piece(r, c, *spans[r], *spans[c]) for r in spans for c in spans)
    near = range(-distance, distance + 1)
    offsets = [(r, c) for r in near for c in near if neighbourhood != "cross" or r == 0 or c == 0]
    return tuple(Piece(r, c, 0, side, 0, side) for r, c in offsets)


def _sliding_spans(reach: int, side: int) -> dict[int, tuple[int, int]]:
    """Return, by window offset along one axis, the tokens [first, last) of that window within reach."""
    furthest = -(-reach // side)
    spans = {}
    for offset in range(-furthest, furthest + 1):
        first = max(0, -reach - offset * side)
        last = min(side, side + reach - offset * side)
        spans[offset] = (first, last)
    return spans


def sliding_mask(piece: Piece, reach: int, side: int, device: torch.device) -> torch.Tensor:
    """Return which tokens of a piece are within `reach` of each query, per axis: bool [side^2, tokens]."""
    import torch

    query = torch.arange(side, device=device)
    rows = torch.arange(piece.top, piece.bottom, device=device) + piece.row * side
    columns = torch.arange(piece.left, piece.right, device=device) + piece.column * side
    near_row = (query[:, None] - rows).abs() <= reach
    near_column = (query[:, None] - columns).abs() <= reach
    both = near_row[:, None, :, None] & near_column[None, :, None, :]
    return both.reshape(side * side, piece.tokens)


def mask_mod(layout: WindowLayout, rules: WindowRules, text: int) -> MaskMod:
    """Return the rules as a predicate on joint indices [T | X | Y], image and guide window-first."""
    image_end = text + layout.tokens
    side, guide_side, block = layout.window, layout.guide_window, layout.guide_block
    columns, local, reach = layout.columns, rules.guide_is_local(layout), rules.guide_reach
    neighbourhood, distance = rules.neighbourhood, rules.distance
    guide_sees_text, all_guide = rules.guide_to_text, rules.image_to_guide == "all"

    def allowed(
        _batch: torch.Tensor, _head: torch.Tensor, query: torch.Tensor, key: torch.Tensor
    ) -> torch.Tensor:
        from_text, from_guide = query < text, query >= image_end
        to_text, to_guide = key < text, key >= image_end
        from_image, to_image = ~(from_text | from_guide), ~(to_text | to_guide)
        text_keys = to_text & (from_image | from_guide) if guide_sees_text else to_text & from_image
        places = (_place(index - text, side, columns) for index in (query, key))
        image_keys = from_image & to_image & _near(*places, neighbourhood, distance, side)
        guide_keys = from_image & to_guide
        if not all_guide:
            guide_keys = guide_keys & ((query - text) // side**2 == (key - image_end) // guide_side**2)
        among_guide = from_guide & to_guide
        if local:
            places = (_place(index - image_end, guide_side, columns) for index in (query, key))
            among_guide = among_guide & _near(*places, "box", reach, block)
        return (from_text & ~to_guide) | text_keys | image_keys | guide_keys | among_guide

    return allowed


def _place(index: torch.Tensor, side: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a token's row and column in its grid from its index in window-first order."""
    window, inside = index // side**2, index % side**2
    return window // columns * side + inside // side, window % columns * side + inside % side


def _near(
    query: tuple[torch.Tensor, torch.Tensor],
    key: tuple[torch.Tensor, torch.Tensor],
    neighbourhood: str,
    distance: int,
    side: int,
) -> torch.Tensor:
    """Whether `key` is in the neighbourhood of `query`; both are rows and columns in one grid."""
    unit = 1 if neighbourhood == "sliding" else side
    down, across = (abs(a // unit - b // unit) for a, b in zip(query, key, strict=True))
    near = (down <= distance) & (across <= distance)
    return near & ((down == 0) | (across == 0)) if neighbourhood == "cross" else near


def dense_mask(
    layout: WindowLayout, rules: WindowRules, text: int, guide: bool, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """Return the rules as a bool matrix [S, S], S = T + N (+ M with `guide`): for small grids and display."""
    import torch

    length = text + layout.tokens + guide * layout.guide_tokens
    index = torch.arange(length, device=device)
    zero = torch.zeros((), dtype=torch.long, device=device)
    return mask_mod(layout, rules, text)(zero, zero, index[:, None], index[None, :])
