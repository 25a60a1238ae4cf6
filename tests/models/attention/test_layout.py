"""Window-first order, its inverse, scaled positions, and the sizes that it takes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from uhr.base.errors import UserError
from uhr.models.attention.layout import WindowLayout, window_side
from uhr.models.ops.latents import image_ids

SIDES = st.integers(1, 5)


@st.composite
def layouts(draw) -> WindowLayout:
    ratio = draw(st.integers(1, 4))
    window = ratio * draw(st.integers(1, 4))
    return WindowLayout(window * draw(SIDES), window * draw(SIDES), window, ratio)


@given(layouts())
def test_window_first_order_and_back_is_the_identity(layout):
    x = torch.arange(2 * layout.tokens).view(2, layout.tokens, 1)
    assert torch.equal(layout.to_raster(layout.to_windows(x)), x)
    assert torch.equal(layout.to_windows(layout.to_raster(x)), x)
    y = torch.arange(layout.guide_tokens)
    assert torch.equal(layout.guide_to_raster(layout.guide_to_windows(y, dim=0), dim=0), y)


@given(layouts())
def test_a_window_is_one_contiguous_run_in_raster_order_inside(layout):
    ids = layout.to_windows(image_ids(layout.height, layout.width), dim=0)[:, 1:].long()
    side = layout.window
    for k, window in enumerate(ids.view(-1, side**2, 2)):
        corner = torch.tensor([k // layout.columns * side, k % layout.columns * side])
        inside = torch.cartesian_prod(torch.arange(side), torch.arange(side)).view(-1, 2)
        assert torch.equal(window, corner + inside)


@given(layouts())
def test_window_k_of_the_guide_covers_the_area_of_window_k_of_the_image(layout):
    image = layout.to_windows(image_ids(layout.height, layout.width), dim=0)
    guide = layout.guide_to_windows(image_ids(layout.guide_height, layout.guide_width), dim=0)
    windows = layout.rows * layout.columns
    of_image = (image[:, 1:] // layout.window).view(windows, -1, 2)
    of_guide = (guide[:, 1:] // layout.guide_window).view(windows, -1, 2)
    assert torch.equal(of_image[:, :1], of_guide[:, :1])


@given(layouts())
def test_a_guide_token_has_the_position_of_ratio_times_its_row_and_column(layout):
    image = layout.to_windows(image_ids(layout.height, layout.width), dim=0)
    guide = layout.guide_to_windows(image_ids(layout.guide_height, layout.guide_width), dim=0)
    assert torch.equal(image[layout.anchors()], layout.ratio * guide)


@given(layouts())
def test_blocks_of_the_guide_are_made_of_its_windows_and_tile_it(layout):
    y = torch.arange(layout.guide_tokens)
    assert torch.equal(layout.guide_from_blocks(layout.guide_to_blocks(y, dim=0), dim=0), y)
    ids = image_ids(layout.guide_height, layout.guide_width)
    blocks = layout.guide_to_blocks(layout.guide_to_windows(ids, dim=0), dim=0)[:, 1:]
    block = layout.guide_block
    assert block % layout.guide_window == 0
    numbers = (blocks // block).view(-1, block**2, 2)
    assert torch.equal(numbers, numbers[:, :1].expand_as(numbers))


def test_blocks_of_a_real_guide_are_as_large_as_windows():
    assert WindowLayout(1024, 512).guide_block == 16
    assert WindowLayout(1024, 528).guide_block == 4


def test_the_paper_s_geometry():
    layout = WindowLayout.of_pixels(4096, 2048, token=16)
    assert (layout.height, layout.width, layout.rows, layout.columns) == (256, 128, 16, 8)
    assert (layout.tokens, layout.guide_tokens, layout.guide_window) == (32768, 2048, 4)
    first = layout.guide_to_windows(image_ids(64, 32), dim=0)[:5, 1:]
    assert (4 * first).tolist() == [[0, 0], [0, 4], [0, 8], [0, 12], [4, 0]]


@pytest.mark.parametrize(
    ("height", "width", "near"),
    [
        (1000, 1024, "1024x768 or 1024x1024"),
        (100, 300, "256x256 or 512x256"),
        (2160, 3840, "3840x2048 or 3840x2304"),
    ],
)
def test_a_size_that_is_not_made_of_windows_names_the_nearest_that_are(height, width, near):
    with pytest.raises(UserError, match=f"multiples of 256.*{near}"):
        WindowLayout.of_pixels(height, width, token=16)


def test_tokens_and_windows_that_do_not_divide_are_refused():
    with pytest.raises(UserError, match=r"64x60 tokens.*64x48 or 64x64"):
        WindowLayout(60, 64)
    with pytest.raises(
        UserError, match=r"windows of 6 tokens are not divisible by the guide's ratio 4.*8 tokens"
    ):
        WindowLayout(12, 12, window=6, ratio=4)
    with pytest.raises(UserError, match="at least 1"):
        WindowLayout(0, 16)


def test_a_window_is_a_quarter_of_the_native_grid_and_holds_a_guide_token():
    assert [window_side(native) for native in (64, 8, 2, 72)] == [16, 4, 4, 20]
    assert window_side(64, ratio=2) == 16
