import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from uhr.base.errors import UserError
from uhr.models import zoo
from uhr.models.ops import flow, latents
from uhr.models.ops.filters import bicubic, gaussian_blur
from uhr.models.samplers.core.sampler import plan_of_spec
from uhr.models.samplers.demofusion import (
    DemoFusion,
    DemoFusionOptions,
    DemoFusionPipeline,
    jittered,
    restandardised,
)
from uhr.models.samplers.multidiffusion import windows


@pytest.fixture
def sampler(made):
    return made(DemoFusionPipeline)


def plan(spec, side, **options):
    return plan_of_spec(DemoFusion(), zoo.get(spec), DemoFusionOptions(**options), (side, side))


def test_stages_grow_by_one_base_at_a_time_and_4k_takes_the_counted_calls():
    found = plan("flux1-dev", 4096)
    assert [(stage.name, stage.width, stage.calls_per_step) for stage in found.stages] == [
        ("base", 1024, 1),
        ("2048x2048", 2048, 9 + 4),
        ("3072x3072", 3072, 25 + 9),
        ("4096x4096", 4096, 49 + 16),
    ]
    assert all(stage.steps == 50 for stage in found.stages)
    assert found.model_calls == 5650


def test_a_size_that_is_no_whole_number_of_bases_names_the_nearest():
    with pytest.raises(UserError, match="nearest 4096x4096 or 4160x4160"):
        plan("flux1-dev", 4112)


@given(st.integers(0, 10**6))
def test_jittered_windows_cover_the_image_and_stay_within_the_ring(seed):
    draw, seen = torch.Generator().manual_seed(seed), torch.zeros(48, 80)
    for box in windows((48, 80), 32, 0.5):
        moved = jittered(box, 48, 80, 4, draw)
        assert 0 <= moved.top <= moved.bottom <= 48 + 8
        assert 0 <= moved.left <= moved.right <= 80 + 8
        assert abs(moved.top - 4 - box.top) <= 4
        assert moved.top % 2 == moved.left % 2 == 0
        top, left = max(moved.top - 4, 0), max(moved.left - 4, 0)
        seen[top : moved.bottom - 4, left : moved.right - 4] += 1
    assert seen.min() >= 1


def test_restandardised_has_the_others_mean_and_deviation_image_by_image():
    x, like = torch.randn(2, 3, 4, 4), 5 + 2 * torch.randn(2, 3, 4, 4)
    found = restandardised(x, like)
    for one, other in zip(found, like, strict=True):
        torch.testing.assert_close(one.mean(), other.mean())
        torch.testing.assert_close(one.std(correction=0), other.std(correction=0))


def test_a_step_is_the_four_rules_by_hand(sampler, call, seeded, backbone, engine_of):
    """One step at 2x on a field that is a function of its input alone, without jitter: residual, windows,
    blurred sub-grids, mix."""
    backbone(lambda tokens, *_: 0.3 * tokens + 0.1)
    image = torch.rand(1, 3, 128, 128, generator=seeded(2))
    seen = []

    def callback(pipeline, step, timestep, tensors):
        seen.append(latents.unpack(tensors["latents"], 32, 32))
        return {}

    sampler(
        "x", **call, image=image, jitter=False, generator=seeded(), callback_on_step_end=callback,
        output_type="latent",
    )  # fmt: skip
    sigmas, engine = sampler.last_run.stages[0].sigmas, engine_of(sampler, seeded())
    noise = engine.noise.draw(1, (256, 256))
    data = bicubic(engine.encode(2 * image - 1), 32, 32)
    x = noise
    for step in range(2):
        sigma, after = sigmas[step], sigmas[step + 1]
        c = 0.5 * (1 + math.cos(math.pi * (1 - sigma)))
        z = (1 - c**3) * x + c**3 * flow.interpolate(data, noise, sigma)
        blurred = restandardised(gaussian_blur(z, 0.99 * c + 0.01, 1), z)
        v = (1 - c) * (0.3 * z + 0.1) + c * (0.3 * blurred + 0.1)
        x = z + (after - sigma) * v
        torch.testing.assert_close(seen[step], x, atol=1e-5, rtol=1e-5)


def test_the_first_step_is_all_global_and_the_images_deviation_is_the_bases(sampler, call, seeded):
    output = sampler("x", **call, generator=seeded(), output_type="latent", return_stages=True)
    base, final = (latents.unpack(t, s, s) for t, s in ((output.stages[0], 16), (output.images, 32)))
    torch.testing.assert_close(final.std(correction=0), base.std(correction=0))
    torch.testing.assert_close(final.mean(), base.mean())


def test_where_windows_move_is_the_jitter_seeds_alone(sampler, call, seeded, backbone):
    # what a window gives depends on what else is in it
    backbone(lambda tokens, *_: tokens - tokens.mean())

    def sample(**more):
        return sampler("x", **call, generator=seeded(), output_type="latent", **more).images

    assert torch.equal(sample(), sample())
    assert not torch.equal(sample(), sample(jitter_seed=1))
    assert not torch.equal(sample(), sample(jitter=False))
    assert not torch.equal(sample(), sample(ring="zeros"))
