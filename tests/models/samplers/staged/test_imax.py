import pytest
import torch

from uhr.base.errors import UserError
from uhr.models import zoo
from uhr.models.ops import latents
from uhr.models.ops.filters import bicubic, haar_low_pass
from uhr.models.ops.projection import cosine_weight, project, velocity_towards
from uhr.models.samplers.core.engine import Engine
from uhr.models.samplers.core.sampler import plan_of_spec
from uhr.models.samplers.imax import IMax, IMaxOptions, IMaxPipeline, shifted_low_pass


@pytest.fixture
def imax(made):
    return made(IMaxPipeline)


def plan(side=4096, **options):
    return plan_of_spec(IMax(), zoo.get("flux1-dev"), IMaxOptions(**options), (side, side))


def test_the_plan_is_the_published_one():
    base, high = plan().stages
    assert ((base.width, base.steps), (high.width, high.steps)) == ((1024, 30), (4096, 30))
    assert base.sigmas[1] == pytest.approx(3 * (29 / 30) / (1 + 2 * 29 / 30))
    assert high.sigmas[1] == pytest.approx(6 * (29 / 30) / (1 + 5 * 29 / 30))
    assert plan().model_calls == 60
    assert (base.guidance, high.guidance) == (3.5, 7)


def test_a_size_that_needs_no_enlargement_is_rejected(imax, call):
    with pytest.raises(UserError, match="size 128x128 is not above the native 128x128"):
        imax("x", **{**call, "height": 128, "width": 128})


@pytest.mark.parametrize("swin", [False, True])
def test_every_step_is_projected_towards_the_enlarged_base(imax, call, seeded, backbone, engine_of, swin):
    """By hand, for a field that is a function of each place alone; with swin the low-pass filter's blocks
    move at even steps."""
    backbone(lambda tokens, *_: 0.3 * tokens + 0.1)
    image = torch.rand(1, 3, 128, 128, generator=seeded(2))
    for kind in ("cosine_decay", "cosine_shift", "constant"):
        found = imax(
            "x", **call, image=image, swin=swin, sample=False, projection=kind, generator=seeded(),
            output_type="latent",
        ).images  # fmt: skip
        sigmas, engine = imax.last_run.stages[0].sigmas, engine_of(imax, seeded())
        reference = engine.encode(bicubic(2 * image - 1, 256, 256))
        x = engine.noise.draw(1, (256, 256))
        for i in range(3):
            v, towards = 0.3 * x + 0.1, velocity_towards(x, reference, sigmas[i])
            low_pass = shifted_low_pass if swin and i in (0, 2) else haar_low_pass
            found_v = project(v, towards, cosine_weight(i, 3), kind_of(kind), low_pass)
            x = x + (sigmas[i + 1] - sigmas[i]) * found_v
        torch.testing.assert_close(found, latents.pack(x), atol=1e-4, rtol=1e-4)


def kind_of(name):
    from uhr.models.ops.projection import Projection

    return Projection(name)


def test_the_reference_is_a_sample_of_the_posterior_unless_set(imax, call, seeded, monkeypatch):
    given = []
    encode = Engine.encode
    monkeypatch.setattr(Engine, "encode", lambda engine, p, g=None: given.append(g) or encode(engine, p, g))
    draw = seeded()
    imax("x", **call, generator=draw, output_type="latent")
    imax("x", **call, generator=draw, sample=False, output_type="latent")
    assert given == [draw, None]


def test_guidance_above_the_base_is_seven_by_default(imax, call, seeded, backbone_calls):
    imax("x", **call, generator=seeded(), output_type="latent")
    imax("x", **call, guidance_high=5, generator=seeded(), output_type="latent")
    found = [condition.guidance.item() for condition in backbone_calls]
    assert found == [3.5] * 3 + [7] * 3 + [3.5] * 3 + [5] * 3


def test_swin_calls_the_backbone_on_one_more_row_and_column_at_even_steps(imax, call, seeded, backbone_calls):
    imax("x", **call, image=torch.rand(3, 128, 128), generator=seeded(), output_type="latent")
    seen = [condition.image_ids.shape[0] for condition in backbone_calls]
    assert seen == [17 * 17, 16 * 16, 17 * 17]


def test_the_shifted_low_pass_is_the_plain_one_of_the_shifted_image():
    x = torch.randn(1, 2, 8, 10)
    torch.testing.assert_close(shifted_low_pass(x)[..., 1:-1, 1:-1], haar_low_pass(x[..., 1:-1, 1:-1]))
    constant = torch.full((1, 1, 6, 6), 3.0)
    torch.testing.assert_close(shifted_low_pass(constant), constant)
