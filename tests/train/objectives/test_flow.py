import pytest
import torch

from uhr.base.errors import UserError
from uhr.train.objectives import objective_class
from uhr.train.objectives.base import Batch
from uhr.train.objectives.draws import Draws
from uhr.train.objectives.flow import Flow
from uhr.train.timesteps import Timesteps

B, C, SIDE = 3, 16, 64


def batch(latents: torch.Tensor) -> Batch:
    texts = {"t5": torch.zeros(B, 2, 4), "pooled": torch.zeros(B, 4)}
    return Batch(latents, texts, tuple("abc"))


def flow(**timesteps) -> Flow:
    return Flow(Timesteps(density="uniform", **timesteps))


def test_the_true_velocity_has_no_loss():
    data = torch.randn(B, C, SIDE, SIDE, generator=torch.Generator().manual_seed(0))

    def oracle(noisy, sigma, texts):
        # noisy = data + sigma (noise - data)
        return (noisy - data) / sigma.view(-1, 1, 1, 1)

    loss = flow()(oracle, batch(data), Draws(0, 5, range(B)))
    assert loss.per_sample.shape == (B,)
    assert loss.per_sample.max() < 1e-9


def test_a_linear_model_has_its_closed_form_loss_and_gradient():
    # data = c everywhere and v = a x_sigma: the error is (a s - 1) e + (a (1 - s) + 1) c, and E e^2 = 1
    c, a = 0.7, torch.tensor(0.4, requires_grad=True)
    loss = flow()(
        lambda noisy, sigma, texts: a * noisy, batch(torch.full((B, C, 256, 256), c)), Draws(1, 0, range(B))
    )
    s = loss.sigma
    value = (a * s - 1) ** 2 + (a * (1 - s) + 1) ** 2 * c**2
    slope = 2 * s * (a * s - 1) + 2 * (1 - s) * (a * (1 - s) + 1) * c**2
    # a million values of e: means are off by about 1e-3
    torch.testing.assert_close(loss.per_sample, value, rtol=0.01, atol=0)
    (gradient,) = torch.autograd.grad(loss.per_sample.mean(), a)
    torch.testing.assert_close(gradient, slope.mean().detach(), rtol=0.02, atol=0.005)


def test_sigma_one_shows_the_model_pure_noise_and_sigma_zero_pure_data():
    data = torch.full((B, C, SIDE, SIDE), 5.0)
    seen = {}

    def spy(noisy, sigma, texts):
        seen["mean"], seen["sigma"] = noisy.mean(dim=(1, 2, 3)), sigma
        return noisy

    flow(shift=100)(spy, batch(data), Draws(0, 0, range(B)))
    torch.testing.assert_close(seen["mean"], (1 - seen["sigma"]) * 5.0, atol=0.02, rtol=0)


def test_the_loss_is_float32_when_the_model_answers_in_bfloat16():
    loss = flow()(
        lambda noisy, sigma, texts: noisy.bfloat16(), batch(torch.ones(B, C, 8, 8)), Draws(0, 0, range(B))
    )
    assert loss.per_sample.dtype == torch.float32


def test_the_same_draws_give_the_same_loss_and_a_sample_does_not_see_its_neighbours():
    data = torch.randn(B, C, 8, 8, generator=torch.Generator().manual_seed(1))

    def model(noisy, sigma, texts):
        return noisy.tanh() * sigma.view(-1, 1, 1, 1)

    draws = Draws(0, 9, range(B))
    whole = flow()(model, batch(data), draws).per_sample
    alone = [flow()(model, batch(data[i : i + 1]), draws.slice(i, i + 1)).per_sample for i in range(B)]
    torch.testing.assert_close(whole, torch.cat(alone), rtol=1e-6, atol=0)


def test_an_unknown_objective_names_the_known_ones():
    with pytest.raises(UserError, match="unknown objective 'flwo': did you mean flow"):
        objective_class("flwo")
