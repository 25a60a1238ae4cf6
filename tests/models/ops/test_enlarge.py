"""A part of an enlargement is the enlargement's part."""

import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from uhr.models.ops.enlarge import bicubic_at, reflected
from uhr.models.ops.filters import bicubic

side = st.integers(1, 24)


@given(side, side, st.integers(0, 60), st.integers(0, 60), st.data())
def test_any_rows_and_columns_are_those_of_the_whole_enlargement(height, width, more, wider, data):
    image = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    tall, wide = height + more, width + wider
    rows = torch.tensor(data.draw(st.lists(st.integers(0, tall - 1), min_size=1, max_size=9)))
    columns = torch.tensor(data.draw(st.lists(st.integers(0, wide - 1), min_size=1, max_size=9)))
    whole = bicubic(image, tall, wide)
    found = bicubic_at(image, (tall, wide), rows, columns)
    torch.testing.assert_close(found, whole[:, :, rows][..., columns], atol=1e-5, rtol=0)


def test_at_the_same_size_nothing_changes():
    image = torch.rand(1, 3, 9, 7)
    assert torch.equal(bicubic_at(image, (9, 7), torch.arange(9), torch.arange(7)), image)


@given(st.integers(2, 40), st.integers(0, 39))
def test_an_axis_is_continued_as_torch_pads_by_reflection(length, more):
    more = min(more, length - 1)
    padded = F.pad(torch.arange(float(length))[None, None], (0, more), mode="reflect")[0, 0].long()
    assert torch.equal(reflected(length, length + more), padded)


def test_reflection_goes_on_where_the_axis_is_shorter_than_the_padding():
    assert reflected(3, 9).tolist() == [0, 1, 2, 1, 0, 1, 2, 1, 0]
    assert reflected(1, 4).tolist() == [0, 0, 0, 0]
