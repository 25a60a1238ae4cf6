import pytest
import torch

from uhr.base.errors import UserError
from uhr.models.zoo import get
from uhr.train.objectives.distillation import Distillation, ReverseDistillation


def field(noisy, condition):
    """A velocity field that depends on the prompt."""
    return 0.4 * noisy + condition.texts["t5"].view(-1, 1, 1, 1) * noisy.cos()


def distilled(noisy, sigma, condition):
    """What a guidance-distilled model computes of `field` for the guidance input w = 1 + g."""
    w = condition.guidance.view(-1, 1, 1, 1)
    return w * field(noisy, condition) - (w - 1) * field(noisy, condition.null())


def test_distillation_is_zero_at_the_teacher_and_its_square_distance_elsewhere(batch, draws, model):
    samples = batch()
    same = Distillation()(model(distilled, distilled), samples, draws())
    assert torch.equal(same.map, torch.zeros_like(same.map))
    further = Distillation()(model(lambda *a: distilled(*a) + 0.5, distilled), samples, draws())
    torch.testing.assert_close(further.map, torch.full_like(further.map, 0.25))


def test_distillation_reads_nothing_of_the_data_but_the_noisy_latents(batch, draws, model):
    seen = []

    def spy(noisy, sigma, condition):
        seen.append((noisy, sigma, condition))
        return noisy.sin()

    samples = batch()
    Distillation()(model(spy, spy), samples, draws())
    for noisy, sigma, condition in seen:
        assert torch.equal(noisy, samples.noisy)
        assert torch.equal(sigma, samples.sigma)
        assert condition is samples.condition
    assert len(seen) == 2


@pytest.mark.parametrize("even", [False, True])
def test_reverse_distillation_is_zero_at_the_field_into_which_guidance_was_distilled(
    even, batch, draws, model
):
    samples = batch()
    unguided = model(lambda noisy, sigma, condition: field(noisy, condition), distilled)
    errors = ReverseDistillation(even=even)(unguided, samples, draws())
    assert errors.map.max() < 1e-9
    # and not at the distilled model itself, which has the guidance twice then
    assert ReverseDistillation()(model(distilled, distilled), samples, draws()).map.mean() == pytest.approx(
        0, abs=1e-9
    )


def test_reverse_distillation_has_its_formula_for_g_of_each_sample(batch, draws, model):
    samples, calls = batch(), {}

    def student(noisy, sigma, condition):
        calls["student"] = (noisy, sigma, condition)
        return 0.2 * noisy + condition.texts["t5"].view(-1, 1, 1, 1)

    def teacher(noisy, sigma, condition):
        calls["teacher"] = condition
        return noisy

    errors = ReverseDistillation(g_min=1, g_max=3, embedded=1.0)(model(student, teacher), samples, draws())
    g = 1 + 2 * draws().uniform("guidance").float()
    assert torch.equal(errors.parts["g"], g)
    assert len(set(g.tolist())) == 4
    torch.testing.assert_close(calls["teacher"].guidance, 1 + g)
    noisy, sigma, condition = calls["student"]
    # both passes are one batch: the prompts, then the empty prompt, at one guidance input
    assert torch.equal(noisy, torch.cat([samples.noisy] * 2))
    assert torch.equal(sigma, torch.cat([samples.sigma] * 2))
    assert condition.texts["t5"].flatten().tolist() == [1, 2, 3, 4, 0, 0, 0, 0]
    assert condition.guidance.tolist() == [1.0] * 8
    text, factor = samples.condition.texts["t5"].view(-1, 1, 1, 1), g.view(-1, 1, 1, 1)
    guided = (1 + factor) * (0.2 * samples.noisy + text) - factor * 0.2 * samples.noisy
    torch.testing.assert_close(errors.map, (guided - samples.noisy).square())
    assert errors.weight is None
    even = ReverseDistillation(g_min=1, g_max=3, even=True)(model(student, teacher), samples, draws())
    torch.testing.assert_close(even.weight, 1 / (1 + 2 * g))


def test_gradients_flow_through_both_passes_and_not_into_the_teacher(batch, draws, model):
    values = torch.tensor([0.5, 0.3], requires_grad=True)
    teacher = torch.tensor(2.0, requires_grad=True)

    def student(noisy, sigma, condition):
        prompt = (condition.texts["t5"] > 0).float().view(-1, 1, 1, 1)
        return (prompt * values[0] + (1 - prompt) * values[1]) * noisy

    trained = model(student, lambda noisy, sigma, condition: teacher * noisy)
    loss = ReverseDistillation(g_min=1)(trained, batch(), draws()).per_sample().sum()
    loss.backward()
    assert (values.grad.abs() > 1e-3).all()
    assert values.grad[0] * values.grad[1] < 0
    assert teacher.grad is None


def test_reverse_distillation_refuses_a_model_without_distilled_guidance():
    ReverseDistillation().check(get("flux1-dev"), 1.0)
    for name in ("flux1-schnell", "flux2-klein-base-9b"):
        with pytest.raises(UserError, match=f"{name} has no guidance input: train it by flow matching"):
            ReverseDistillation().check(get(name), None)
    with pytest.raises(UserError, match=r"the recipe trains at guidance 3\.5, and reverse distillation at 1"):
        ReverseDistillation().check(get("flux1-dev"), 3.5)
