from itertools import pairwise

import pytest
import torch

from uhr.base.errors import UserError
from uhr.models import zoo
from uhr.models.ops import flow, latents
from uhr.models.ops.filters import bicubic, butterworth_low_pass, sharpen
from uhr.models.samplers.core.sampler import plan_of_spec
from uhr.models.samplers.core.stages import from_level
from uhr.models.samplers.hiflow import PRESETS, HiFlow, HiFlowOptions, HiFlowPipeline, resolved


@pytest.fixture
def hiflow(made):
    return made(HiFlowPipeline)


def plan(side=4096, spec="flux1-dev", **options):
    return plan_of_spec(HiFlow(), zoo.get(spec), HiFlowOptions(**options), (side, side))


@pytest.mark.parametrize(
    ("preset", "sides", "steps", "starts", "calls"),
    [
        ("paper", [1024, 2048, 3072, 4096], [30, 10, 3, 3], [1, 0.6, 0.25, 0.25], 46),
        ("code", [1024, 2048, 4096], [30, 16, 10], [1, 0.78305, 0.61227], 56),
    ],
)
def test_the_presets_are_the_published_cascades(preset, sides, steps, starts, calls):
    found = plan(preset=preset)
    stages = found.stages
    assert [stage.width for stage in stages] == sides
    assert [stage.steps for stage in stages] == steps
    assert [stage.sigmas[0] for stage in stages] == pytest.approx(starts, abs=1e-5)
    assert found.model_calls == calls


def test_the_codes_grid_is_the_dynamic_one_of_4096_tokens_and_a_static_one_gives_the_papers_tau():
    base, *_ = plan(preset="code").stages
    published = [0.7831, 0.7595, 0.7343, 0.7072, 0.6780, 0.6464, 0.6123, 0.5751]
    published += [0.5345, 0.4901, 0.4412, 0.3871, 0.3270, 0.2598, 0.1841, 0.0982]
    assert base.sigmas[-17:-1] == pytest.approx(published, abs=5.1e-5)
    static = plan(preset="code", shift="static")
    assert [stage.sigmas[0] for stage in static.stages[1:]] == pytest.approx([0.77419, 0.6], abs=1e-5)


def test_all_stages_share_one_schedule():
    for preset in PRESETS:
        base, *stages = plan(preset=preset).stages
        for stage in stages:
            assert stage.sigmas == base.sigmas[-len(stage.sigmas) :]


def test_a_stage_enters_at_the_first_level_that_is_low_enough_and_takes_one_step_at_least():
    assert from_level([1, 0.7, 0.6, 0.3, 0], 0.65) == [0.6, 0.3, 0]
    assert from_level([1, 0.7, 0.6, 0.3, 0], 0.6) == [0.6, 0.3, 0]
    assert from_level([1, 0.9, 0.75, 0.5, 0], 0.3) == [0.5, 0]
    with pytest.raises(UserError, match="start level 0"):
        from_level([1, 0], 0.0)


def test_the_values_that_no_plan_shows_are_the_published_ones():
    paper, code = (resolved(HiFlowOptions(preset=preset)) for preset in ("paper", "code"))
    assert (paper.start_from, paper.cutoff, paper.fade, paper.ring) == ("reference", 0.4, "sigma", "noise")
    assert (paper.direction, paper.acceleration) == ((1.0,), (1.0,))
    assert (code.start_from, code.cutoff, code.fade, code.ring) == ("picture", 0.2, "linear", "zeros")
    assert (code.direction, code.acceleration) == ((1.0, 0.25), (0.5,))


def test_single_values_of_a_preset_can_be_changed_and_the_rest_stays():
    found = resolved(HiFlowOptions(preset="code", cutoff=0.3, cascade=(2, 3, 4)))
    assert (found.cutoff, found.cascade, found.fade) == (0.3, (2, 3, 4), "linear")
    stages = plan(preset="code", cascade=(2, 3, 4)).stages
    assert [stage.guidance for stage in stages] == [3.5, 4.5, 6.0, 6.0]
    assert [stage.steps for stage in stages] == [30, 16, 10, 10]


SHORT = {"swin": False, "toolkit": {"ntk": 1, "proportional": False}, "output_type": "latent"}


def test_a_run_of_two_stages_is_the_papers_equations_by_hand(hiflow, call, seeded, backbone, engine_of):
    """Equations 7, 8 and 13 in velocities, on a field that is a function of its input and level alone."""

    def field(tokens, sigma, *_):
        return 0.3 * tokens + sigma

    backbone(field)
    more = {**call, **SHORT, "num_inference_steps": 8, "starts": (0.8,), "cascade": (2,)}
    found = hiflow("x", **more, generator=seeded()).images

    noise, sigmas = engine_of(hiflow, seeded()).noise, hiflow.last_run.stages[0].sigmas
    x, estimates = noise.draw(1, (128, 128)), []
    for sigma, after in pairwise(sigmas):
        v = field(x, sigma)
        estimates.append(x - sigma * v)
        x = x + (after - sigma) * v
    first = next(i for i, sigma in enumerate(sigmas) if sigma <= 0.8)
    assert first < 6
    references = [bicubic(estimate, 32, 32) for estimate in estimates]
    start = sigmas[first]
    x = flow.interpolate(references[first], noise.draw(1, (256, 256)), start)
    before = before_reference = None
    for i in range(first, 8):
        sigma, weight = sigmas[i], sigmas[i] / start
        data = x - sigma * field(x, sigma)
        data = data + weight * (butterworth_low_pass(references[i], 0.4) - butterworth_low_pass(data, 0.4))
        v, v_reference = (x - data) / sigma, (x - references[i]) / sigma
        if before is not None:
            v = v + weight * (before + v_reference - before_reference - v)
        before, before_reference = v, v_reference
        x = x + (sigmas[i + 1] - sigma) * v
    torch.testing.assert_close(found, latents.pack(x), atol=1e-4, rtol=1e-4)


def test_the_next_stage_follows_raw_estimates_of_the_stage_below_it(
    hiflow, call, seeded, backbone, engine_of
):
    """With full weights the estimate that is followed is the reference itself: were aligned estimates kept,
    the third stage would be the first one enlarged twice."""
    backbone(lambda tokens, sigma, *_: tokens - tokens.mean() + sigma)
    more = {**call, **SHORT, "height": 384, "width": 384, "cascade": (2, 3), "starts": (0.8,)}
    shown = {}

    def callback(pipeline, step, timestep, tensors):
        shown[step] = tensors["latents"]
        return {}

    hiflow("x", **{**more, "num_inference_steps": 2}, generator=seeded(), callback_on_step_end=callback)
    stages = hiflow.last_run.stages
    assert [(stage.width, stage.steps) for stage in stages] == [(128, 2), (256, 1), (384, 1)]
    sigma, noise = stages[1].sigmas[0], engine_of(hiflow, seeded()).noise

    def estimate(z, level):
        v = z - z.mean() + level
        return z - level * v

    base = noise.draw(1, (128, 128))
    z = base + (sigma - 1) * (base - base.mean() + 1)
    reference = bicubic(estimate(z, sigma), 32, 32)
    second = flow.interpolate(reference, noise.draw(1, (256, 256)), sigma)
    aim = bicubic(estimate(second, sigma), 48, 48)
    third = flow.interpolate(aim, noise.draw(1, (384, 384)), sigma)
    data = estimate(third, sigma)
    data = data + butterworth_low_pass(aim - data, 0.4)
    torch.testing.assert_close(shown[3], latents.pack(data), atol=1e-4, rtol=1e-4)


def test_the_code_starts_from_the_sharpened_image_of_the_stage_below(
    hiflow, call, seeded, backbone, engine_of
):
    backbone(lambda tokens, *_: torch.zeros_like(tokens))
    image = torch.rand(1, 3, 128, 128, generator=seeded(2))
    still = {"direction": (0.0,), "acceleration": (0.0,), "starts": (0.5,), "num_inference_steps": 4}
    found = hiflow(
        "x", **{**call, **SHORT, **still}, preset="code", shift="static", image=image, generator=seeded()
    ).images
    engine = engine_of(hiflow, seeded())
    z = engine.encode(sharpen(bicubic(2 * image - 1, 256, 256), 1.0))
    expected = flow.interpolate(z, engine.noise.draw(1, (256, 256)), 0.75)
    torch.testing.assert_close(found, latents.pack(expected), atol=1e-5, rtol=1e-5)


def test_a_given_image_is_the_reference_at_every_step(hiflow, call, seeded, backbone, engine_of):
    """With all of the field's low band replaced and a constant image, the image's mean is what comes."""
    backbone(lambda tokens, *_: torch.zeros_like(tokens))
    image = torch.rand(1, 3, 128, 128, generator=seeded(2))
    found = hiflow("x", **{**call, **SHORT}, image=image, low_pass="haar", generator=seeded()).images
    z = engine_of(hiflow).encode(bicubic(2 * image - 1, 256, 256))
    low = torch.nn.functional.avg_pool2d(latents.unpack(found, 32, 32), 2)
    torch.testing.assert_close(low, torch.nn.functional.avg_pool2d(z, 2), atol=1e-4, rtol=1e-4)
    assert [stage.name for stage in hiflow.last_run.stages] == ["256x256"]


@pytest.mark.parametrize(
    "change",
    [
        {"start_from": "picture"}, {"low_pass": "haar"}, {"cutoff": 0.1}, {"direction": (0.2,)},
        {"acceleration": (0.2,)}, {"fade": "linear"}, {"guidance": (6.0,)}, {"reference": "pixels"},
        {"swin": False}, {"ring": "zeros"}, {"shift": "native"},
    ],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_each_option_acts(hiflow, call, seeded, change):
    more = {**call, "num_inference_steps": 4, "starts": (0.8,), "output_type": "latent"}
    plain, other = (hiflow("x", **more, **extra, generator=seeded()).images for extra in ({}, change))
    assert not torch.allclose(plain, other, atol=1e-4)


def test_the_codes_guidance_rises_stage_by_stage_and_one_number_overrides_it(
    hiflow, call, seeded, backbone_calls
):
    size = {"height": 512, "width": 512, "num_inference_steps": 2}
    more = {**call, **size, "preset": "code", "output_type": "latent"}
    hiflow("x", **more, generator=seeded())
    assert [condition.guidance.item() for condition in backbone_calls] == [3.5, 3.5, 4.5, 4.5, 6.0]
    backbone_calls.clear()
    hiflow("x", **more, guidance_high=5.0, generator=seeded())
    assert [condition.guidance.item() for condition in backbone_calls] == [3.5, 3.5, 5.0, 5.0, 5.0]
