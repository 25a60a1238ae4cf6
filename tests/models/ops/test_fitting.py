"""Images of any size through samplers that make only some: nothing is stretched, nothing cut off."""

import math
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given
from hypothesis import strategies as st

from uhr.base.errors import UserError
from uhr.models.ops import fitting
from uhr.models.ops.filters import bicubic
from uhr.models.ops.fitting import continued, fit, target_size
from uhr.models.ops.sizes import smallest, up_to, whole_times

sides = st.integers(1, 200)
scales = st.sampled_from([1, 1.25, 4 / 3, 1.37, 1.5, 2, 2.5, 3, math.pi, 4])


def multiples(unit):
    """Of a sampler that makes whole units."""
    return lambda height, width: (up_to(height, unit), up_to(width, unit))


def whole_bases(height, width):
    """Of DemoFusion, whose unit rises with the size."""
    return smallest((height, width), lambda size: 16 * whole_times(size, 64, 16), lambda size: True)


makers = st.sampled_from([multiples(16), multiples(64), whole_bases])


def scaled(size, scale):
    found = target_size(size, scale, None, 1)
    assume(min(found) > 0)
    return found


@given(sides, sides, scales, makers)
def test_what_is_handed_and_made_are_the_image_and_the_target_continued_at_one_enlargement(
    height, width, scale, makeable
):
    size = (height, width)
    target = scaled(size, scale)
    found = fit(size, target, makeable)
    assert makeable(*found.made) == found.made
    for axis in (0, 1):
        assert found.made[axis] >= target[axis]
        assert found.padded[axis] >= size[axis]
        enlargement = Fraction(found.made[axis], found.padded[axis])
        assert enlargement == (1 if found.enlarged_first else Fraction(target[axis], size[axis]))
    least, made = (math.prod(each) for each in (makeable(*target), found.made))
    assert made <= fitting.MOST_PADDING * least


@given(sides, sides, st.sampled_from([1, 2, 4, 8, 16]), st.sampled_from([16, 64]))
def test_whole_scales_pad_the_image_by_less_than_a_unit_and_never_enlarge_it_first(
    height, width, scale, unit
):
    found = fit((height, width), (scale * height, scale * width), multiples(unit))
    assert not found.enlarged_first
    assert all(
        made - side < unit for made, side in zip(found.made, (scale * height, scale * width), strict=True)
    )


@given(st.integers(24, 90), st.integers(24, 90), scales, makers)
def test_a_sampler_that_only_enlarges_returns_the_enlargement(height, width, scale, makeable):
    """Up to the two pixels at the lower and right border, where the kernel sees the reflection."""
    image = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(height))
    target = scaled((height, width), scale)
    found = fit((height, width), target, makeable)
    generated = bicubic(found.pad(image), *found.made)[..., : target[0], : target[1]]
    expected = bicubic(image, *target)
    reach = 0 if found.enlarged_first else math.ceil(2 * scale)
    kept = generated[..., : target[0] - reach, : target[1] - reach]
    torch.testing.assert_close(
        kept, expected[..., : target[0] - reach, : target[1] - reach], atol=1e-5, rtol=0
    )
    assert (generated - expected).abs().max() < 1


def test_an_image_that_can_be_made_is_handed_as_it_is():
    image = torch.rand(1, 3, 64, 48)
    found = fit((64, 48), (128, 96), multiples(16))
    assert (found.padded, found.made, found.enlarged_first) == ((64, 48), (128, 96), False)
    assert found.pad(image) is image


def test_an_odd_enlargement_is_made_before_the_padding():
    found = fit((137, 193), (206, 290), multiples(16))
    assert (found.padded, found.made, found.enlarged_first) == ((208, 304), (208, 304), True)
    assert found.describe() == {
        "given": [137, 193], "target": [206, 290], "handed": [208, 304], "made": [208, 304],
        "enlarged_first": True,
    }  # fmt: skip


@given(st.integers(2, 20), st.integers(2, 20), st.integers(0, 90), st.integers(0, 90))
def test_an_image_is_continued_by_its_mirror_image_to_and_fro(height, width, down, right):
    image = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(1))
    found = continued(image, (height + down, width + right))
    assert torch.equal(found[..., :height, :width], image)
    once = image
    while once.shape[-2] < height + down or once.shape[-1] < width + right:
        missing = height + down - once.shape[-2], width + right - once.shape[-1]
        pads = [min(miss, side - 1) for miss, side in zip(missing, once.shape[-2:], strict=True)]
        once = F.pad(once, (0, pads[1], 0, pads[0]), mode="reflect")
    assert torch.equal(found, once)


def test_a_row_of_one_pixel_is_repeated():
    assert torch.equal(continued(torch.full((1, 1, 1, 2), 0.5), (3, 5)), torch.full((1, 1, 3, 5), 0.5))


@given(sides, sides, scales)
def test_a_scale_is_met_to_the_pixel(height, width, scale):
    assert target_size((height, width), scale, None, 1) == (round(scale * height), round(scale * width))


@given(sides, sides, scales)
def test_the_size_that_a_scale_makes_may_replace_it(height, width, scale):
    target = scaled((height, width), scale)
    assert target_size((height, width), None, target, 1) == target


def test_the_default_scale_is_used_without_one():
    assert target_size((10, 30), None, None, 4) == (40, 120)


@pytest.mark.parametrize(
    ("scale", "size", "message"),
    [
        (0.5, None, "an image of 128x96 would shrink to 64x48: .*scale 1"),
        (0.0, None, "a scale of 0 is invalid: give 1 or more"),
        (math.inf, None, "a scale of inf"),
        (2.0, (192, 256), "both a scale and a size"),
        (None, (256, 256), "128x96 does not fit 256x256: use 256x192 or 341x256, or crop it"),
        (None, (190, 256), "does not fit 256x190: use 256x192 or 253x190"),
        (None, (48, 64), "would shrink"),
        (1000.0, None, "would become 128000x96000: take a scale of at most 295.6"),
    ],
)
def test_what_cannot_become_of_an_image_is_reported_with_what_can(scale, size, message):
    with pytest.raises(UserError, match=message):
        target_size((96, 128), scale, size, 4)


@given(sides, sides, st.booleans())
def test_less_than_a_patch_is_reported_with_the_scale_that_makes_one(height, width, whole):
    size = (height, width)
    large = height * width >= 128**2 if whole else max(size) >= 128
    if large:
        fitting.check_patch(size, size, 128, whole)
        return
    with pytest.raises(UserError, match=r"less than one patch of 128x128: take a scale of") as error:
        fitting.check_patch(size, size, 128, whole)
    scale = float(str(error.value).split("scale of ")[1].split()[0])
    fitting.check_patch(size, target_size(size, scale, None, 1), 128, whole)
    # sides are rounded, so that a hundredth less may give the same size
    less = round(scale - 0.01 - 1 / min(size), 2)
    if less >= 1:
        with pytest.raises(UserError):
            fitting.check_patch(size, target_size(size, less, None, 1), 128, whole)
