"""Training calls a backbone as samplers do, on every family."""

import pytest
import torch

from uhr.models.families.registry import FAMILIES
from uhr.models.ops.latents import unpack
from uhr.models.samplers import sampler_class
from uhr.models.zoo import load_pipeline
from uhr.train.objectives.base import BatchCondition
from uhr.train.run.denoiser import BackboneDenoiser
from uhr.train.trainable.adapters import Components, Lora

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


LORA = Lora(rank=4, alpha=4, targets=("to_q", "to_k"))


def condition_of(pipeline, texts, *scales):
    """Guidance inputs `scales` (one per sample), for a backbone that has such an input."""
    embedded = pipeline.transformer.config.guidance_embeds
    null = {name: torch.zeros_like(tensor[:1]) for name, tensor in texts.items()}
    return BatchCondition(texts, null, torch.tensor(scales) if embedded else None)


def denoiser_of(pipeline, part=LORA):
    return BackboneDenoiser(pipeline.family, pipeline.transformer, part)


def same(one, two):
    """Equal to the last bit, in dtype and shape too."""
    if isinstance(one, torch.Tensor):
        return one.dtype == two.dtype and torch.equal(one, two)
    return one == two


def test_it_is_bitwise_the_call_of_a_sampler(pipeline):
    """Every argument and the answer, with the guidance of the call."""
    calls, texts = [], texts_of(pipeline)
    handle = pipeline.transformer.register_forward_hook(
        lambda _, __, given, answer: calls.append((given, answer[0])), with_kwargs=True
    )
    given = dict(zip(("prompt_embeds", "pooled_prompt_embeds"), texts.values(), strict=False))
    condition = condition_of(pipeline, texts, 3.5, 3.5)
    scale = {} if condition.guidance is None else {"guidance_scale": 3.5}
    pipeline(**given, **scale, height=64, width=96, num_inference_steps=2, output_type="latent")
    sampled = list(calls)
    denoiser = denoiser_of(pipeline)
    assert len(sampled) == 2
    for arguments, answer in sampled:
        calls.clear()
        noisy = unpack(arguments["hidden_states"], HEIGHT, WIDTH)
        with torch.no_grad():
            found = denoiser.velocity(noisy, arguments["timestep"], condition)
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
    texts, denoiser = texts_of(pipeline), denoiser_of(pipeline)
    noisy = torch.randn(2, pipeline.transformer.config.in_channels // 4, HEIGHT, WIDTH)
    sigma, both = torch.tensor([0.3, 0.9]), condition_of(pipeline, texts, 1.0, 8.0)
    with torch.no_grad():
        together = denoiser.velocity(noisy, sigma, both)
        alone = [
            denoiser.velocity(noisy[i : i + 1], sigma[i : i + 1], both.slice(i, i + 1)) for i in range(2)
        ]
        torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-5)
        if both.guidance is not None:
            swapped = denoiser.velocity(noisy, sigma, both.with_guidance(torch.tensor([8.0, 1.0])))
            assert not torch.allclose(swapped, together, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", ["float32"], indirect=True)
def test_every_text_tensor_reaches_the_backbone(pipeline):
    texts, denoiser = texts_of(pipeline), denoiser_of(pipeline)
    noisy, sigma = torch.randn(2, pipeline.transformer.config.in_channels // 4, HEIGHT, WIDTH), torch.ones(2)
    with torch.no_grad():
        plain = denoiser.velocity(noisy, sigma, condition_of(pipeline, texts, 1.0, 1.0))
        for name, tensor in texts.items():
            other = condition_of(pipeline, {**texts, name: tensor.flip(0)}, 1.0, 1.0)
            assert not torch.allclose(denoiser.velocity(noisy, sigma, other), plain), name


@pytest.mark.parametrize("dtype", ["float32"], indirect=True)
@pytest.mark.parametrize("part", [LORA, Components(rank=4, targets=("to_q", "to_k"))], ids=lambda p: p.kind)
def test_the_teacher_is_the_model_before_training_whatever_was_trained(pipeline, part, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    texts, denoiser = texts_of(pipeline), denoiser_of(pipeline, part)
    condition = condition_of(pipeline, texts, 1.0, 2.0)
    noisy, sigma = torch.randn(2, pipeline.transformer.config.in_channels // 4, HEIGHT, WIDTH), torch.ones(2)
    with torch.no_grad():
        before = denoiser.velocity(noisy, sigma, condition)
        part.prepare(pipeline.transformer, None, seed=0)
        torch.testing.assert_close(denoiser.velocity(noisy, sigma, condition), before)
        for parameter in part.parameters(pipeline.transformer).values():
            parameter.add_(0.1 * torch.randn(parameter.shape))
        assert not torch.allclose(denoiser.velocity(noisy, sigma, condition), before, atol=1e-3)
    # bit for bit, without gradients, and with the part back in place afterwards
    found = denoiser.teacher(noisy, sigma, condition)
    assert torch.equal(found, before)
    assert not found.requires_grad
    after = denoiser.velocity(noisy, sigma, condition)
    assert after.requires_grad
    assert not torch.allclose(after, before, atol=1e-3)
