import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from uhr.base.errors import UserError
from uhr.models import zoo
from uhr.models.ops import flow, latents
from uhr.models.ops.filters import bicubic
from uhr.models.samplers.core.velocities import window_mean
from uhr.models.samplers.euler import EulerPipeline
from uhr.models.samplers.multidiffusion import MultiDiffusion, MultiDiffusionPipeline, windows


@pytest.fixture
def sampler(made):
    return made(MultiDiffusionPipeline)


@pytest.mark.parametrize(("side", "count"), [(128, 1), (256, 9), (384, 25), (512, 49)])
def test_windows_of_the_native_size_half_over_each_other_are_those_of_the_papers(side, count):
    boxes = windows((side, side), 128, 0.5)
    assert len(boxes) == count
    assert all(box.top % 2 == box.left % 2 == 0 for box in boxes)


@given(st.integers(4, 40), st.integers(4, 40), st.floats(0, 0.9))
def test_every_place_is_in_a_window_and_windows_keep_the_packing(rows, columns, overlap):
    seen = torch.zeros(2 * rows, 2 * columns)
    for box in windows((2 * rows, 2 * columns), 16, overlap):
        assert box.top % 2 == box.left % 2 == box.height % 2 == box.width % 2 == 0
        box.crop(seen).add_(1)
    assert seen.min() >= 1


def test_at_the_native_size_it_is_the_plain_sampler(sampler, made, call, seeded):
    more = {**call, "height": 128, "width": 128, "output_type": "latent"}
    found = sampler("x", **more, generator=seeded()).images
    plain = made(EulerPipeline)("x", **more, generator=seeded(), shift="static").images
    assert torch.equal(found, plain)


def test_each_place_is_the_mean_over_its_windows():
    """A field that numbers its calls: the mean of the numbers of the windows that hold a place."""
    calls = []

    def field(z, sigma, step, conditions):
        calls.append(z)
        return torch.full_like(z, float(len(calls)))

    z = torch.randn(1, 2, 24, 16)
    found = window_mean(field, windows((24, 16), 16, 0.5))(z, 0.5, 0, None)
    assert [tuple(part.shape) for part in calls] == [(1, 2, 16, 16)] * 2
    assert torch.equal(found[0, 0, :, 0], torch.tensor([1.0] * 8 + [1.5] * 8 + [2.0] * 8))
    assert torch.equal(calls[1], z[..., 8:, :])


def test_it_takes_the_windows_at_every_step(sampler, call, seeded):
    sampler("x", **call, generator=seeded(), output_type="latent")
    assert sampler.model_calls == 3 * 9
    assert [stage.name for stage in sampler.last_run.stages] == ["256x256"]
    facts = MultiDiffusion().facts_of(zoo.get("flux1-dev"), sampler.Options())
    assert (facts.steps, MultiDiffusion().default_steps(facts)) == (28, 50)


def test_below_full_strength_it_begins_at_the_enlarged_base(sampler, call, seeded, backbone, engine_of):
    sampler("x", **call, strength=0.6, base_steps=2, generator=seeded(), output_type="latent")
    assert [(stage.name, stage.steps) for stage in sampler.last_run.stages] == [("base", 2), ("256x256", 2)]
    backbone(lambda tokens, *_: torch.zeros_like(tokens))
    image = torch.rand(1, 3, 128, 128, generator=seeded(2))
    more = {**call, "num_inference_steps": 4, "strength": 0.5, "image": image}
    found = sampler("x", **more, generator=seeded(), output_type="latent").images
    engine = engine_of(sampler, seeded())
    z = engine.encode(bicubic(2 * image - 1, 256, 256))
    expected = flow.interpolate(z, engine.noise.draw(1, (256, 256)), 0.75)
    torch.testing.assert_close(found, latents.pack(expected), atol=1e-6, rtol=1e-6)


def test_an_image_that_would_not_show_is_rejected(sampler, call):
    with pytest.raises(
        UserError, match=r"at strength 1 all 3 steps are taken, from pure noise.*such as to 0\.7"
    ):
        sampler("x", **call, image=torch.rand(3, 128, 128), strength=1)
    with pytest.raises(UserError, match=r"at strength 0\.8 all 3 steps"):
        sampler("x", **call, strength=0.8)
