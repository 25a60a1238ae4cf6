import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from uhr.base.errors import UserError
from uhr.models.ops import sizes

SIDE = st.integers(1, 600).map(lambda tokens: 16 * tokens)


@pytest.mark.parametrize(
    ("width", "height", "near"),
    [(1000, 1000, "992x992 or 1008x1008"), (1024, 1000, "1024x992 or 1024x1008"), (8, 5, "16x16")],
)
def test_a_size_that_cannot_be_made_names_the_nearest_that_can(width, height, near):
    with pytest.raises(
        UserError, match=f"size {width}x{height} cannot be generated: use multiples of 16; nearest {near}$"
    ):
        sizes.check_sides(16, height, width)


@given(st.integers(1, 900), st.integers(1, 900), st.integers(1, 300))
def test_the_sizes_that_are_named_can_be_made_and_are_the_next_below_and_above(height, width, multiple):
    named = [
        tuple(map(int, size.split("x"))) for size in sizes.nearest(multiple, height, width).split(" or ")
    ]
    for wide, tall in named:
        sizes.check_sides(multiple, tall, wide)
        assert max(abs(wide - width), abs(tall - height)) < multiple
    assert len(named) == 1 or all(b - a in (0, multiple) for a, b in zip(*named, strict=True))


@pytest.mark.parametrize(
    ("target", "native", "base"),
    [
        ((4096, 4096), 1024, (1024, 1024)),
        ((2160, 3840), 1024, (768, 1360)),
        ((2048, 4096), 1024, (720, 1440)),
        ((512, 512), 128, (128, 128)),
        ((512, 256), 128, (160, 80)),
        ((768, 1024), 1024, (768, 1024)),
    ],
)
def test_the_base_has_about_the_native_area_and_the_targets_shape(target, native, base):
    assert sizes.base_size(*target, native, 16) == base


@given(SIDE, SIDE)
def test_a_base_is_made_of_tokens_within_the_native_area_and_never_above_the_target(height, width):
    found = sizes.base_size(height, width, 1024, 16)
    assert all(side % 16 == 0 and side > 0 for side in found)
    assert found[0] * found[1] <= 1024**2
    if height * width <= 1024**2:
        assert found == (height, width)


@given(st.integers(32, 600), st.integers(32, 600))
def test_a_base_of_ordinary_shape_is_nearly_native_and_nearly_of_that_shape(rows, columns):
    height, width = 16 * rows, 16 * columns
    assume(height * width > 1024**2 and 1 / 3 <= height / width <= 3)
    tall, wide = sizes.base_size(height, width, 1024, 16)
    assert tall * wide > 0.85 * 1024**2
    assert abs(math.log(tall / wide * width / height)) < 0.025


@pytest.mark.parametrize(
    ("target", "ratios", "sides"),
    [
        (4096, (2, 4), [2048, 4096]),
        (4096, (2, 3, 4), [2048, 3072, 4096]),
        (2048, (2, 3, 4), [2048]),
        (3072, (2, 4), [2048, 3072]),
        (8192, (2, 4), [2048, 4096, 8192]),
        (8192, (2, 3, 4), [2048, 3072, 4096, 8192]),
        (1536, (2, 4), [1536]),
        (2176, (2, 4), [2176]),
    ],
)
def test_a_cascade_passes_through_its_ratios_and_ends_at_the_target(target, ratios, sides):
    found = sizes.cascade((target, target), (1024, 1024), ratios, 16)
    assert found == [(side, side) for side in sides]


@given(SIDE, SIDE)
def test_stages_rise_to_the_target_on_the_token_grid(height, width):
    base = sizes.base_size(height, width, 1024, 16)
    stages = sizes.cascade((height, width), base, (2, 3, 4), 16)
    assert stages[-1] == (height, width)
    areas = [h * w for h, w in (base, *stages)]
    assert areas == sorted(areas)
    assert all(side % 16 == 0 for stage in stages for side in stage)


@pytest.mark.parametrize("ratios", [(), (1, 2), (4, 2)])
def test_a_cascade_that_does_not_rise_is_rejected(ratios):
    with pytest.raises(UserError, match="rising ratios"):
        sizes.cascade((4096, 4096), (1024, 1024), ratios, 16)


def test_a_size_that_is_not_above_the_native_one_is_rejected_by_name():
    sizes.check_enlarges((1024, 1040), 1024)
    with pytest.raises(UserError, match="size 768x1024 is not above the native 1024x1024"):
        sizes.check_enlarges((1024, 768), 1024)


@pytest.mark.parametrize(
    ("target", "times"),
    [((4096, 4096), 4), ((2160, 3840), 3), ((1040, 1024), 2), ((2**20, 2**20), 64)],
)
def test_a_target_is_a_whole_number_of_bases(target, times):
    assert sizes.whole_times(target, 1024, 16) == times
