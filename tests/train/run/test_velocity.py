"""Training calls a backbone as samplers do, on every family."""

from dataclasses import replace

import pytest
import torch

from uhr.models.families.registry import FAMILIES
from uhr.models.ops.latents import pack, unpack
from uhr.models.samplers import sampler_class
from uhr.models.zoo import load_pipeline
from uhr.train.recipes.base import Guidance
from uhr.train.run.velocity import BackboneVelocity

MODELS = {"flux1": "tiny_flux", "flux2": "tiny_flux2"}
HEIGHT, WIDTH = 8, 12


@pytest.fixture(params=["float32", "bfloat16"])
def dtype(request):
    return request.param


@pytest.fixture(params=FAMILIES)
def pipeline(request, dtype):
    name = request.param
    folder = request.getfixturevalue(MODELS[name])
    loaded = load_pipeline(folder, dtype, pipeline_class=sampler_class("euler", name))
    loaded.set_progress_bar_config(disable=True)
    return loaded


def texts_of(pipeline, count=2, length=16):
    shapes = pipeline.family.text_shapes(pipeline.transformer.config, length)
    draw = torch.Generator().manual_seed(1)
    return {name: torch.randn(count, *shape, generator=draw) for name, shape in shapes.items()}


def guidance_of(pipeline, scale=3.5):
    if pipeline.transformer.config.guidance_embeds:
        return Guidance(kind="embedded", scale=scale)
    return Guidance(kind="none")


def same(one, two):
    """Equal to the last bit, in dtype and shape too."""
    if isinstance(one, torch.Tensor):
        return one.dtype == two.dtype and torch.equal(one, two)
    return one == two


def test_it_is_bitwise_the_call_of_a_sampler(pipeline):
    """Every argument and the answer, with the guidance of the call."""
    calls, texts, guidance = [], texts_of(pipeline), guidance_of(pipeline)
    handle = pipeline.transformer.register_forward_hook(
        lambda _, __, given, answer: calls.append((given, answer[0])), with_kwargs=True
    )
    given = dict(zip(("prompt_embeds", "pooled_prompt_embeds"), texts.values(), strict=False))
    scale = {} if guidance.scale is None else {"guidance_scale": guidance.scale}
    pipeline(**given, **scale, height=64, width=96, num_inference_steps=2, output_type="latent")
    sampled = list(calls)
    velocity = BackboneVelocity(pipeline.family, pipeline.transformer, guidance)
    assert len(sampled) == 2
    for arguments, answer in sampled:
        calls.clear()
        noisy = unpack(arguments["hidden_states"], HEIGHT, WIDTH)
        with torch.no_grad():
            found = velocity(noisy, arguments["timestep"], texts)
        ((trained, _),) = calls
        assert trained.keys() == arguments.keys()
        for name, value in trained.items():
            assert same(value, arguments[name]), name
        assert found.dtype == torch.float32
        assert torch.equal(found, unpack(answer.float(), HEIGHT, WIDTH))
    handle.remove()


@pytest.mark.parametrize("dtype", ["float32"], indirect=True)
def test_guidance_and_texts_are_each_samples_own(pipeline):
    """A batch of two guidances and two prompts is each sample alone."""
    family, transformer, texts = pipeline.family, pipeline.transformer, texts_of(pipeline)
    noisy = torch.randn(2, transformer.config.in_channels // 4, HEIGHT, WIDTH)
    sigma = torch.tensor([0.3, 0.9])
    scales = [guidance_of(pipeline, scale) for scale in (1.0, 8.0)]
    numbers = None if scales[0].scale is None else torch.tensor([each.scale for each in scales])
    condition = family.condition(texts, family.image_ids(HEIGHT // 2, WIDTH // 2), numbers, transformer.dtype)
    with torch.no_grad():
        together = unpack(family.call(transformer, pack(noisy), sigma, condition), HEIGHT, WIDTH)
        alone = [
            BackboneVelocity(family, transformer, scales[i])(
                noisy[i : i + 1], sigma[i : i + 1], {name: each[i : i + 1] for name, each in texts.items()}
            )
            for i in range(2)
        ]
        torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-5)
        if numbers is not None:
            swapped = family.call(
                transformer, pack(noisy), sigma, replace(condition, guidance=numbers.flip(0))
            )
            assert not torch.allclose(unpack(swapped, HEIGHT, WIDTH), together, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", ["float32"], indirect=True)
def test_every_text_tensor_reaches_the_backbone(pipeline):
    texts = texts_of(pipeline)
    velocity = BackboneVelocity(pipeline.family, pipeline.transformer, guidance_of(pipeline))
    noisy, sigma = torch.randn(2, pipeline.transformer.config.in_channels // 4, HEIGHT, WIDTH), torch.ones(2)
    with torch.no_grad():
        plain = velocity(noisy, sigma, texts)
        for name, tensor in texts.items():
            assert not torch.allclose(velocity(noisy, sigma, {**texts, name: tensor.flip(0)}), plain), name
