import pytest
import torch

from uhr.base.errors import UserError
from uhr.models.ops import flow, latents
from uhr.models.ops.filters import bicubic, lanczos
from uhr.models.samplers.core.engine import Engine
from uhr.models.samplers.core.stages import after_strength
from uhr.models.samplers.sdedit import SDEditPipeline

SHORT = {"strength": 0.5, "base_steps": 2, "num_inference_steps": 4}


@pytest.fixture
def sdedit(made):
    return made(SDEditPipeline)


@pytest.fixture
def still(sdedit, backbone):
    """SDEdit on a field that does not move: a stage ends where it began."""
    backbone(lambda tokens, *_: torch.zeros_like(tokens))
    return sdedit


def test_strength_counts_steps_and_the_shifted_level_is_the_true_one():
    levels = [3 * (1 - i / 10) / (1 + 2 * (1 - i / 10)) for i in range(11)]
    assert after_strength(levels, 0.7)[0] == pytest.approx(0.875)
    assert len(after_strength(levels, 0.7)) == 8


@pytest.mark.parametrize("steps", [4, 20, 28, 30, 50])
@pytest.mark.parametrize("strength", [0.05, 0.3, 0.35, 0.6, 0.7, 1.0])
def test_as_many_steps_are_taken_as_diffusers_takes(steps, strength):
    start = int(max(steps - min(steps * strength, steps), 0))
    expected = min(start, steps - 1)
    if abs(steps * strength - round(steps * strength)) < 1e-9:
        expected = steps - round(steps * strength)
    assert len(after_strength([1 - i / steps for i in range(steps + 1)], strength)) - 1 == steps - expected


@pytest.mark.parametrize("strength", [0.0, -0.5, 1.0, 1.2])
def test_a_strength_that_is_invalid_is_one_clear_line(sdedit, call, strength):
    with pytest.raises(UserError, match="strength"):
        sdedit("x", **call, strength=strength)
    if strength != 1:
        with pytest.raises(UserError, match="strength"):
            after_strength([1.0, 0.5, 0.0], strength)


def begun(engine, image, level):
    """Tokens of an image's latents at a noise level, by the noise of the engine's generator."""
    return latents.pack(flow.interpolate(engine.encode(image), engine.noise.draw(1, (256, 256)), level))


def test_an_image_is_enlarged_in_pixels_encoded_and_noised_to_the_first_level(still, call, seeded, engine_of):
    image = torch.rand(1, 3, 128, 128, generator=seeded(2))
    found = still("x", image=image, **{**call, **SHORT}, generator=seeded(), output_type="latent").images
    expected = begun(engine_of(still, seeded()), bicubic(2 * image - 1, 256, 256), 0.75)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
    assert [stage.sigmas for stage in still.last_run.stages] == [pytest.approx((0.75, 0.5, 0.0))]


def test_it_may_be_enlarged_by_lanczos_in_place_of_bicubic(still, call, seeded, engine_of):
    image = torch.rand(1, 3, 128, 128, generator=seeded(2))
    arguments = {**call, **SHORT, "image": image, "output_type": "latent"}
    found = still("x", **arguments, enlargement="lanczos", generator=seeded()).images
    expected = begun(engine_of(still, seeded()), lanczos(2 * image - 1, 256, 256), 0.75)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
    assert still.details()["settings"]["enlargement"] == "lanczos"
    assert not torch.allclose(found, still("x", **arguments, generator=seeded()).images, atol=1e-3)
    with pytest.raises(UserError, match="enlargement"):
        still("x", **arguments, enlargement="nearest")


def test_from_a_prompt_the_base_pass_is_that_image(sdedit, call, seeded, engine_of, monkeypatch):
    seen = []
    encode = Engine.encode
    monkeypatch.setattr(Engine, "encode", lambda engine, p, *a: seen.append(p) or encode(engine, p, *a))
    output = sdedit("x", **{**call, **SHORT}, generator=seeded(), return_stages=True, output_type="latent")
    (base,) = output.stages
    enlarged = bicubic(engine_of(sdedit).decode(latents.unpack(base, 16, 16)), 256, 256)
    torch.testing.assert_close(seen[0], enlarged)
    assert [stage.name for stage in sdedit.last_run.stages] == ["base", "256x256"]


def test_the_base_takes_the_cards_steps_and_schedule_unless_set(sdedit, call, seeded):
    sdedit("x", **{**call, "num_inference_steps": 4}, strength=0.5, generator=seeded(), output_type="latent")
    base, edit = sdedit.last_run.stages
    assert (base.steps, edit.steps) == (28, 2)
    assert base.sigmas == pytest.approx(sdedit.facts.schedule(28, 64))
    assert sdedit.model_calls == 30


def test_by_default_it_takes_clears_twenty_steps_at_strength_seven_tenths(sdedit, call, seeded):
    more = {**call, "num_inference_steps": None}
    sdedit("x", image=torch.rand(3, 128, 128), **more, generator=seeded(), output_type="latent")
    assert sdedit.model_calls == 14
    assert sdedit.last_run.stages[0].sigmas[0] == pytest.approx(0.875)


def test_a_path_that_would_begin_at_pure_noise_is_rejected(sdedit, call):
    with pytest.raises(UserError, match=r"at strength 0\.7 all 3 steps are taken, from pure noise"):
        sdedit("x", **call, strength=0.7)


def test_the_image_may_already_have_the_targets_size(still, call, seeded, engine_of):
    image = torch.rand(1, 3, 256, 256, generator=seeded(2))
    found = still("x", image=image, **{**call, **SHORT}, generator=seeded(), output_type="latent").images
    expected = begun(engine_of(still, seeded()), 2 * image - 1, 0.75)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
