"""Count what a mask allows: query-key pairs, and tiles of a block-sparse kernel.

The paper's "130.4 times fewer operations at 8K" is the tile count of the official code's mask (sliding over 8
tokens, dilated to 64-key tiles; a guide that sees 2 tokens around itself), over T + N + M tokens. The mask
that the paper describes saves 69 times there, with the borders of the grid. Quote counts of the rules that
were run.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from uhr.models.attention.layout import WindowLayout
from uhr.models.attention.mask import Piece, mask_mod, pieces
from uhr.models.attention.window_rules import WindowRules

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Pairs:
    """Query-key pairs of one attention layer, by kind of query. A pair is 4 * head_dim * heads operations."""

    text: int
    image: int
    guide: int
    dense: int
    """Pairs of full attention over text and image without a guide, which the windows are compared with."""

    @property
    def total(self) -> int:
        return self.text + self.image + self.guide

    @property
    def ratio(self) -> float:
        """How many times fewer pairs than dense attention."""
        return self.dense / self.total


def pairs(layout: WindowLayout, rules: WindowRules, text: int, guide: bool = True) -> Pairs:
    """Count the pairs that the mask allows, exactly, at the borders of the grid too."""
    tokens, image_keys = layout.tokens, _grid_pairs(layout, rules)
    of_guide = among_guide = 0
    if guide:
        seen = layout.guide_tokens if rules.image_to_guide == "all" else layout.guide_window**2
        of_guide = tokens * seen
        among_guide = layout.guide_tokens * text * rules.guide_to_text + _guide_pairs(layout, rules)
    return Pairs(
        text=text * (text + tokens),
        image=tokens * text + image_keys + of_guide,
        guide=among_guide,
        dense=(text + tokens) ** 2,
    )


def _grid_pairs(layout: WindowLayout, rules: WindowRules) -> int:
    if rules.neighbourhood == "sliding":
        return _reach_pairs(layout.height, rules.distance) * _reach_pairs(layout.width, rules.distance)
    around = pieces(rules.neighbourhood, rules.distance, layout.window)
    return layout.window**4 * _window_pairs(layout.rows, layout.columns, around)


def _guide_pairs(layout: WindowLayout, rules: WindowRules) -> int:
    if not rules.guide_is_local(layout):
        return layout.guide_tokens**2
    block = layout.guide_block
    around = pieces("box", rules.guide_reach, block)
    return block**4 * _window_pairs(layout.guide_height // block, layout.guide_width // block, around)


def _window_pairs(rows: int, columns: int, around: Iterable[Piece]) -> int:
    """Count the ordered pairs of neighbouring windows in a grid."""
    inside = (max(rows - abs(part.row), 0) * max(columns - abs(part.column), 0) for part in around)
    return sum(inside)


def _reach_pairs(length: int, reach: int) -> int:
    """Count the ordered pairs of positions on a line that are at most `reach` apart."""
    return sum(max(length - abs(offset), 0) for offset in range(-reach, reach + 1))


def tile_pairs(
    layout: WindowLayout,
    rules: WindowRules,
    text: int,
    guide: bool,
    tile: tuple[int, int] = (128, 128),
    queries: int | None = None,
    device: torch.device | str = "cpu",
) -> torch.Tensor:
    """Count the allowed pairs in each tile of `tile` = (queries, keys): int64 [query tiles, key tiles].

    A tile that is 0 is skipped by a block-sparse kernel, and one that is full needs no mask. Keys are the
    joint sequence [T | X | Y] (Y only with `guide`), queries its first `queries` tokens, all by default.
    """
    import torch

    length = text + layout.tokens + guide * layout.guide_tokens
    queries = length if queries is None else queries
    if rules.neighbourhood == "sliding":
        return _tiles_by_token(layout, rules, text, length, queries, tile, device)
    kind, first = _kinds(layout, text, length, device)
    zero = torch.zeros((), dtype=torch.long, device=device)
    assert tile[0] * tile[1] < 2**24, "float32 counts exactly up to there"
    allowed = mask_mod(layout, rules, text)(zero, zero, first[:, None], first[None, :]).float()
    of_query = _kinds_in_tiles(kind[:queries], tile[0], len(first))
    of_key = _kinds_in_tiles(kind, tile[1], len(first))
    return (of_query @ allowed @ of_key.T).round().long()


def _kinds(
    layout: WindowLayout, text: int, length: int, device: torch.device | str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the kind of every token and the first token of every kind.

    A kind is a set of tokens that the rules treat alike: all text, one window of X, one window of Y.
    """
    import torch

    index = torch.arange(length, device=device)
    windows = layout.rows * layout.columns
    image = 1 + (index - text) // layout.window**2
    guide = 1 + windows + (index - text - layout.tokens) // layout.guide_window**2
    kind = torch.where(index < text, 0, torch.where(index < text + layout.tokens, image, guide))
    kind = kind - (0 if text else 1)
    # computed from the layout: searching `kind` would wait for the device
    first = [0] * bool(text)
    first += range(text, text + layout.tokens, layout.window**2)
    first += range(text + layout.tokens, length, layout.guide_window**2)
    return kind, torch.tensor(first, device=device)


def _kinds_in_tiles(kind: torch.Tensor, tile: int, kinds: int) -> torch.Tensor:
    """Count the tokens of each kind in each tile: float32 [tiles, kinds]."""
    import torch

    tiles = -(-len(kind) // tile)
    counts = torch.zeros(tiles, kinds, device=kind.device)
    place = torch.arange(len(kind), device=kind.device) // tile
    return counts.index_put_((place, kind), counts.new_ones(()), accumulate=True)


def _tiles_by_token(
    layout: WindowLayout,
    rules: WindowRules,
    text: int,
    length: int,
    queries: int,
    tile: tuple[int, int],
    device: torch.device | str,
) -> torch.Tensor:
    """Count as `tile_pairs`, token by token: for rules that give every query its own neighbourhood."""
    import torch

    allowed = mask_mod(layout, rules, text)
    zero = torch.zeros((), dtype=torch.long, device=device)
    key = torch.arange(length, device=device)
    padding = -length % tile[1]
    rows = []
    for first in range(0, queries, tile[0]):
        query = torch.arange(first, min(first + tile[0], queries), device=device)
        seen = allowed(zero, zero, query[:, None], key[None, :]).sum(0)
        rows.append(torch.nn.functional.pad(seen, (0, padding)).view(-1, tile[1]).sum(1))
    return torch.stack(rows)
