"""An image put together strip by strip is the one put together at once, in less memory."""

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from uhr.models.ops.patches.grid import Box, Canvas, feather, grid
from uhr.models.ops.patches.strips import StripCanvas


class Whole:
    """Collects strips and remembers how they came."""

    def __init__(self):
        self.parts, self.tops = [], []

    def __call__(self, top, rows):
        assert top == sum(part.shape[-2] for part in self.parts)
        self.parts.append(rows)
        self.tops.append(top)

    def image(self):
        return torch.cat(self.parts, dim=-2)


@given(st.integers(8, 90), st.integers(8, 60), st.integers(8, 40), st.integers(0, 39))
def test_strips_are_bitwise_the_whole_canvas(height, width, window, overlap):
    assume(overlap < window)
    draw = torch.Generator().manual_seed(0)
    at_once, whole = Canvas(2, 3, height, width), Whole()
    strips = StripCanvas(2, 3, width, whole)
    for box in grid(height, width, window, overlap):
        patch = torch.randn(2, 3, box.height, box.width, generator=draw)
        weights = feather(box, height, width, overlap)
        at_once.add(box, patch, weights)
        strips.add(box, patch, weights)
        assert strips._sum.shape[-2] <= box.height
    strips.finish()
    assert torch.equal(whole.image(), at_once.result())


def test_a_strip_is_handed_out_once_no_patch_can_touch_it():
    whole = Whole()
    strips = StripCanvas(1, 1, 8, whole)
    for box in grid(32, 8, 8, 0):
        strips.add(box, torch.ones(1, 1, 8, 8), torch.ones(8, 8))
        assert sum(part.shape[-2] for part in whole.parts) == box.top
    strips.finish()
    assert whole.tops == [0, 8, 16, 24]


def test_gaps_and_disorder_are_rejected():
    strips = StripCanvas(1, 1, 4, Whole())
    strips.add(Box(0, 0, 4, 3), torch.ones(1, 1, 4, 3), torch.ones(4, 3))
    with pytest.raises(AssertionError, match="gap"):
        strips.finish()
    strips = StripCanvas(1, 1, 4, Whole())
    strips.add(Box(0, 0, 4, 4), torch.ones(1, 1, 4, 4), torch.ones(4, 4))
    with pytest.raises(AssertionError, match="gap"):
        strips.add(Box(6, 0, 4, 4), torch.ones(1, 1, 4, 4), torch.ones(4, 4))
    strips = StripCanvas(1, 1, 4, Whole())
    strips.add(Box(0, 0, 4, 4), torch.ones(1, 1, 4, 4), torch.ones(4, 4))
    strips.add(Box(2, 0, 4, 4), torch.ones(1, 1, 4, 4), torch.ones(4, 4))
    with pytest.raises(AssertionError, match="after one at"):
        strips.add(Box(1, 0, 4, 4), torch.ones(1, 1, 4, 4), torch.ones(4, 4))
