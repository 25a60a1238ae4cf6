import torch

from uhr.train.objectives.flow import Flow


def test_the_true_velocity_has_no_loss(batch, draws, model):
    samples = batch(step=5)

    def oracle(noisy, sigma, condition):
        # noisy = data + sigma (noise - data)
        return (noisy - samples.data) / sigma.view(-1, 1, 1, 1)

    loss = Flow()(model(oracle), samples, draws(5)).per_sample()
    assert loss.shape == (4,)
    assert loss.max() < 1e-9


def test_a_linear_model_has_its_closed_form_loss_and_gradient(batch, draws, model):
    # data = c everywhere and v = a x_sigma: the error is (a s - 1) e + (a (1 - s) + 1) c, and E e^2 = 1
    c, a = 0.7, torch.tensor(0.4, requires_grad=True)
    samples = batch(torch.full((4, 16, 256, 256), c))
    loss = Flow()(model(lambda noisy, sigma, condition: a * noisy), samples, draws()).per_sample()
    s = samples.sigma
    value = (a * s - 1) ** 2 + (a * (1 - s) + 1) ** 2 * c**2
    slope = 2 * s * (a * s - 1) + 2 * (1 - s) * (a * (1 - s) + 1) * c**2
    # a million values of e: means are off by about 1e-3
    torch.testing.assert_close(loss, value, rtol=0.01, atol=0)
    (gradient,) = torch.autograd.grad(loss.mean(), a)
    torch.testing.assert_close(gradient, slope.mean().detach(), rtol=0.02, atol=0.005)


def test_the_model_is_shown_data_and_noise_in_the_shares_of_sigma(batch, draws, model):
    seen = {}

    def spy(noisy, sigma, condition):
        seen["mean"], seen["sigma"] = noisy.mean(dim=(1, 2, 3)), sigma
        return noisy

    Flow()(model(spy), batch(torch.full((4, 16, 64, 64), 5.0)), draws())
    torch.testing.assert_close(seen["mean"], (1 - seen["sigma"]) * 5.0, atol=0.02, rtol=0)
