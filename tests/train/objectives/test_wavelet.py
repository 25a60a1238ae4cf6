import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from uhr.train.objectives import objective_class
from uhr.train.objectives.base import Batch
from uhr.train.objectives.draws import Draws
from uhr.train.objectives.flow import Flow
from uhr.train.objectives.wavelet import SnrHuberWavelet, Wavelet
from uhr.train.timesteps import Timesteps

B, C, SIDE = 4, 16, 8
UNIFORM = Timesteps(density="uniform")


def batch(seed=0):
    texts = {"t5": torch.zeros(B, 2, 4), "pooled": torch.zeros(B, 4)}
    data = torch.randn(B, C, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))
    return Batch(data, texts, tuple("abcd"))


def model(noisy, sigma, texts):
    return noisy.tanh() * (1 + sigma.view(-1, 1, 1, 1))


def losses(*objectives, model=model, step=0):
    return [each(model, batch(), Draws(0, step, range(B))) for each in objectives]


@given(st.integers(0, 1000))
def test_the_wavelet_loss_is_flow_matching_times_the_square_of_the_level(step):
    flow, wavelet = losses(Flow(UNIFORM), Wavelet(UNIFORM), step=step)
    assert torch.equal(flow.sigma, wavelet.sigma)
    torch.testing.assert_close(wavelet.per_sample, flow.sigma**2 * flow.per_sample, rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", ["wavelet", "snr-huber-wavelet"])
def test_the_true_velocity_has_no_loss(name):
    data = batch().latents

    def oracle(noisy, sigma, texts):
        return (noisy - data) / sigma.view(-1, 1, 1, 1)

    (loss,) = losses(objective_class(name)(UNIFORM), model=oracle)
    assert loss.per_sample.shape == (B,)
    assert loss.per_sample.max() < 1e-9


def test_the_weight_breaks_at_the_known_level_and_is_one_from_there_on():
    loss = SnrHuberWavelet(UNIFORM)
    sigma = torch.linspace(0.002, 0.998, 999, dtype=torch.float64)
    expected = (math.sqrt(5) * sigma / (1 - sigma)).clamp(max=1)
    torch.testing.assert_close(loss.weight(sigma), expected)
    assert loss.weight(torch.tensor([0.0, 1.0])).isfinite().all()


def test_the_threshold_goes_from_one_at_low_noise_to_a_fifth_at_pure_noise():
    loss = SnrHuberWavelet(UNIFORM)
    sigma = torch.linspace(0, 1, 101)
    found = loss.threshold(sigma)
    assert found[0] == 1
    assert (found.diff() <= 0).all()
    assert found[-1] == pytest.approx(0.2, abs=1e-3)
    # where the signal-to-noise ratio is gamma
    assert loss.threshold(torch.tensor(1 / (1 + math.sqrt(5)) + 1e-6)) == pytest.approx(1, abs=1e-4)


def test_a_high_threshold_makes_it_the_square_and_a_low_one_the_absolute_error():
    wavelet, square, absolute = losses(
        Wavelet(UNIFORM),
        SnrHuberWavelet(UNIFORM, c_min=1e3, c_max=1e3),
        SnrHuberWavelet(UNIFORM, c_min=1e-4, c_max=1e-4),
    )
    torch.testing.assert_close(square.parts["huber"], wavelet.per_sample / 2, rtol=1e-4, atol=0)
    assert (absolute.parts["huber"] < 1e-3 * wavelet.per_sample).all()
    torch.testing.assert_close(
        square.per_sample, SnrHuberWavelet(UNIFORM).weight(square.sigma) * square.parts["huber"]
    )


def test_its_gradient_is_that_of_its_definition_and_survives_tiny_errors():
    scale = torch.tensor(1e-4, requires_grad=True)
    data = batch().latents

    def nearly(noisy, sigma, texts):
        return (noisy - data) / sigma.view(-1, 1, 1, 1) + scale

    loss = SnrHuberWavelet(UNIFORM)
    (found,) = losses(loss, model=nearly)
    (gradient,) = torch.autograd.grad(found.per_sample.sum(), scale)
    # an error of `scale` everywhere is sigma * scale in the data, of which the low band holds all: twice, in
    # one band of four
    r = 2 * found.sigma.double() * 1e-4
    c = loss.threshold(found.sigma.double())
    expected = loss.weight(found.sigma.double()) * 2 * found.sigma * r / torch.sqrt(1 + (r / c) ** 2) / 4
    assert gradient.item() == pytest.approx(expected.sum().item(), rel=1e-2)
