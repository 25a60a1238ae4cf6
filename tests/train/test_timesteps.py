import numpy as np
import pytest
import torch
from scipy import stats

from uhr.base.config import build
from uhr.base.errors import UserError
from uhr.train.objectives.draws import Draws
from uhr.train.timesteps import Timesteps

EVEN = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000


def drawn(timesteps: Timesteps) -> np.ndarray:
    """20,000 sigmas as a run would draw them: 500 steps of 40 samples."""
    steps = [timesteps.sigma(Draws(7, step, range(40)).uniform("sigma")) for step in range(500)]
    return torch.cat(steps).numpy()


def test_uniform_fills_the_unit_interval_evenly():
    sigma = drawn(Timesteps(density="uniform"))
    counts, _ = np.histogram(sigma, bins=20, range=(0, 1))
    assert counts.sum() == len(sigma)
    assert stats.chisquare(counts).pvalue > 1e-4


def test_logit_normal_has_its_density():
    sigma = drawn(Timesteps(density="logit_normal", mean=0.5, std=1.3))
    logits = np.log(sigma) - np.log1p(-sigma)
    assert stats.kstest(logits, stats.norm(0.5, 1.3).cdf).pvalue > 1e-4


def test_a_shift_moves_every_quantile_by_its_formula():
    plain = Timesteps(density="logit_normal").sigma(EVEN)
    shifted = Timesteps(density="logit_normal", shift=3.0).sigma(EVEN)
    # odds are multiplied by the shift: the same statement in another form than the code's
    torch.testing.assert_close(shifted / (1 - shifted), 3 * plain / (1 - plain))
    # FLUX's static shift of 3 sends the middle of the schedule to 3/4
    assert Timesteps(density="uniform", shift=3.0).sigma(torch.tensor([0.5])).item() == pytest.approx(0.75)


def test_a_static_shift_leaves_mass_at_all_noise_levels_whatever_the_image_size():
    # the linear rule of FLUX's scheduler has shift exp(11.55) at 4096 x 4096: nothing is left below 0.99
    counts, _ = np.histogram(drawn(Timesteps(density="logit_normal", shift=3.0)), bins=4, range=(0, 1))
    assert (counts > 0.01 * counts.sum()).all()


def test_sigma_stays_inside_the_unit_interval_at_the_ends_of_u():
    ends = torch.tensor([2.0**-54, 1 - 2.0**-53], dtype=torch.float64)
    for density in ("uniform", "logit_normal"):
        sigma = Timesteps(density=density, shift=6.0).sigma(ends)
        assert ((sigma >= 0) & (sigma <= 1)).all()


def test_mode_is_diffusers_sampling_of_that_name():
    from diffusers.training_utils import compute_density_for_timestep_sampling

    theirs = compute_density_for_timestep_sampling(
        "mode", 40_000, mode_scale=1.29, generator=torch.Generator().manual_seed(0)
    )
    found = Timesteps(density="mode").sigma(EVEN)
    assert (found.diff() > 0).all()
    assert stats.ks_2samp(found.numpy(), theirs.numpy()).pvalue > 1e-3


@pytest.mark.parametrize("density", ["uniform", "logit_normal", "mode"])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_a_band_is_the_density_given_that_sigma_is_inside(density, shift):
    whole = Timesteps(density=density, shift=shift)
    banded = Timesteps(density=density, shift=shift, band=(0.54, 0.9)).sigma(EVEN)
    assert banded.min() >= 0.54
    assert banded.max() <= 0.9
    fine = whole.sigma((torch.arange(400_000, dtype=torch.float64) + 0.5) / 400_000)
    inside = fine[(fine >= 0.54) & (fine <= 0.9)]
    levels = torch.tensor([0.1, 0.25, 0.5, 0.75, 0.9], dtype=torch.float64)
    torch.testing.assert_close(
        torch.quantile(banded, levels), torch.quantile(inside, levels), atol=1e-3, rtol=0
    )


def test_the_band_of_ultraflux_begins_at_index_459_of_a_thousand():
    band = Timesteps(density="uniform", band=(0.541, 1.0))
    assert band.sigma(torch.tensor([1e-9])).item() == pytest.approx(0.541)
    assert band.sigma(torch.tensor([0.5])).item() == pytest.approx(0.7705)


@pytest.mark.parametrize("band", [[0.5, 0.5], [0.6, 0.5], [-0.1, 0.5], [0.5, 1.1]])
def test_an_impossible_band_is_an_error(band):
    with pytest.raises(UserError, match="must be 0 <= low < high <= 1"):
        build(Timesteps, {"density": "uniform", "band": band}, "recipe")


def test_a_band_without_mass_is_an_error():
    tree = {"density": "logit_normal", "std": 0.01, "band": [0.9, 1.0]}
    with pytest.raises(UserError, match="less than a millionth of the density"):
        build(Timesteps, tree, "recipe")


@pytest.mark.parametrize("weighting", ["none", "sigma_sqrt", "cosmap"])
def test_a_weighting_is_diffusers_of_that_name(weighting):
    from diffusers.training_utils import compute_loss_weighting_for_sd3

    sigma = torch.linspace(0.01, 1, 100)
    found = Timesteps(density="uniform", weighting=weighting).weight(sigma)
    expected = compute_loss_weighting_for_sd3(weighting, sigma)
    torch.testing.assert_close(torch.ones(100) if found is None else found, expected)


def test_an_unknown_density_is_an_error():
    with pytest.raises(UserError, match="density"):
        build(Timesteps, {"density": "flux_shift "}, "recipe")
