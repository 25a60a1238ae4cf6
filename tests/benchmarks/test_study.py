"""The study in a short form: what holds after some hundred steps, and the arithmetic of its tables."""

import pytest
import torch

from benchmarks.study import components, detail, guidance, textures
from benchmarks.study.field import NULL, PlaneField, Points
from benchmarks.study.training import interval
from uhr.train.objectives.draws import Draws
from uhr.train.objectives.flow import Flow


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def test_the_known_velocity_is_the_mean_of_noise_minus_data_near_a_place():
    """By Monte Carlo: E[e - x | x_sigma near a point]."""
    field, generator = PlaneField(), torch.Generator().manual_seed(0)
    points = Points.draw(field, 2_000_000, generator)
    sigma = torch.full_like(points.sigma, 0.5)
    noisy = 0.5 * points.data + 0.5 * points.noise
    for place in ([0.2, 0.1], [-0.4, 0.5]):
        centre = torch.tensor(place)
        for labels in (points.labels, torch.full_like(points.labels, NULL)):
            near = ((noisy - centre).abs() < 0.05).all(1) & ((labels == NULL) | (labels == 1))
            measured = (points.noise - points.data)[near].mean(0)
            label = labels[near][:1]
            found = field.velocity(centre[None], sigma[:1], label)[0]
            # some thousand samples of spread about 1
            torch.testing.assert_close(found, measured, atol=0.06, rtol=0)


def test_guidance_one_is_the_conditional_field_and_guidance_zero_the_unconditional():
    field, points = PlaneField(), Points.draw(PlaneField(), 50, torch.Generator().manual_seed(1))
    given = points.noisy, points.sigma, points.labels
    torch.testing.assert_close(field.guided(*given, torch.ones(50)), field.velocity(*given))
    null = field.velocity(points.noisy, points.sigma, torch.full_like(points.labels, NULL))
    torch.testing.assert_close(field.guided(*given, torch.zeros(50)), null)


def test_reverse_distillation_begins_to_recover_the_field_in_a_few_hundred_steps():
    found = guidance.recovery(250, seed=0)
    assert found.ratio > 1.3
    assert found.recovered < 0.4


def test_flow_matching_at_the_distilled_guidance_drifts_and_at_one_it_does_not():
    found = guidance.drift(250, seed=0)
    assert found.tuned_at_baked > 2 * found.tuned_at_one


def test_detail_is_measured_in_the_high_bands_and_classes_in_the_low():
    samples = textures.batch(64, torch.Generator().manual_seed(0), detail=1.0)
    plain = textures.batch(64, torch.Generator().manual_seed(0), detail=0.0)
    assert torch.equal(samples.noise, plain.noise)
    low, *high = (band.square().mean() for band in detail.haar(samples.data - plain.data))
    assert sum(high) > 2 * low


def test_wrong_classes_are_as_frequent_as_requested_and_change_nothing_else():
    right, wrong = (textures.batch(4000, torch.Generator().manual_seed(3), wrong=share) for share in (0, 0.5))
    assert torch.equal(right.data, wrong.data)
    differ = (right.condition.texts["pooled"] != wrong.condition.texts["pooled"]).any(1).float().mean()
    assert differ == pytest.approx(0.5 * 5 / 6, abs=0.03)


def test_a_transformer_learns_the_textures():
    model = textures.transformer(0)
    before, denoiser = textures.held_out(model, 0.5, 64), textures.denoiser(model)
    optimiser, generator = torch.optim.Adam(model.parameters(), 3e-3), torch.Generator().manual_seed(0)
    for _ in range(25):
        optimiser.zero_grad()
        Flow()(denoiser, textures.batch(8, generator), Draws(0, 0, range(8))).per_sample().mean().backward()
        optimiser.step()
    assert textures.held_out(model, 0.5, 64) < 0.9 * before


def test_every_seed_is_adapted_at_the_rate_that_is_best_on_the_first(monkeypatch):
    tried = []

    def adapted(base, part, wrong, steps, seed, rate):
        tried.append((base, wrong, seed, rate))
        return components.Adapted(abs(rate - components.RATES[1 if seed == 0 else 2]), 0.0, rate)

    monkeypatch.setattr(components, "adapted", adapted)
    found = components.over_seeds({0: "a", 1: "b", 2: "c"}, components.PARTS["LoRA"], 0.5, 10)
    low, best, high = components.RATES
    expected = [("a", 0.5, 0, rate) for rate in (low, best, high)]
    assert tried == [*expected, ("b", 0.5, 1, best), ("c", 0.5, 2, best)]
    assert [each.rate for each in found] == [best] * 3


def test_an_interval_is_that_of_students_t():
    assert interval([3.0]) == "3"
    assert interval([1.0, 2.0, 3.0]) == "2 ± 2.5"


def test_a_part_that_is_run_alone_leaves_the_other_sections_as_they_are(tmp_path):
    from benchmarks.study.__main__ import PARTS, RESULTS, Row, _section, write_section

    kept = RESULTS.read_text(encoding="utf-8")
    file = tmp_path / "study.md"
    file.write_text(kept, encoding="utf-8")
    title, other = PARTS["recovery"][0], PARTS["drift"][0]
    write_section(file, title, _section([Row("a", "1", True)], 2))
    changed = file.read_text(encoding="utf-8")
    assert changed.partition(f"## {other}")[2] == kept.partition(f"## {other}")[2]
    assert "| a | 1 | yes |" in changed
    assert "8.16" not in changed
    write_section(file, title, kept.partition(f"## {title}")[2].partition("## ")[0])
    assert file.read_text(encoding="utf-8") == kept
