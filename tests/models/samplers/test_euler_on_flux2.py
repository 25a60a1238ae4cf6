"""Euler on FLUX.2 against the stock Flux2KleinPipeline."""

import numpy as np
import pytest
import torch

from uhr.base.errors import UserError
from uhr.models.ops import latents
from uhr.models.samplers.euler import EulerPipeline, Flux2EulerPipeline

CALL = {"height": 64, "width": 96, "num_inference_steps": 4, "max_sequence_length": 64}


@pytest.fixture(scope="module")
def euler(tiny_flux2):
    pipeline = Flux2EulerPipeline.from_pretrained(tiny_flux2, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def base(euler):
    """The same weights as an undistilled checkpoint, ours and the stock pipeline: guided by two passes."""
    from diffusers import Flux2KleinPipeline

    ours = Flux2EulerPipeline(**euler.components, is_distilled=False)
    theirs = Flux2KleinPipeline(**euler.components, is_distilled=False)
    for pipeline in (ours, theirs):
        pipeline.set_progress_bar_config(disable=True)
    return ours, theirs


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def raw(pipeline, tokens, height=64, width=96):
    """Our tokens as what the stock pipeline hands out as latents: raw, on the VAE's grid."""
    z = latents.unpack(tokens, height // 8, width // 8)
    return latents.normalisation(pipeline.vae).to_raw(z)


@pytest.mark.parametrize(
    "more",
    [
        {"prompt": "a red house"},
        {"prompt": ["a red house", "the sea"], "num_images_per_prompt": 2},
        {"prompt": "a", "num_inference_steps": 7},
        {"prompt": "a", "height": 128, "width": 64},
    ],
    ids=["plain", "batch", "steps", "portrait"],
)
def test_it_gives_the_latents_of_the_stock_pipeline(euler, stock2, more):
    arguments = {**CALL, **more}
    theirs = stock2(**arguments, guidance_scale=1.0, generator=seeded(), output_type="latent").images
    ours = euler(**arguments, generator=seeded(), output_type="latent").images
    found = raw(euler, ours, arguments["height"], arguments["width"])
    # the stock pipeline rounds sigma through 1000 sigma / 1000 in float32
    torch.testing.assert_close(found, theirs, atol=1e-4, rtol=1e-4)


def test_given_latents_and_sigmas_it_gives_the_latents_of_the_stock_pipeline(euler, stock2, monkeypatch):
    sigmas = [0.9, 0.5, 0.2]
    drawn = torch.randn(1, 128, 4, 6, generator=seeded(3))
    # the stock scheduler shifts the sigmas that it is given, by a factor of the tokens
    monkeypatch.setattr(stock2.scheduler, "time_shift", lambda mu, sigma, t: t)
    theirs = stock2(
        prompt="a", latents=drawn, sigmas=sigmas, guidance_scale=1.0, output_type="latent",
        **{**CALL, "num_inference_steps": 3},
    ).images  # fmt: skip
    ours = euler(
        "a", latents=drawn.flatten(2).mT, sigmas=sigmas, output_type="latent", **CALL
    ).images  # fmt: skip
    torch.testing.assert_close(raw(euler, ours), theirs, atol=2e-5, rtol=2e-5)


def test_an_undistilled_checkpoint_is_guided_by_two_passes_as_in_the_stock_pipeline(base):
    ours, theirs = base
    arguments = {**CALL, "prompt": ["a", "b"], "guidance_scale": 4.0, "output_type": "latent"}
    expected = theirs(**arguments, generator=seeded()).images
    found = ours(**arguments, generator=seeded()).images
    assert ours.model_calls == 8
    torch.testing.assert_close(raw(ours, found), expected, atol=5e-5, rtol=5e-5)
    once = ours(**{**arguments, "guidance_scale": 1.0}, generator=seeded()).images
    assert ours.model_calls == 4
    other = ours(**arguments, negative_prompt="a cat", generator=seeded()).images
    assert (found - once).abs().max() > 1e-3 < (found - other).abs().max()


def test_guidance_depends_on_the_kind_of_checkpoint(euler, base):
    undistilled, _ = base
    assert (euler.guidance_kind, undistilled.guidance_kind) == ("none", "cfg")
    with pytest.raises(UserError, match="takes none"):
        euler("x", **CALL, guidance_scale=4.0)
    undistilled("x", **CALL)
    assert undistilled.last_run.plan.guidance == 4.0
    with pytest.raises(UserError, match="no effect at guidance 1"):
        undistilled("x", **CALL, guidance_scale=1.0, negative_prompt="y")
    with pytest.raises(UserError, match="guidance_scale is that scale"):
        undistilled("x", **CALL, guidance_scale=4.0, true_cfg_scale=3.0, negative_prompt="y")


def test_a_distilled_checkpoint_takes_a_negative_prompt_at_a_scale_of_its_own(euler):
    euler("x", **CALL, true_cfg_scale=2.0, negative_prompt="y", generator=seeded())
    assert euler.model_calls == 8


def test_images_are_those_of_the_stock_pipeline_within_a_level(euler, stock2):
    theirs = stock2(prompt="a red house", **CALL, guidance_scale=1.0, generator=seeded()).images[0]
    ours = euler("a red house", **CALL, generator=seeded()).images[0]
    assert np.abs(np.asarray(ours, dtype=int) - np.asarray(theirs, dtype=int)).max() <= 1


@pytest.mark.parametrize("shift", ["none", "static", "dynamic"])
def test_with_a_straight_field_the_sampler_returns_its_target(euler, backbone, shift):
    target = torch.randn(1, 24, 128, generator=seeded(5))
    backbone(lambda x, sigma, *_: (x - target) / sigma)
    found = euler("x", **CALL, generator=seeded(), shift=shift, output_type="latent").images
    torch.testing.assert_close(found, target, atol=2e-5, rtol=2e-5)


def test_in_bfloat16_latents_and_ids_stay_float32_and_noise_is_that_of_float32(tiny_flux2, euler, engine_of):
    pipeline = Flux2EulerPipeline.from_pretrained(
        tiny_flux2, local_files_only=True, torch_dtype=torch.bfloat16
    )
    pipeline.set_progress_bar_config(disable=True)
    seen = {}
    forward = pipeline.transformer.forward

    def spy(**arguments):
        seen.update(arguments)
        return forward(**arguments)

    pipeline.transformer.forward = spy
    found = pipeline("x", **CALL, generator=seeded(), output_type="latent").images
    assert found.dtype == torch.float32
    assert {seen[name].dtype for name in ("img_ids", "txt_ids", "timestep")} == {torch.float32}
    assert {seen[name].dtype for name in ("hidden_states", "encoder_hidden_states")} == {torch.bfloat16}
    ours, theirs = (engine_of(p, seeded()).noise.draw(1, (64, 96)) for p in (pipeline, euler))
    assert torch.equal(ours, theirs)


def test_embeddings_may_replace_the_prompt_and_a_second_prompt_is_rejected(euler):
    text, _ = euler.encode_prompt(["a", "b"], max_sequence_length=64)
    named = euler(["a", "b"], **CALL, generator=seeded(), output_type="latent").images
    given = euler(prompt_embeds=text, **CALL, generator=seeded(), output_type="latent").images
    torch.testing.assert_close(given, named, atol=1e-5, rtol=1e-5)
    for more in ({"prompt_2": "b"}, {"pooled_prompt_embeds": torch.zeros(1, 4)}):
        with pytest.raises(UserError, match="one text encoder"):
            euler("a", **CALL, **more)


def test_dynamic_shift_is_rejected_above_its_calibration_and_static_is_not(euler, backbone):
    backbone(lambda x, *_: torch.zeros_like(x))
    arguments = {**CALL, "height": 1072, "width": 1072, "num_inference_steps": 1, "output_type": "latent"}
    with pytest.raises(UserError, match="calibrated up to 4300 image tokens; this image has 4489"):
        euler("x", **arguments)
    assert euler("x", **arguments, shift="static").images.shape == (1, 4489, 128)


def test_from_pipe_keeps_whether_the_checkpoint_is_distilled(base, stock2):
    assert Flux2EulerPipeline.from_pipe(base[1]).guidance_kind == "cfg"
    made = Flux2EulerPipeline.from_pipe(stock2)
    assert made.guidance_kind == "none"
    assert made.transformer is stock2.transformer


def test_one_samplers_code_runs_on_both_families(euler, tiny_flux):
    first = EulerPipeline.from_pretrained(tiny_flux, local_files_only=True)
    assert type(first).__call__ is type(euler).__call__
    assert [type(p).family.name for p in (first, euler)] == ["flux1", "flux2"]


def test_the_step_callback_sees_each_step_and_may_replace_latents(euler):
    seen = []

    def callback(pipeline, step, timestep, tensors):
        seen.append((step, tuple(tensors["latents"].shape), tuple(tensors["prompt_embeds"].shape)))
        return {"latents": torch.zeros_like(tensors["latents"])} if step == 3 else {}

    found = euler(
        "x", **CALL, generator=seeded(), callback_on_step_end=callback, output_type="latent",
        callback_on_step_end_tensor_inputs=["latents", "prompt_embeds"],
    ).images  # fmt: skip
    assert seen == [(i, (1, 24, 128), (1, 64, 96)) for i in range(4)]
    assert not found.any()


def test_an_image_survives_encoding_as_the_stock_pipeline_does_it(euler, engine_of):
    engine = engine_of(euler)
    images = torch.rand(2, 3, 64, 96, generator=seeded()) * 2 - 1
    theirs = euler._encode_vae_image(images, generator=None)
    torch.testing.assert_close(
        latents.pack(engine.encode(images)), theirs.flatten(2).mT, atol=1e-5, rtol=1e-5
    )
    drawn = engine.encode(images, generator=seeded())
    assert 0 < (drawn - engine.encode(images)).abs().mean() < 0.2


@pytest.mark.usefixtures("short_prompts")
def test_the_command_guides_an_undistilled_checkpoint_by_its_cards_scale(tmp_path, capsys):
    from uhr.cli import main
    from uhr.models import zoo
    from uhr.models.generate.record import read_record

    folder = zoo.make_tiny("tiny-flux2-base", tmp_path / "base")
    call = ["sample", "euler", "--model", str(folder), "--prompt", "a", "--size", "64x64", "--steps", "2"]
    for name, more, calls in (
        ("card", [], 4),
        ("negative", ["--negative", "a cat"], 4),
        ("one", ["--guidance", "1"], 2),
    ):
        out = tmp_path / f"{name}.png"
        assert main([*call, "--device", "cpu", "--out", str(out), *more]) == 0, capsys.readouterr()
        record = read_record(out)
        assert record["model_calls"] == calls
        assert record["guidance"] == (1.0 if name == "one" else 4.0)
    assert "guidance 4" in capsys.readouterr().out
