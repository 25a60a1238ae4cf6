import math

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from hypothesis import given
from hypothesis import strategies as st

from uhr.base.errors import UserError
from uhr.models.ops import schedules
from uhr.models.ops.choices import ShiftPolicy


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


def test_dynamic_shift_rejects_above_its_calibrated_tokens_and_says_what_to_do():
    assert schedules.Calibration().factor(4096) == pytest.approx(math.exp(1.15))
    with pytest.raises(UserError, match=r"up to 4096 image tokens; this image has 65536 .*fixed factor"):
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


GOLDEN = [
    # start, times, warped times, labels
    (1.0, [0, 0.25, 0.5, 0.75], [0, 0.23125, 0.5, 0.80625], [1, 0.7688, 0.5, 0.1938]),
    (0.8, [0.2, 0.4, 0.6, 0.8], [0.1896, 0.3457, 0.6814, 0.8415], [0.8104, 0.6543, 0.3186, 0.1585]),
    (0.6, [0.4, 0.55, 0.7, 0.85], [0.3457, 0.6305, 0.7687, 0.8763], [0.6543, 0.3695, 0.2313, 0.1237]),
    (0.5, [0.5, 0.625, 0.75, 0.875], [0.5, 0.705, 0.8062, 0.8942], [0.5, 0.295, 0.1938, 0.1058]),
    (0.4, [0.6, 0.7, 0.8, 0.9], [0.6814, 0.7687, 0.8415, 0.9129], [0.3186, 0.2313, 0.1585, 0.0871]),
    (0.3, [0.7, 0.775, 0.85, 0.925], [0.7687, 0.824, 0.8763, 0.9326], [0.2313, 0.176, 0.1237, 0.0674]),
]


def doubles(values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(("start", "times", "warped", "labels"), GOLDEN)
def test_realuhrs_warp_has_the_known_values_in_both_readings(start, times, warped, labels):
    torch.testing.assert_close(schedules.warp(doubles(times)), doubles(warped), atol=6e-5, rtol=0)
    by_label = schedules.patch_schedule("warped-labels", 4, start)
    torch.testing.assert_close(by_label.labels, doubles(labels), atol=6e-5, rtol=0)
    torch.testing.assert_close(by_label.sigmas, torch.cat([1 - doubles(times), doubles([0])]))
    by_grid = schedules.patch_schedule("warped-grid", 4, start)
    torch.testing.assert_close(by_grid.sigmas[:-1], doubles(labels), atol=6e-5, rtol=0)
    assert torch.equal(by_grid.labels, by_grid.sigmas[:-1])
    assert by_grid.sigmas[-1] == 0


@pytest.mark.parametrize(
    ("p", "limit"),
    [(1, 0.3183), (1.25, 0.4356), (1.5, 0.4715), (2, 0.4878), (2.5, 0.4799),
     (3, 0.4651), (4, 0.4326), (6, 0.3782), (8, 0.3384)],
)  # fmt: skip
def test_the_warp_is_monotone_up_to_the_known_alpha_and_rejected_from_there_on(p, limit):
    assert schedules.largest_alpha(p) == pytest.approx(limit, abs=6e-5)
    t = torch.linspace(0, 1, 5001, dtype=torch.float64)
    assert bool((schedules.warp(t, limit - 1e-3, p).diff() > 0).all())
    with pytest.raises(UserError, match=rf"not monotone .* p {p:g}: below 0\.\d{{4}} it is"):
        schedules.warp(t, limit + 1e-3, p)


def test_beyond_the_limit_the_papers_formula_does_fall_somewhere():
    t = torch.linspace(0.5001, 1, 5001, dtype=torch.float64)
    formula = t * (1 + 0.495 * torch.sin(math.pi * t) ** 2)
    assert bool((formula.diff() < 0).any())


def test_slopes_at_the_recommended_point_are_the_known_ones():
    t = torch.linspace(0, 1, 200_001, dtype=torch.float64)
    warped = schedules.warp(t)
    slope = warped.diff() / t.diff()
    lower, upper = slope[t[1:] < 0.4999], slope[t[:-1] > 0.5001]
    assert lower.min().item() == pytest.approx(0.7464, abs=1e-4)
    assert upper.min().item() == pytest.approx(0.6925, abs=1e-4)


def test_the_warp_jumps_by_alpha_around_the_middle_which_stays():
    below, middle, above = schedules.warp(doubles([0.5 - 1e-8, 0.5, 0.5 + 1e-8])).tolist()
    assert (below, middle, above) == (pytest.approx(0.425), 0.5, pytest.approx(0.575))


@given(st.floats(0, 0.3), st.floats(1, 8))
def test_the_warp_keeps_both_ends(alpha, p):
    assert schedules.warp(doubles([0.0, 1.0]), alpha, p).tolist() == pytest.approx([0, 1], abs=1e-12)


def test_no_warp_at_alpha_0():
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    assert torch.equal(schedules.warp(t, alpha=0), t)


def test_a_p_below_1_is_rejected():
    with pytest.raises(UserError, match=r"p 0\.5"):
        schedules.largest_alpha(0.5)


NAMES = sorted(schedules.PATCH_SCHEDULES)


@given(st.sampled_from(NAMES), st.integers(1, 30), st.floats(0.1, 1.0))
def test_every_patch_schedule_falls_strictly_to_0_and_labels_every_step(name, steps, start):
    schedule = schedules.patch_schedule(name, steps, start)
    assert schedule.sigmas.shape == (steps + 1,)
    assert schedule.labels.shape == (steps,)
    assert schedule.sigmas.dtype == schedule.labels.dtype == torch.float64
    assert schedule.sigmas[-1] == 0
    assert bool((schedule.sigmas.diff() < 0).all())
    assert bool((schedule.labels.diff() < 0).all())
    assert 0 < schedule.labels.min() <= schedule.labels.max() <= 1


@pytest.mark.parametrize("name", ["uniform", "logarithmic", "cosine", "warped-labels"])
@pytest.mark.parametrize("start", [1.0, 0.5])
def test_true_levels_begin_at_the_start(name, start):
    sigmas = schedules.patch_schedule(name, 4, start).sigmas
    assert sigmas[0].item() == pytest.approx(start, abs=1e-12)


def test_logarithmic_levels_are_a_geometric_progression_between_the_uniform_ends():
    sigmas = schedules.logarithmic(4, 0.8)[:-1]
    ratios = sigmas[1:] / sigmas[:-1]
    torch.testing.assert_close(ratios, ratios[:1].expand(3))
    assert sigmas[-1].item() == pytest.approx(0.2)


def test_cosine_levels_have_the_signal_to_noise_of_the_cosine_schedule():
    sigmas = schedules.cosine(8)[1:-1]
    u = torch.arange(7, 0, -1, dtype=torch.float64) / 8
    # the cosine schedule: signal cos(pi u / 2), noise sin(pi u / 2)
    torch.testing.assert_close(sigmas / (1 - sigmas), torch.tan(math.pi * u / 2))


def test_an_unknown_patch_schedule_is_named_with_the_nearest():
    with pytest.raises(UserError, match="unknown patch schedule 'cosin': did you mean cosine"):
        schedules.patch_schedule("cosin", 4, 1.0)
