"""UltraGen's training: the guide reaches the model, its LoRA acts on guide tokens alone."""

import pytest
import torch

from uhr.models.adapters import peft_layers
from uhr.models.adapters.plain import ADAPTER
from uhr.models.families.flux1 import Flux1
from uhr.models.ops.latents import pack, unpack
from uhr.models.samplers import sampler_class
from uhr.models.surgery.base import temporarily
from uhr.models.surgery.rope import RopeNtk
from uhr.models.zoo import get, load_pipeline
from uhr.train.objectives.base import BatchCondition
from uhr.train.objectives.draws import Draws
from uhr.train.recipes import recipe, resolve
from uhr.train.run.denoiser import BackboneDenoiser
from uhr.train.run.job import start
from uhr.train.run.trainer import Trainer

GUIDE_TOKENS, IMAGE_TOKENS = 4, 64


@pytest.fixture
def trainer(encoded, tiny_flux, tmp_path):
    """`trainer(*sets)`: a trainer whose adapter already does something."""
    number = iter(range(9))

    def make(*sets):
        sets = ["runtime.precision=float32", "batch.size=2", "batch.micro=2", *sets]
        job = start(resolve("ultragen", None, sets), str(tiny_flux), [encoded], tmp_path / f"{next(number)}")
        made = Trainer(job)
        draw = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for parameter in made.state.parameters.values():
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=draw))
        return made

    return make


def loss_of(trainer, count=2):
    use = trainer.phase(0).uses[0]
    draws = Draws(5, 0, range(count))
    batch = use.batch(use.data.read(0, range(count)), draws)
    return batch, use.loss(trainer.model.network, batch, draws)[0].mean()


def gradients(trainer):
    _, loss = loss_of(trainer)
    loss.backward()
    # nothing reads what the last layer makes of guide tokens, so that it has no gradient
    return {
        name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for name, p in trainer.state.parameters.items()
    }


def test_the_guide_is_the_stored_one_drawn_anew_and_normalised(trainer):
    made = trainer()
    batch, _ = loss_of(made)
    use = made.phase(0).uses[0]
    mean, std = use.data.read(0, range(2)).guide
    draws = Draws(5, 0, range(2))
    drawn = mean + std * draws.normal("guide", mean.shape[1:])
    geometry = use.data.info.geometry
    torch.testing.assert_close(batch.condition.guide, (drawn - geometry.shift) * geometry.scale)
    assert batch.condition.guide.shape[-2:] == tuple(side // 4 for side in batch.data.shape[-2:])
    exact, _ = loss_of(trainer("latents=mean"))
    torch.testing.assert_close(exact.condition.guide, (mean - geometry.shift) * geometry.scale)


def test_image_and_text_rows_are_those_of_the_base_bit_for_bit(trainer, short_texts):
    made = trainer("runtime.gradient_checkpointing=false")
    calls = []

    def watch(layer, arguments, output):
        with torch.no_grad():
            calls.append((arguments[0].shape[1], output, layer.get_base_layer()(arguments[0])))

    layers = peft_layers.layers_of(made.model.module, ADAPTER)
    assert len(layers) == 4 * 3
    hooks = [layer.register_forward_hook(watch) for layer in layers.values()]
    loss_of(made)
    for hook in hooks:
        hook.remove()
    guide = [entry for entry in calls if entry[0] == GUIDE_TOKENS]
    others = [entry for entry in calls if entry[0] != GUIDE_TOKENS]
    assert len(guide) == len(others) == len(layers)
    assert {tokens for tokens, *_ in others} == {IMAGE_TOKENS, short_texts.LENGTH + IMAGE_TOKENS}
    assert all(torch.equal(output, base) for _, output, base in others)
    assert all(((output - base).abs().amax(-1) > 1e-4).all() for _, output, base in guide)


def test_gradients_come_through_guide_tokens_alone(trainer):
    made = trainer("runtime.gradient_checkpointing=false")
    seen, layers = {}, peft_layers.layers_of(made.model.module, ADAPTER)

    def keep(path):
        def watch(layer, arguments, output):
            if arguments[0].shape[1] == GUIDE_TOKENS:
                output.retain_grad()
                seen[path] = (arguments[0], output)

        return watch

    hooks = [layer.register_forward_hook(keep(path)) for path, layer in layers.items()]
    found = gradients(made)
    for hook in hooks:
        hook.remove()
    assert seen.keys() == layers.keys()
    moved = 0
    for path, (given, output) in seen.items():
        a = made.state.parameters[f"{path}.lora_A.weight"]
        b = made.state.parameters[f"{path}.lora_B.weight"]
        back = torch.zeros_like(output) if output.grad is None else output.grad
        expected_b = torch.einsum("bto,btr->or", back, given @ a.T)
        expected_a = torch.einsum("btr,bti->ri", back @ b, given)
        torch.testing.assert_close(found[f"{path}.lora_B.weight"], expected_b, rtol=1e-4, atol=1e-7)
        torch.testing.assert_close(found[f"{path}.lora_A.weight"], expected_a, rtol=1e-4, atol=1e-7)
        moved += bool(back.abs().max() > 0)
    assert moved >= len(layers) - 1


def test_gradient_checkpointing_gives_the_same_gradients(trainer):
    plain = gradients(trainer("runtime.gradient_checkpointing=false"))
    checkpointed = gradients(trainer("runtime.gradient_checkpointing=true"))
    assert plain.keys() == checkpointed.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, rtol=1e-5, atol=1e-8)
    assert max(gradient.abs().max() for gradient in plain.values()) > 1e-4


def test_a_call_in_training_is_the_samplers_with_the_guide_in_every_call(tiny_flux, monkeypatch):
    pipeline = load_pipeline(tiny_flux, "float32", pipeline_class=sampler_class("ultragen", "flux1"))
    pipeline.set_progress_bar_config(disable=True)
    spec, config = get("tiny-flux1"), recipe("ultragen")
    part = config.trainable
    transformer = pipeline.transformer
    part.prepare(transformer, spec, seed=0)
    draw = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in part.parameters(transformer).values():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=draw))
    calls, real = [], Flux1.call

    def watch(self, transformer, tokens, sigma, condition, attention=None):
        found = real(self, transformer, tokens, sigma, condition, attention)
        if condition.attention is not None:
            calls.append((tokens.clone(), sigma.clone(), condition, found.clone()))
        return found

    monkeypatch.setattr(Flux1, "call", watch)
    size = {"height": 128, "width": 256}
    settings = {"num_inference_steps": 4, "base_steps": 1, "skip": 2, "cached": False}
    generator = torch.Generator().manual_seed(0)
    pipeline("a lake", **size, **settings, output_type="latent", generator=generator)
    monkeypatch.undo()
    assert len(calls) == 2
    from uhr.models.attention.call import AttentionCalls

    windows = config.attention(spec)
    denoiser = BackboneDenoiser(Flux1(), transformer, part, windows)
    with temporarily(transformer, AttentionCalls(), RopeNtk(factor=10.0)):
        for tokens, sigma, condition, expected in calls:
            guide = condition.attention.guide
            assert guide is not None
            texts = {"t5": condition.text, "pooled": condition.pooled}
            given = BatchCondition(texts, texts, condition.guidance, unpack(guide.latents, 4, 8))
            with torch.no_grad():
                found = denoiser.velocity(unpack(tokens, 16, 32), sigma, given)
            assert torch.equal(pack(found), expected)
            other = BatchCondition(texts, texts, condition.guidance, torch.zeros(1, 16, 4, 8))
            with torch.no_grad():
                assert not torch.allclose(
                    denoiser.velocity(unpack(tokens, 16, 32), sigma, other), found, atol=1e-3
                )


def test_data_without_the_guide_or_with_other_sizes_are_refused(small_set, tiny_flux, encoded, tmp_path):
    from uhr.base.errors import UserError

    with pytest.raises(UserError, match=r"has no guide, and the recipe's windows read one of 1/4: encode"):
        start(recipe("ultragen"), str(tiny_flux), [small_set.folder], tmp_path / "run")
    six = resolve("ultragen", None, ["windows.window=12"])
    with pytest.raises(
        UserError, match=r"images of 128x128 px, and windows of 12 tokens need multiples of 192 px"
    ):
        start(six, str(tiny_flux), [encoded], tmp_path / "run")
    with pytest.raises(UserError, match=r"and there is no guide: --set windows=\{ratio: 4\}"):
        resolve("ultragen", None, ["windows=null"]).check(get("flux1-dev"))
    with pytest.raises(UserError, match=r"windowed attention .* is not sharpened"):
        resolve("ultragen", None, ["proportional=true"]).check(get("flux1-dev"))


def test_an_adapter_for_guide_tokens_is_refused_for_a_sampler_without_them():
    from uhr.base.errors import UserError

    spec = get("flux1-dev")
    part = ["trainable={kind: token-masked-lora, rank: 4, alpha: 4, targets: qkv}", "windows={ratio: 4}"]
    with pytest.raises(UserError, match=r"sampler euler has none, .*: --set sampling\.sampler=ultragen"):
        resolve("lora", None, part).check(spec)
    resolve("lora", None, [*part, "sampling.sampler=ultragen"]).check(spec)
