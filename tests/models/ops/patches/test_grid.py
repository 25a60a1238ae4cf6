"""Patches cover, overlap as requested, and blend without changing a constant image."""

import itertools

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from uhr.base.errors import UserError
from uhr.models.ops.patches.grid import Box, Canvas, feather, grid, starts

sides = st.integers(1, 90)


@given(st.integers(1, 5000), st.integers(1, 1500), st.integers(0, 1499))
def test_starts_cover_the_axis_with_the_overlap_requested_and_no_window_too_many(length, window, overlap):
    assume(overlap < window)
    found = starts(length, window, overlap)
    assert found[0] == 0
    assert found == sorted(set(found))
    if length <= window:
        assert found == [0]
        return
    assert found[-1] + window == length
    assert all(later - earlier <= window - overlap for earlier, later in itertools.pairwise(found))
    # one window fewer could not reach the end
    assert (len(found) - 2) * (window - overlap) + window < length


@given(st.integers(1, 60), st.integers(1, 20), st.integers(1, 19), st.sampled_from([2, 8, 16]))
def test_on_a_packing_grid_every_start_is_on_it_and_the_overlap_still_holds(length, window, step, multiple):
    assume(step <= window)
    found = starts(length * multiple, window * multiple, (window - step) * multiple, multiple)
    assert all(start % multiple == 0 for start in found)
    assert all(b - a <= step * multiple for a, b in itertools.pairwise(found))


@pytest.mark.parametrize(("size", "overlap", "count"), [
    (2048, 512, 9), (4096, 512, 49), (2048, 384, 9), (4096, 384, 36), (2048, 256, 9), (4096, 256, 25),
])  # fmt: skip
def test_patch_counts_are_those_of_recipes_1_2(size, overlap, count):
    assert len(grid(size, size, 1024, overlap)) == count


@given(sides, sides, st.integers(9, 40), st.integers(9, 40), st.integers(0, 39))
def test_crops_of_an_image_blend_back_to_it(height, width, tall, wide, overlap):
    assume(overlap < min(tall, wide))
    image = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    boxes = grid(height, width, (tall, wide), overlap)
    plain, feathered = (Canvas(2, 3, height, width) for _ in range(2))
    for box in boxes:
        weights = feather(box, height, width, overlap)
        assert weights.shape == (box.height, box.width)
        assert weights.min() > 0
        assert weights.max() <= 1
        plain.add(box, box.crop(image))
        feathered.add(box, box.crop(image), weights)
    # a pixel is the sum of up to some hundred float32 terms, so that the bound is relative to its size too
    torch.testing.assert_close(plain.result(), image, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(feathered.result(), image, atol=1e-5, rtol=1e-5)


def test_a_feather_is_one_on_the_plateau_and_on_the_border_and_gaussian_towards_neighbours():
    height, width, overlap = 96, 64, 12
    inside = feather(Box(16, 0, 48, 64), height, width, overlap)
    assert torch.equal(inside[overlap:-overlap], torch.ones(48 - 2 * overlap, 64))
    ramp = torch.exp(-((torch.arange(12).flip(0) + 0.5) ** 2) / (2 * 4.0**2))
    torch.testing.assert_close(inside[:12, 5], ramp)
    torch.testing.assert_close(inside[-12:, 63], ramp.flip(0))
    assert torch.equal(feather(Box(0, 0, 96, 64), height, width, overlap), torch.ones(96, 64))
    assert torch.equal(feather(Box(16, 0, 48, 64), height, width, 0), torch.ones(48, 64))


def test_feathering_turns_a_step_between_patches_into_a_slope():
    boxes = grid(32, 56, 32, 8)
    values = [0.0, 1.0]
    hard, soft = (Canvas(1, 1, 32, 56) for _ in range(2))
    for box, value in zip(boxes, values, strict=True):
        patch = torch.full((1, 1, box.height, box.width), value)
        hard.add(box, patch)
        soft.add(box, patch, feather(box, 32, 56, 8))
    assert hard.result().diff(dim=-1).abs().max() == pytest.approx(0.5)
    slope = soft.result().diff(dim=-1)
    assert slope.min() >= 0
    assert slope.max() < 0.35


def test_a_gap_between_patches_is_no_image():
    canvas = Canvas(1, 1, 4, 4)
    canvas.add(Box(0, 0, 4, 3), torch.ones(1, 1, 4, 3))
    with pytest.raises(AssertionError, match="gap"):
        canvas.result()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((64, 16, 16), "cannot overlap by 16"),
        ((64, 16, -1), "cannot overlap by -1"),
        ((64, 16, 3, 8), "step by 13"),
    ],
)
def test_overlaps_that_cannot_be_say_what_can(arguments, message):
    with pytest.raises(UserError, match=message):
        starts(*arguments)


def test_a_box_scales_with_its_grid():
    x = torch.arange(64.0).reshape(1, 1, 8, 8)
    box = Box(2, 1, 3, 4)
    fine = x.repeat_interleave(8, -1).repeat_interleave(8, -2)
    assert torch.equal(box.scaled(8).crop(fine)[..., ::8, ::8], box.crop(x))
