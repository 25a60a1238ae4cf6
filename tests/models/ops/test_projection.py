import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from uhr.models.ops import flow
from uhr.models.ops.filters import haar, haar_low_pass
from uhr.models.ops.projection import Projection, cosine_weight, project, velocity_towards

WEIGHT = st.floats(0, 1)


def drawn(seed, *shape):
    return torch.randn(shape or (2, 3, 8, 6), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", Projection)
@given(weight=WEIGHT)
def test_a_velocity_that_points_to_the_reference_stays_as_it_is(kind, weight):
    v = drawn(0)
    torch.testing.assert_close(project(v, v, weight, kind), v)


@given(weight=WEIGHT)
def test_cosine_decay_and_constant_move_the_low_band_alone(weight):
    v, towards = drawn(0), drawn(1)
    for kind, share in ((Projection.COSINE_DECAY, weight), (Projection.CONSTANT, 1.0)):
        found, before, aim = (haar(x) for x in (project(v, towards, weight, kind), v, towards))
        torch.testing.assert_close(found.low, before.low + share * (aim.low - before.low))
        for after, was in zip(found[1:], before[1:], strict=True):
            torch.testing.assert_close(after, was, atol=1e-6, rtol=1e-5)


@given(weight=WEIGHT)
def test_cosine_shift_takes_the_whole_low_band_and_a_share_of_the_rest(weight):
    v, towards = drawn(0), drawn(1)
    found, before, aim = (haar(x) for x in (project(v, towards, weight, Projection.COSINE_SHIFT), v, towards))
    torch.testing.assert_close(found.low, aim.low, atol=1e-6, rtol=1e-5)
    for after, was, to in zip(found[1:], before[1:], aim[1:], strict=True):
        torch.testing.assert_close(after, was + weight * (to - was), atol=1e-6, rtol=1e-5)


def test_the_weight_falls_from_one_along_a_half_cosine():
    weights = [cosine_weight(i, 30) for i in range(30)]
    assert weights[0] == 1
    assert weights[15] == pytest.approx(0.5)
    assert weights == sorted(weights, reverse=True)
    assert weights[29] == pytest.approx((1 + math.cos(math.pi * 29 / 30)) / 2)


@given(st.floats(0.05, 1))
def test_the_velocity_towards_data_leads_to_it_in_one_step(sigma):
    x, data = drawn(0), drawn(1)
    v = velocity_towards(x, data, sigma)
    torch.testing.assert_close(flow.euler_step(x, v, sigma, 0.0), data, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", Projection)
def test_a_projected_path_whose_field_and_reference_agree_ends_in_both(kind):
    target, steps = drawn(7), 10

    def velocity(x, sigma, step):
        v = (x - target) / sigma
        return project(v, velocity_towards(x, target, sigma), cosine_weight(step, steps), kind)

    found = flow.euler(velocity, drawn(0), [1 - i / steps for i in range(steps + 1)])
    torch.testing.assert_close(found, target, atol=1e-5, rtol=1e-5)


def test_a_constant_projection_gives_the_references_low_band_and_the_fields_own_detail():
    """The two straight fields are pulled together band by band, each of which is a straight line itself."""
    target, reference = drawn(7), drawn(8)

    def velocity(x, sigma, step):
        v = (x - target) / sigma
        return project(v, velocity_towards(x, reference, sigma), 0.3, Projection.CONSTANT)

    found = flow.euler(velocity, drawn(0), [1 - i / 10 for i in range(11)])
    expected = target + haar_low_pass(reference - target)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
