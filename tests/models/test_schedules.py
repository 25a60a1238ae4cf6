import math

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from hypothesis import given
from hypothesis import strategies as st

from uhr.base.errors import UserError
from uhr.models import schedules
from uhr.models.spec import ShiftPolicy


def test_static_shift_3_at_28_steps_has_the_known_values():
    sigmas = schedules.shifted(ShiftPolicy.STATIC, 28, tokens=4096)
    torch.testing.assert_close(
        sigmas[:3], torch.tensor([1.0, 0.9878, 0.9750], dtype=torch.float64), atol=5e-5, rtol=0
    )
    assert sigmas[10].item() == 0.84375
    assert sigmas[27].item() == pytest.approx(0.1, abs=1e-12)
    assert sigmas[28] == 0


def test_static_shift_3_at_30_steps_starts_hiflows_stages_where_its_paper_does():
    sigmas = schedules.shifted(ShiftPolicy.STATIC, 30, tokens=4096)[:-1]
    assert sigmas[-16].item() == pytest.approx(0.77419, abs=5e-6)
    assert sigmas[-10].item() == pytest.approx(0.6, abs=1e-12)


def test_dynamic_shift_at_4096_tokens_gives_hiflows_code_grid():
    sigmas = schedules.shifted(ShiftPolicy.DYNAMIC, 30, tokens=4096)[:-1]
    known = [.7831, .7595, .7343, .7072, .6780, .6464, .6123, .5751, .5345, .4901,
             .4412, .3871, .3270, .2598, .1841, .0982]  # fmt: skip
    torch.testing.assert_close(sigmas[-16:], torch.tensor(known, dtype=torch.float64), atol=5e-5, rtol=0)


@pytest.mark.parametrize(("tokens", "mu"), [(256, 0.5), (4096, 1.15), (16384, 3.23), (65536, 11.55)])
def test_mu_is_linear_in_packed_tokens(tokens, mu):
    assert schedules.Calibration().mu(tokens) == pytest.approx(mu, abs=1e-12)


def test_dynamic_shift_refuses_above_its_calibrated_tokens_and_says_what_to_do():
    assert schedules.Calibration().factor(4096) == pytest.approx(math.exp(1.15))
    with pytest.raises(UserError, match=r"up to 4096 image tokens; this picture has 65536 .*shift=static"):
        schedules.shifted(ShiftPolicy.DYNAMIC, 28, tokens=65536)


def test_calibration_is_read_from_a_scheduler_configuration():
    config = {"base_shift": 0.1, "max_shift": 0.9, "base_image_seq_len": 64, "max_image_seq_len": 1024}
    calibration = schedules.Calibration.of(config)
    assert (calibration.mu(64), calibration.mu(1024)) == (pytest.approx(0.1), pytest.approx(0.9))
    assert schedules.Calibration.of({}) == schedules.Calibration()


@given(st.integers(1, 60), st.floats(0.2, 50))
def test_every_shifted_grid_falls_strictly_from_1_to_0(steps, factor):
    sigmas = schedules.shifted(ShiftPolicy.STATIC, steps, tokens=64, factor=factor)
    assert (sigmas[0], sigmas[-1]) == (1, 0)
    assert sigmas.dtype == torch.float64
    assert bool((sigmas.diff() < 0).all())


@given(st.floats(0.2, 20), st.floats(0.2, 20))
def test_shifts_compose_by_multiplying_their_factors(a, b):
    sigmas = schedules.linear(16)
    twice = schedules.shift(schedules.shift(sigmas, a), b)
    torch.testing.assert_close(twice, schedules.shift(sigmas, a * b))


@given(st.integers(1, 40), st.sampled_from([256, 1024, 4096]))
def test_the_grids_are_those_of_diffusers_scheduler(steps, tokens):
    linear = schedules.linear(steps)[:-1].numpy()
    dynamic = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0)
    dynamic.set_timesteps(sigmas=linear, mu=schedules.Calibration().mu(tokens))
    ours = schedules.shifted(ShiftPolicy.DYNAMIC, steps, tokens)
    torch.testing.assert_close(dynamic.sigmas, ours.float(), atol=1e-6, rtol=0)
    static = FlowMatchEulerDiscreteScheduler(shift=3.0)
    static.set_timesteps(sigmas=linear)
    ours = schedules.shifted(ShiftPolicy.STATIC, steps, tokens, factor=3.0)
    torch.testing.assert_close(static.sigmas, ours.float(), atol=1e-6, rtol=0)


def test_a_partial_grid_starts_at_its_noise_level():
    torch.testing.assert_close(
        schedules.linear(4, start=0.8), torch.tensor([0.8, 0.6, 0.4, 0.2, 0], dtype=torch.float64)
    )


def test_no_steps_and_no_shift_are_errors():
    with pytest.raises(UserError, match="0 steps"):
        schedules.linear(0)
    with pytest.raises(UserError, match="shift factor 0"):
        schedules.shift(schedules.linear(4), 0)
