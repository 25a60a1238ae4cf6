"""Pairs, tiles and steps, against published counts, closed forms and the masks themselves."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from uhr.models.attention.counts import pairs, tile_pairs
from uhr.models.attention.flex import BlockMasks, block_mask
from uhr.models.attention.layout import WindowLayout
from uhr.models.attention.mask import dense_mask, mask_mod, pieces
from uhr.models.attention.sweep import steps
from uhr.models.attention.window_rules import WindowRules

T = 512


@pytest.mark.parametrize(("side", "times"), [(128, 5.64), (256, 19.31)])
def test_counted_pairs_with_exact_borders(side, times):
    assert pairs(WindowLayout(side, side), WindowRules(), T).ratio == pytest.approx(times, abs=0.005)


def test_shares_of_a_4k_image():
    counted = pairs(WindowLayout(256, 256), WindowRules(), T)
    assert counted.guide / counted.total == pytest.approx(0.08, abs=0.01)
    assert counted.text / counted.total == pytest.approx(0.15, abs=0.01)


@st.composite
def masks(draw):
    ratio = draw(st.sampled_from([1, 2]))
    layout = WindowLayout(4 * draw(st.integers(1, 4)), 4 * draw(st.integers(1, 4)), 4, ratio)
    neighbourhood = draw(st.sampled_from(["own", "cross", "box", "sliding"]))
    rules = WindowRules(
        neighbourhood=neighbourhood,
        reach=None if neighbourhood == "own" else draw(st.integers(1, 5)),
        image_to_guide=draw(st.sampled_from(["own", "all"])),
        guide_to_text=draw(st.booleans()),
        guide_to_guide=draw(st.sampled_from(["full", "local"])),
        guide_reach=draw(st.integers(0, 2)),
    )
    return layout, rules, draw(st.integers(0, 9)), draw(st.booleans())


@given(masks())
def test_counted_pairs_are_the_mask_s(case):
    layout, rules, text, guide = case
    assert pairs(layout, rules, text, guide).total == int(dense_mask(*case).sum())


@given(masks(), st.integers(3, 20), st.integers(3, 20))
def test_tile_counts_are_the_mask_s(case, tall, wide):
    layout, _, text, _ = case
    mask = dense_mask(*case).int()
    for queries in (mask.shape[0], text + layout.tokens):
        rows = [mask[first : min(first + tall, queries)].sum(0) for first in range(0, queries, tall)]
        tiles = torch.stack([torch.stack([c.sum() for c in row.split(wide)]) for row in rows])
        assert torch.equal(tile_pairs(*case, tile=(tall, wide), queries=queries), tiles)


def test_the_paper_s_mask_at_1k_has_684_full_and_32_partial_blocks():
    mask = block_mask(WindowLayout(64, 64), WindowRules(), T, True, torch.device("cpu"))
    assert (int(mask.full_kv_num_blocks.sum()), int(mask.kv_num_blocks.sum())) == (684, 32)
    assert float(mask.sparsity()) == pytest.approx(50.4, abs=0.05)


@pytest.mark.parametrize("text", [128, 77])
def test_block_masks_are_those_that_torch_makes_of_the_predicate(text):
    from torch.nn.attention.flex_attention import create_block_mask

    layout, rules = WindowLayout(32, 48), WindowRules(neighbourhood="cross")
    queries, keys = text + layout.tokens, text + layout.tokens + layout.guide_tokens
    stock = create_block_mask(mask_mod(layout, rules, text), None, None, queries, keys, device="cpu")
    ours = block_mask(layout, rules, text, True, torch.device("cpu"), queries)
    assert ours.shape == stock.shape
    for part in ("kv_num_blocks", "full_kv_num_blocks", "q_num_blocks", "full_q_num_blocks"):
        assert torch.equal(getattr(ours, part), getattr(stock, part)), part
    assert torch.equal(ours.to_dense(), stock.to_dense())


def test_a_block_mask_is_built_once_for_a_shape():
    masks, cpu = BlockMasks(), torch.device("cpu")
    first = masks.get(WindowLayout(32, 32), WindowRules(), 16, True, cpu)
    assert masks.get(WindowLayout(32, 32), WindowRules(), 16, True, cpu) is first
    assert masks.get(WindowLayout(32, 32), WindowRules(), 16, False, cpu) is not first
    assert masks.get(WindowLayout(32, 48), WindowRules(), 16, True, cpu) is not first


def official_tiles(pixels: int) -> tuple[tuple[int, int], int]:
    """Tiles of 128 queries x 64 keys that the official code's inference mask touches.

    Image tokens see 8 tokens around themselves, guide tokens 2 around themselves and no text, an image window
    the guide windows whose running number is at most one away."""
    layout = WindowLayout.of_pixels(pixels, pixels, token=16)
    image, guide = T + layout.tokens, T + layout.tokens + layout.guide_tokens
    touched = np.zeros((guide // 128, guide // 64), bool)
    touched[: T // 128, : image // 64] = True
    touched[: image // 128, : T // 64] = True

    def slide(side: int, window: int, reach: int, offset: int) -> None:
        order = WindowLayout(side, side, window, 1).to_windows(torch.arange(side**2), dim=0).numpy()
        place = np.argsort(order)
        for first in range(0, side**2, 128):
            rows, columns = np.divmod(order[first : first + 128], side)
            top, bottom = max(rows.min() - reach, 0), min(rows.max() + reach, side - 1)
            left, right = max(columns.min() - reach, 0), min(columns.max() + reach, side - 1)
            region = np.add.outer(np.arange(top, bottom + 1) * side, np.arange(left, right + 1))
            # 128 tokens are half an image window, or eight guide windows in a row: a rectangle either way
            touched[(offset + first) // 128, (offset + place[region.ravel()]) // 64] = True

    slide(layout.height, 16, 8, T)
    slide(layout.guide_height, 4, 2, image)
    for tile in range(T // 128, image // 128):
        window = (tile * 128 - T) // 256
        for number in (window - 1, window, window + 1):
            if 0 <= number < layout.rows * layout.columns:
                touched[tile, (image + 16 * number) // 64] = True
    return touched.shape, int(touched.sum())


@pytest.mark.parametrize(
    ("pixels", "shape", "tiles"),
    [
        (1024, (38, 76), 1_034),
        (2048, (140, 280), 4_336),
        (4096, (548, 1096), 17_912),
        (8192, (2180, 4360), 72_904),
    ],
)
def test_the_paper_s_130_times_belong_to_the_official_code_s_mask(pixels, shape, tiles):
    assert official_tiles(pixels) == (shape, tiles)


def test_the_mask_that_the_paper_describes_saves_half_of_that_at_8k():
    layout = WindowLayout(512, 512)
    joint = T + layout.tokens + layout.guide_tokens
    counted = pairs(layout, WindowRules(guide_to_guide="full"), T)
    tiles = tile_pairs(layout, WindowRules(guide_to_guide="full"), T, guide=True, tile=(128, 64))
    assert int(tiles.sum()) == counted.total
    assert joint**2 / counted.total == pytest.approx(69, abs=0.5)
    assert tiles.numel() / int((tiles > 0).sum()) == pytest.approx(68.2, abs=0.1)
    own = pairs(layout, WindowRules(neighbourhood="own", guide_to_guide="full"), T)
    assert joint**2 / own.total == pytest.approx(126, abs=0.5)


@given(
    st.sampled_from(["own", "cross", "box", "sliding"]),
    st.integers(1, 3),
    st.integers(1, 7),
    st.integers(1, 7),
    st.integers(1, 5),
)
def test_each_window_is_attended_once_with_exactly_the_neighbours_it_has(kind, reach, rows, columns, most):
    around = pieces(kind, 0 if kind == "own" else reach, 2)
    buffer: dict[int, tuple] = {}
    seen = []
    for step in steps(around, rows, columns, most):
        assert step.last - step.first <= most
        if step.begins:
            buffer = {}
        for slot in step.fresh:
            buffer[slot.start] = slot.source
        assert all(buffer[slot.start] == slot.source for slot in step.slots)
        assert [slot.start for slot in step.slots] == list(
            np.cumsum([0, *(slot.piece.tokens for slot in step.slots[:-1])])
        )
        for row in range(step.first, step.last):
            seen.append((row, step.column))
            expected = {
                (p.row, p.column)
                for p in around
                if 0 <= row + p.row < rows and 0 <= step.column + p.column < columns
            }
            assert {(s.piece.row, s.column - step.column) for s in step.slots} == expected
    assert sorted(seen) == [(r, c) for r in range(rows) for c in range(columns)]


def test_a_box_of_nine_copies_each_key_about_three_times_not_nine():
    plan = list(steps(pieces("box", 1, 16), 16, 16, 14))
    copied = sum(slot.piece.tokens * (step.last - step.first) for step in plan for slot in step.fresh)
    used = sum(step.width * (step.last - step.first) for step in plan)
    assert used / 65536 == pytest.approx(46**2 / 16**2, abs=1e-9)
    assert copied / 65536 < 3.1
