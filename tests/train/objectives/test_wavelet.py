import math

import numpy as np
import pytest
import pywt
import torch

from uhr.train.objectives.flow import Flow
from uhr.train.objectives.wavelet import SnrHuberWavelet, Wavelet, residual


def nonlinear(noisy, sigma, condition):
    return noisy.tanh() * (1 + sigma.view(-1, 1, 1, 1))


def losses(batch, draws, *objectives, step=0):
    return [each(nonlinear_model, batch(step=step), draws(step)) for each in objectives]


class nonlinear_model:
    velocity = staticmethod(nonlinear)


def test_the_bands_are_those_of_pywavelets_of_the_difference_of_clean_estimate_and_data(batch):
    samples = batch(side=12)
    found = residual(nonlinear_model, samples).numpy()
    clean = samples.noisy - samples.levels * nonlinear(samples.noisy, samples.sigma, None)
    low, (horizontal, vertical, diagonal) = pywt.dwt2((clean - samples.data).numpy(), "haar", axes=(-2, -1))
    # the order of the three detail bands has a name per library: each of ours is one of theirs
    ours = np.split(found, 4, axis=1)
    np.testing.assert_allclose(ours[0], low, atol=1e-5)
    theirs = [horizontal, vertical, diagonal]
    taken = [
        next(i for i, t in enumerate(theirs) if np.allclose(abs(o), abs(t), atol=1e-5)) for o in ours[1:]
    ]
    assert sorted(taken) == [0, 1, 2]


@pytest.mark.parametrize("step", range(10))
def test_the_wavelet_loss_is_flow_matching_times_the_square_of_the_level(batch, draws, step):
    flow, wavelet = losses(batch, draws, Flow(), Wavelet(), step=step)
    sigma = batch(step=step).sigma
    torch.testing.assert_close(wavelet.per_sample(), sigma**2 * flow.per_sample(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("objective", [Wavelet(), SnrHuberWavelet()], ids=lambda o: o.kind)
def test_the_true_velocity_has_no_loss(objective, batch, draws, model):
    samples = batch()

    def oracle(noisy, sigma, condition):
        return (noisy - samples.data) / sigma.view(-1, 1, 1, 1)

    loss = objective(model(oracle), samples, draws()).per_sample()
    assert loss.shape == (4,)
    assert loss.max() < 1e-9


def test_the_weight_breaks_at_the_known_level_and_is_one_from_there_on():
    loss = SnrHuberWavelet()
    sigma = torch.linspace(0.002, 0.998, 999, dtype=torch.float64)
    expected = (math.sqrt(5) * sigma / (1 - sigma)).clamp(max=1)
    torch.testing.assert_close(loss.weight(sigma), expected)
    assert loss.weight(torch.tensor([0.0, 1.0])).isfinite().all()


def test_with_beta_zero_the_weight_is_that_of_the_paper_and_diverges_towards_noise():
    assert SnrHuberWavelet(beta=0).weight(torch.tensor(0.99)) == pytest.approx(99, rel=1e-4)


def test_the_threshold_goes_from_one_at_low_noise_to_a_fifth_at_pure_noise():
    loss = SnrHuberWavelet()
    sigma = torch.linspace(0, 1, 101)
    found = loss.threshold(sigma)
    assert found[0] == 1
    assert (found.diff() <= 0).all()
    assert found[-1] == pytest.approx(0.2, abs=1e-3)
    # where the signal-to-noise ratio is gamma
    assert loss.threshold(torch.tensor(1 / (1 + math.sqrt(5)) + 1e-6)) == pytest.approx(1, abs=1e-4)


def test_a_high_threshold_makes_it_the_square_and_a_low_one_the_absolute_error(batch, draws):
    wavelet, square, absolute = losses(
        batch,
        draws,
        Wavelet(),
        SnrHuberWavelet(c_min=1e3, c_max=1e3),
        SnrHuberWavelet(c_min=1e-4, c_max=1e-4),
    )
    torch.testing.assert_close(square.parts["huber"], wavelet.per_sample() / 2, rtol=1e-4, atol=0)
    assert (absolute.parts["huber"] < 1e-3 * wavelet.per_sample()).all()
    weight = SnrHuberWavelet().weight(batch().sigma)
    torch.testing.assert_close(square.per_sample(), weight * square.parts["huber"])


def test_its_gradient_is_that_of_its_definition_and_survives_tiny_errors(batch, draws, model):
    scale, samples = torch.tensor(1e-4, requires_grad=True), batch()

    def nearly(noisy, sigma, condition):
        return (noisy - samples.data) / sigma.view(-1, 1, 1, 1) + scale

    loss = SnrHuberWavelet()
    found = loss(model(nearly), samples, draws()).per_sample()
    (gradient,) = torch.autograd.grad(found.sum(), scale)
    # an error of `scale` everywhere is sigma * scale in the data, of which the low band holds all: twice, in
    # one band of four
    sigma = samples.sigma.double()
    r = 2 * sigma * 1e-4
    c = loss.threshold(sigma)
    expected = loss.weight(sigma) * 2 * sigma * r / torch.sqrt(1 + (r / c) ** 2) / 4
    assert gradient.item() == pytest.approx(expected.sum().item(), rel=1e-2)


def test_thresholds_in_the_wrong_order_are_refused():
    with pytest.raises(ValueError, match="c_min must not be more than c_max"):
        SnrHuberWavelet(c_min=2)
