"""The measure of seams sees borders that show, as strongly as they show, and nothing else."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from uhr.models.ops.patches.grid import Box, Canvas, feather, grid
from uhr.models.ops.patches.seams import seam_strength, seams_of


def surface(height=96, width=128, seed=0):
    """An image [1, 3, H, W] whose gradients are alike everywhere."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(1, 3, height, width, generator=draw)


BOXES = grid(96, 128, 32, 0)


def stepped(image, boxes, height):
    """Every other patch of a chessboard is brighter by `height`."""
    found = image.clone()
    for box in boxes:
        if (box.top // box.height + box.left // box.width) % 2:
            box.crop(found).add_(height)
    return found


@given(st.integers(0, 99))
def test_an_image_of_one_piece_has_no_seams(seed):
    assert seam_strength(surface(seed=seed), BOXES) == pytest.approx(1, abs=0.1)


@given(st.floats(8, 1000), st.integers(0, 9))
def test_a_planted_step_is_measured_as_high_as_it_is(height, seed):
    """Far above the noise, a step is the gradient across the border."""
    image = surface(seed=seed)
    nearby = (image.diff(dim=-1).abs().mean() + image.diff(dim=-2).abs().mean()).item() / 2
    found = seam_strength(stepped(image, BOXES, height), BOXES)
    assert found == pytest.approx(height / nearby, rel=0.1)


def test_it_grows_with_the_step_and_knows_neither_brightness_nor_contrast():
    image = surface()
    found = [seam_strength(stepped(image, BOXES, height), BOXES) for height in (0, 0.5, 1, 2, 4)]
    assert found == sorted(found)
    assert found[-1] > 3
    assert seam_strength(7 * stepped(image, BOXES, 1) + 3, BOXES) == pytest.approx(found[2], rel=1e-5)


def test_steps_elsewhere_are_no_seams():
    image = surface()
    elsewhere = image.clone()
    elsewhere[..., 50:] += 9
    elsewhere[..., 43:, :] += 9
    assert seam_strength(elsewhere, BOXES) == pytest.approx(seam_strength(image, BOXES))


def test_borders_of_overlapping_patches_are_where_they_begin_and_end():
    boxes = grid(96, 128, 48, 16)
    for place in (26, 48):
        seamed = surface()
        seamed[..., place:] += 9
        assert seam_strength(seamed, boxes) > 1.5
    plateau = surface()
    plateau[..., 40:] += 9
    assert seam_strength(plateau, boxes) == pytest.approx(seam_strength(surface(), boxes))


@pytest.mark.parametrize("overlap", [8, 16])
def test_a_feather_hides_what_a_plain_mean_shows(overlap):
    """Patches of one surface, each with a brightness of its own."""
    boxes = grid(96, 128, 48, overlap)
    whole, plain, soft = surface() / 20, Canvas(1, 3, 96, 128), Canvas(1, 3, 96, 128)
    for box, shade in zip(
        boxes, torch.randn(len(boxes), generator=torch.Generator().manual_seed(1)), strict=True
    ):
        patch = box.crop(whole) + shade
        plain.add(box, patch)
        soft.add(box, patch, feather(box, 96, 128, overlap))
    laid, feathered = (seam_strength(canvas.result(), boxes) for canvas in (plain, soft))
    assert laid > 3
    assert feathered < 1 + (laid - 1) / 4


def test_what_cannot_be_measured_is_no_seam_but_a_step_in_nothing_is():
    assert seam_strength(torch.zeros(1, 1, 96, 128), BOXES) == 1
    assert seam_strength(surface(), [Box(0, 0, 96, 128)]) == 1
    assert seam_strength(surface(), []) == 1
    assert seam_strength(stepped(torch.zeros(1, 1, 96, 128), BOXES, 1), BOXES) == float("inf")


def test_boxes_may_reach_beyond_an_image_that_was_cut():
    image = stepped(surface(), BOXES, 4)
    assert seam_strength(image[..., :80, :100], BOXES) == pytest.approx(seam_strength(image, BOXES), rel=0.1)
    assert seam_strength(image[..., :32, :32], BOXES) == 1


def test_a_pil_image_is_measured_in_its_levels():
    levels = (surface() * 20 + 128).clamp(0, 255).byte()
    image = Image.fromarray(np.ascontiguousarray(levels[0].movedim(0, -1).numpy()))
    assert seams_of(image, BOXES) == pytest.approx(seam_strength(levels, BOXES))
