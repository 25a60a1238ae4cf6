"""What every objective is given, and how its errors become one number per sample."""

import pytest
import torch

from uhr.train.objectives import NAMES, Objective
from uhr.train.objectives.base import Errors, joined
from uhr.train.objectives.distillation import ReverseDistillation
from uhr.train.recipes import resolve

PARAMETERS = {"reverse-distillation": {"even": True}, "snr-huber-wavelet": {"beta": 0.7}}


def objective(kind: str) -> Objective:
    values = {"kind": kind, **PARAMETERS.get(kind, {})}
    return resolve("lora", None, [f"phases.main.objective={values}"]).phases[0].objective


def nonlinear(noisy, sigma, condition):
    """A velocity that reads all of its inputs."""
    text = condition.texts["t5"].view(-1, 1, 1, 1)
    guidance = condition.guidance.view(-1, 1, 1, 1)
    return (0.3 * noisy).tanh() * (1 + sigma.view(-1, 1, 1, 1)) + 0.1 * text + 0.05 * guidance


@pytest.mark.parametrize("kind", NAMES)
def test_the_gradient_is_that_of_finite_differences(kind, batch, draws, model):
    """Of the loss with respect to a scale on the model's output and an offset.

    The losses are quadratic in both, or nearly so, so that central differences are exact at a large step.
    """
    samples, parameters = batch(side=16), torch.tensor([0.9, 0.2])

    def loss(values):
        trained = model(lambda *arguments: values[0] * nonlinear(*arguments) + values[1], nonlinear)
        return objective(kind)(trained, samples, draws()).per_sample().double().sum()

    given = parameters.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(loss(given), given)
    step = 0.02
    for place in range(2):
        shift = torch.zeros(2)
        shift[place] = step
        with torch.no_grad():
            slope = (loss(parameters + shift) - loss(parameters - shift)) / (2 * step)
        assert gradient[place].item() == pytest.approx(slope.item(), rel=2e-3), place
    assert gradient.abs().min() > 1e-3


@pytest.mark.parametrize("kind", NAMES)
def test_a_sample_is_not_influenced_by_its_neighbours(kind, batch, draws, model):
    trained, whole = model(nonlinear, lambda *a: nonlinear(*a).flip(-1)), batch()
    together = objective(kind)(trained, whole, draws()).per_sample()
    alone = [
        objective(kind)(trained, whole.slice(i, i + 1), draws().slice(i, i + 1)).per_sample()
        for i in range(4)
    ]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-5, atol=0)


@pytest.mark.parametrize("kind", NAMES)
def test_errors_are_float32_and_not_negative_when_the_model_answers_in_bfloat16(kind, batch, draws, model):
    errors = objective(kind)(
        model(lambda *a: nonlinear(*a).bfloat16(), lambda *a: nonlinear(*a).flip(-1).bfloat16()),
        batch(),
        draws(),
    )
    assert errors.map.dtype == torch.float32
    assert (errors.map >= 0).all()
    assert errors.per_sample().shape == (4,)


def test_without_a_mask_a_loss_is_the_weighted_mean():
    errors = Errors(torch.tensor([1.0, 3.0]).view(1, 1, 1, 2).expand(2, 5, 1, 2), torch.tensor([1.0, 2.0]))
    assert errors.per_sample().tolist() == [2.0, 4.0]


def test_a_mask_is_a_mean_over_what_it_leaves_whatever_the_rest_is():
    error = torch.rand(2, 3, 8, 8)
    mask = torch.zeros(2, 1, 8, 8)
    mask[:, :, 2:5, 1:7] = 1
    expected = error[:, :, 2:5, 1:7].mean(dim=(1, 2, 3))
    torch.testing.assert_close(Errors(error).per_sample(mask), expected)
    changed = torch.where(mask == 1, error, 1e6)
    torch.testing.assert_close(Errors(changed).per_sample(mask), expected)
    half = 0.5 * mask
    torch.testing.assert_close(Errors(error).per_sample(half), expected)


def test_a_mask_of_ones_is_no_mask_and_one_of_zeros_has_no_loss_and_a_finite_gradient():
    error = torch.rand(2, 3, 8, 8, requires_grad=True)
    errors = Errors(error, torch.tensor([2.0, 0.5]))
    torch.testing.assert_close(errors.per_sample(torch.ones(2, 1, 8, 8)), errors.per_sample())
    nothing = errors.per_sample(torch.zeros(2, 1, 8, 8))
    assert nothing.tolist() == [0, 0]
    (gradient,) = torch.autograd.grad(nothing.sum(), error)
    assert torch.equal(gradient, torch.zeros_like(gradient))


def test_a_mask_of_latents_weights_the_wavelet_bands_that_cover_the_same_place(batch, draws, model):
    """The bands have half the side: a band's value counts as much as the mask covers of its 2x2 latents."""
    mask = torch.zeros(4, 1, 8, 8)
    mask[:, :, :4, :4] = 1
    mask[:, :, 4, :4] = 1  # half of the 2x2 blocks of rows 4 and 5
    errors = objective("wavelet")(model(nonlinear), batch(), draws())
    weights = torch.zeros(4, 1, 4, 4)
    weights[:, :, :2, :2], weights[:, :, 2, :2] = 1, 0.5
    expected = (errors.map * weights).sum((1, 2, 3)) / (weights.sum((1, 2, 3)) * errors.map.shape[1])
    torch.testing.assert_close(errors.per_sample(mask), expected)


def test_conditions_are_cut_joined_and_emptied_with_their_guide(batch):
    condition = batch().condition
    guide = torch.rand(4, 16, 2, 2)
    full = type(condition)(condition.texts, condition.null_texts, condition.guidance, guide)
    halves = joined([full.slice(0, 2), full.slice(2, 4)])
    for name in ("guidance", "guide"):
        assert torch.equal(getattr(halves, name), getattr(full, name))
    assert torch.equal(halves.texts["t5"], full.texts["t5"])
    null = full.null()
    assert torch.equal(null.texts["t5"], torch.zeros(4, 1))
    assert torch.equal(null.guide, guide)
    assert full.with_guidance(3.5).guidance.tolist() == [3.5] * 4
    each = torch.tensor([1.0, 2, 3, 4])
    assert torch.equal(full.with_guidance(each).guidance, each)
    assert torch.equal(full.with_guidance(each).guide, guide)


def test_guidance_must_vary_in_reverse_distillation():
    with pytest.raises(ValueError, match="g must vary"):
        ReverseDistillation(g_min=2, g_max=2)
