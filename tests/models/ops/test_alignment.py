import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from uhr.models.ops import flow
from uhr.models.ops.alignment import Acceleration, align_direction
from uhr.models.ops.filters import butterworth_low_pass

SIGMAS = (0.7831, 0.6464, 0.4412, 0.0982)


def drawn(seed):
    return torch.randn(1, 2, 6, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def low_pass(x):
    return butterworth_low_pass(x, 0.4)


@given(st.floats(0, 1))
def test_acceleration_in_velocities_and_in_clean_estimates_is_the_same_path(beta):
    """HiFlow's eq. 13 as printed, and the form without 1/sigma that is used."""
    x = drawn(0)
    previous = previous_reference = None
    acceleration = Acceleration()
    for i, (sigma, after) in enumerate(zip(SIGMAS, (*SIGMAS[1:], 0.0), strict=True)):
        data, reference = drawn(10 + i), drawn(20 + i)
        v, towards = (x - data) / sigma, (x - reference) / sigma
        if previous is not None:
            v = v + beta * (previous + towards - previous_reference - v)
        previous, previous_reference = v, towards
        found = acceleration.align(data, reference, sigma, beta)
        torch.testing.assert_close(found, x - sigma * v, atol=1e-12, rtol=1e-12)
        x = x + (after - sigma) * v


def test_the_first_step_has_nothing_to_accelerate_by_and_a_weight_of_zero_never_does():
    acceleration = Acceleration()
    for i, sigma in enumerate(SIGMAS):
        found = acceleration.align(drawn(i), drawn(9), sigma, 1.0 if i == 0 else 0.0)
        torch.testing.assert_close(found, drawn(i))


def test_the_last_aligned_estimate_is_what_the_next_step_goes_by():
    data, reference, sigmas, beta = [drawn(i) for i in range(3)], drawn(9), SIGMAS[:3], 0.5
    acceleration = Acceleration()
    found = [acceleration.align(d, reference, s, beta) for d, s in zip(data, sigmas, strict=True)]
    q = sigmas[2] / sigmas[1]
    aligned = data[2] - beta * ((data[2] - reference) - q * (found[1] - reference))
    raw = data[2] - beta * ((data[2] - reference) - q * (data[1] - reference))
    torch.testing.assert_close(found[2], aligned)
    assert not torch.allclose(found[2], raw, atol=1e-3)


@given(st.floats(0, 1))
def test_direction_moves_low_frequencies_by_the_weight_and_no_other(alpha):
    data, reference = drawn(0), drawn(1)
    found = align_direction(data, reference, alpha, low_pass)
    gain = low_pass(reference - data)
    torch.testing.assert_close(found - data, alpha * gain)
    torch.testing.assert_close(align_direction(data, data, alpha, low_pass), data)


def test_an_estimate_that_equals_the_reference_is_left_alone_by_both():
    acceleration, target = Acceleration(), drawn(3)
    for sigma in SIGMAS:
        direct = align_direction(target, target, 1.0, low_pass)
        torch.testing.assert_close(acceleration.align(direct, target, sigma, 0.7), target)


@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_an_aligned_path_whose_field_and_reference_agree_ends_in_both(beta):
    target, acceleration = drawn(5), Acceleration()

    def velocity(x, sigma, step):
        data = align_direction(flow.data_estimate(x, (x - target) / sigma, sigma), target, 0.8, low_pass)
        return (x - acceleration.align(data, target, sigma, beta)) / sigma

    found = flow.euler(velocity, drawn(0), [*SIGMAS, 0.0])
    torch.testing.assert_close(found.double(), target, atol=1e-5, rtol=1e-5)
