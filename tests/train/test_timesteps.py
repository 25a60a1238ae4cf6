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


def test_an_unknown_density_is_an_error():
    with pytest.raises(UserError, match="density"):
        build(Timesteps, {"density": "flux_shift "}, "recipe")
