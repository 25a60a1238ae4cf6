import shutil

import numpy as np
import pytest
import torch

from uhr.base.errors import UserError
from uhr.models import zoo
from uhr.models.ops import latents
from uhr.models.samplers.euler import EulerPipeline
from uhr.models.vae import codec
from uhr.models.vae.f16 import F16

CALL = {"height": 64, "width": 96, "num_inference_steps": 4, "guidance_scale": 3.5, "max_sequence_length": 32}


@pytest.fixture(scope="module")
def euler(tiny_flux):
    pipeline = EulerPipeline.from_pretrained(tiny_flux, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    "more",
    [
        {"prompt": "a red house"},
        {"prompt": ["a red house", "the sea"], "num_images_per_prompt": 2},
        {"prompt": "a", "prompt_2": "b", "negative_prompt": "c", "true_cfg_scale": 3.0},
        {
            "prompt": ["a", "b"],
            "negative_prompt": ["c", "d"],
            "true_cfg_scale": 2.0,
            "num_images_per_prompt": 2,
        },
        {"prompt": "a", "sigmas": [0.9, 0.6, 0.1]},
    ],
    ids=["plain", "batch", "cfg", "cfg-batch", "sigmas"],
)
def test_it_gives_the_latents_of_the_stock_pipeline(euler, stock, more):
    arguments = {**CALL, **more}
    if "sigmas" in more:
        # the stock scheduler shifts the sigmas that it is given: undo that to hand both the same levels
        arguments["sigmas"] = unshift(more["sigmas"], factor=np.exp(stock_mu(stock, tokens=24)))
    theirs = stock(**arguments, generator=seeded(), output_type="latent").images
    ours = euler(**{**CALL, **more}, generator=seeded(), output_type="latent").images
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=2e-5)


def stock_mu(stock, tokens):
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    return calculate_shift(tokens, 256, 4096, 0.5, 1.15)


def unshift(sigmas, factor):
    return [s / (factor - (factor - 1) * s) for s in sigmas]


def test_images_are_those_of_the_stock_pipeline_within_a_level(euler, stock):
    theirs = np.asarray(stock("a red house", **CALL, generator=seeded()).images[0], dtype=int)
    ours = np.asarray(euler("a red house", **CALL, generator=seeded()).images[0], dtype=int)
    assert ours.shape == (64, 96, 3)
    assert np.abs(ours - theirs).max() <= 1


@pytest.mark.parametrize("shift", ["none", "static", "dynamic"])
def test_with_a_straight_field_the_sampler_returns_its_target(euler, backbone, shift):
    target = torch.randn(1, 24, 64, generator=seeded(5))
    backbone(lambda x, sigma, *_: (x - target) / sigma)
    found = euler("x", **CALL, generator=seeded(), shift=shift, output_type="latent").images
    torch.testing.assert_close(found, target, atol=2e-5, rtol=2e-5)


def test_embeddings_may_replace_the_prompt(euler):
    t5, pooled, _ = euler.encode_prompt(["a", "b"], max_sequence_length=32)
    named = euler(
        ["a", "b"], **CALL, num_images_per_prompt=2, generator=seeded(), output_type="latent"
    ).images
    given = euler(
        prompt_embeds=t5, pooled_prompt_embeds=pooled, num_images_per_prompt=2,
        **CALL, generator=seeded(), output_type="latent",
    ).images  # fmt: skip
    torch.testing.assert_close(given, named, atol=1e-5, rtol=1e-5)


def test_one_negative_prompt_serves_a_whole_batch(euler):
    arguments = {**CALL, "generator": None, "output_type": "latent", "true_cfg_scale": 2.0}
    noise = torch.randn(2, 24, 64, generator=seeded())
    one = euler(["a", "b"], negative_prompt="n", latents=noise, **arguments).images
    two = euler(["a", "b"], negative_prompt=["n", "n"], latents=noise, **arguments).images
    torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-5)
    with pytest.raises(UserError, match="3 negative prompts for 2 prompts"):
        euler(["a", "b"], negative_prompt=["n"] * 3, latents=noise, **arguments)


def test_the_step_callback_sees_each_step_and_may_replace_latents(euler):
    seen = []

    def callback(pipeline, step, timestep, tensors):
        assert pipeline is euler
        seen.append((step, round(float(timestep), 3), tuple(tensors["latents"].shape)))
        return {"latents": torch.zeros_like(tensors["latents"])} if step == 3 else {}

    found = euler("x", **CALL, generator=seeded(), callback_on_step_end=callback, output_type="latent").images
    assert [(step, shape) for step, _, shape in seen] == [(i, (1, 24, 64)) for i in range(4)]
    assert [time for _, time, _ in seen] == [round(1000 * s, 3) for s in euler.sigmas[:-1]]
    assert not found.any()


@pytest.mark.parametrize(
    ("kind", "check"),
    [
        ("np", lambda x: x.shape == (2, 64, 96, 3) and 0 <= x.min() <= x.max() <= 1),
        ("pt", lambda x: tuple(x.shape) == (2, 3, 64, 96)),
        ("pil", lambda x: [p.size for p in x] == [(96, 64)] * 2),
        ("latent", lambda x: tuple(x.shape) == (2, 24, 64)),
    ],
)
def test_every_output_type_of_diffusers_comes_out(euler, kind, check):
    arguments = {**CALL, "num_inference_steps": 1}
    assert check(euler(["a", "b"], **arguments, generator=seeded(), output_type=kind).images)
    (images,) = euler(["a", "b"], **arguments, generator=seeded(), output_type=kind, return_dict=False)
    assert check(images)


def test_in_bfloat16_latents_and_ids_stay_float32_and_noise_is_that_of_float32(tiny_flux, engine_of):
    pipeline = EulerPipeline.from_pretrained(tiny_flux, local_files_only=True, torch_dtype=torch.bfloat16)
    pipeline.set_progress_bar_config(disable=True)
    seen = {}
    forward = pipeline.transformer.forward

    def spy(**arguments):
        seen.update(arguments)
        return forward(**arguments)

    pipeline.transformer.forward = spy
    found = pipeline("x", **CALL, generator=seeded(), output_type="latent").images
    assert found.dtype == torch.float32
    assert {seen[name].dtype for name in ("img_ids", "txt_ids", "timestep", "guidance")} == {torch.float32}
    assert {seen[name].dtype for name in ("hidden_states", "encoder_hidden_states")} == {torch.bfloat16}
    noise = engine_of(pipeline, seeded()).noise.draw(1, (64, 96))
    assert torch.equal(noise, torch.randn(1, 16, 8, 12, generator=seeded()))


def test_sizes_follow_the_grid_and_wrong_ones_are_rejected(euler):
    with pytest.raises(
        UserError, match="64x100 cannot be generated: use multiples of 16; nearest 64x96 or 64x112"
    ):
        euler("x", **{**CALL, "height": 100, "width": 64})


def test_guidance_that_is_not_given_is_the_models_cards_and_never_a_guess(euler, monkeypatch):
    from uhr.models.samplers.core.pipelines.base import SamplerPipeline

    arguments = {name: value for name, value in CALL.items() if name != "guidance_scale"}
    found = euler("x", **arguments, generator=seeded(), output_type="latent").images
    assert euler.last_run.plan.guidance == zoo.get("tiny-flux1").guidance_scale == 3.5
    assert torch.equal(found, euler("x", **CALL, generator=seeded(), output_type="latent").images)
    monkeypatch.setattr(SamplerPipeline, "spec", None)
    with pytest.raises(UserError, match="requires a guidance scale, and no spec describes its default"):
        euler("x", **arguments, native_size=128)


def test_a_backbone_without_guidance_takes_none_and_256_text_tokens(tiny_flux):
    from diffusers import FluxTransformer2DModel

    pipeline = EulerPipeline.from_pretrained(tiny_flux, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.transformer = FluxTransformer2DModel.from_config(
        {**pipeline.transformer.config, "guidance_embeds": False}
    )
    arguments = {**CALL, "guidance_scale": None, "max_sequence_length": None, "num_inference_steps": 1}
    seen = []
    forward = pipeline.transformer.forward
    pipeline.transformer.forward = lambda **k: seen.append(k) or forward(**k)
    pipeline("x", **arguments, generator=seeded(), output_type="latent")
    assert seen[0]["guidance"] is None
    assert seen[0]["encoder_hidden_states"].shape[1] == 256
    with pytest.raises(UserError, match="takes none"):
        pipeline("x", **{**arguments, "guidance_scale": 3.5})


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({}, "no prompt is given"),
        ({"prompt": "x", "negative_prompt": "y"}, "no effect at true_cfg_scale 1"),
        ({"prompt": "x", "true_cfg_scale": 3.0}, "requires a negative prompt"),
        ({"prompt": "x", "prompt_embeds": torch.zeros(1, 4, 32)}, "both a prompt and its embeddings"),
        ({"prompt_embeds": torch.zeros(1, 4, 32)}, "only one of the prompt's two embeddings"),
        ({"prompt": "x", "sigmas": [0.5, 0.7]}, "falling"),
        ({"prompt": "x", "sigmas": [1.5, 0.7]}, "falling"),
        ({"prompt": "x", "sigmas": 5}, "'sigmas'"),
        ({"prompt": "x", "sigmas": ["high"]}, "'sigmas'"),
        ({"prompt": "x", "num_inference_steps": 0}, "0 steps"),
        (
            {"prompt": "x", "callback_on_step_end_tensor_inputs": ["latent"]},
            "unknown tensors: latent",
        ),
    ],
)
def test_what_would_be_ignored_or_cannot_be_is_one_clear_line(euler, more, message):
    with pytest.raises(UserError, match=message):
        euler(**{**CALL, **more})


def test_dynamic_shift_is_rejected_above_4096_tokens_and_static_is_not(euler, backbone):
    backbone(lambda x, *_: torch.zeros_like(x))
    arguments = {**CALL, "height": 1040, "width": 1024, "output_type": "latent"}
    with pytest.raises(UserError, match="4160"):
        euler("x", **arguments)
    euler("x", **arguments, shift="static")
    assert euler.sigmas[1] == pytest.approx(3 * 0.75 / (1 + 2 * 0.75))


def test_what_comes_out_is_decoded_by_the_one_decoder(euler):
    tokens = euler("a", **CALL, generator=seeded(), output_type="latent").images
    image = euler("a", **CALL, generator=seeded(), output_type="np").images[0]
    decoded = latents.to_uint8(codec.decode(euler.vae, latents.unpack(tokens, 8, 12)))[0].numpy()
    assert np.array_equal((image * 255).round().astype(np.uint8), decoded)


@pytest.fixture(scope="module")
def f16_folder(tiny_flux, tmp_path_factory):
    """The tiny model with an F16 VAE, as it is published: the same weights and a key of the configuration."""
    folder = tmp_path_factory.mktemp("f16") / "model"
    shutil.copytree(tiny_flux, folder)
    vae = zoo.load_vae(tiny_flux)
    F16().apply(vae)
    vae.save_pretrained(folder / "vae")
    return folder


@pytest.mark.usefixtures("short_prompts")
@pytest.mark.parametrize("sampler", ["euler", "sdedit", "hiflow"])
def test_on_an_f16_vae_the_image_has_the_requested_size(f16_folder, tmp_path, sampler, capsys):
    from PIL import Image

    from uhr.cli import main

    out = tmp_path / "image.png"
    command = ["sample", sampler, "--model", str(f16_folder), "--prompt", "a", "--steps", "4"]
    assert main([*command, "--size", "384x192", "--out", str(out)]) == 0, capsys.readouterr().err
    assert Image.open(out).size == (384, 192)


def test_on_an_f16_vae_sides_are_multiples_of_32_px(f16_folder, tmp_path, capsys):
    from uhr.cli import main

    out = tmp_path / "image.png"
    command = ["sample", "euler", "--model", str(f16_folder), "--prompt", "a", "--steps", "2"]
    assert main([*command, "--size", "80x64", "--out", str(out)]) == 1
    error = capsys.readouterr().err
    assert "80x64 cannot be generated: use multiples of 32; nearest 64x64 or 96x64" in error
    assert not out.exists()
