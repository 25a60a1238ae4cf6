"""The guide's cached keys and values: when they agree with the joint run, and when they are made anew."""

import pytest
import torch

from uhr.base.errors import UserError
from uhr.models.attention.call import AttentionCalls, Windows
from uhr.models.attention.guide import Guide
from uhr.models.attention.layout import WindowLayout
from uhr.models.attention.window_rules import WindowRules
from uhr.models.surgery.base import temporarily

LAYOUT = WindowLayout(8, 8, window=4, ratio=4)
NO_TEXT = WindowRules(guide_to_text=False)


@pytest.fixture
def listening(transformer):
    with temporarily(transformer, AttentionCalls()), torch.no_grad():
        yield transformer


@pytest.fixture
def guide_latents(inputs):
    shape = (2, LAYOUT.guide_tokens, inputs["hidden_states"].shape[2])
    return torch.randn(shape, generator=torch.Generator().manual_seed(5))


def run(model, inputs, windows, **changes):
    return model(**{**inputs, **changes}, joint_attention_kwargs={"attention": windows})[0]


class Runs:
    """Counts how often guide tokens go into a model."""

    def __init__(self, model):
        self.count = 0
        model.x_embedder.register_forward_hook(self)

    def __call__(self, module, args, output):
        self.count += args[0].shape[1] == LAYOUT.guide_tokens


def steps(inputs):
    """Three steps of a sampler: other noise, other time."""
    draw = torch.Generator().manual_seed(7)
    for sigma in (0.9, 0.5, 0.1):
        noise = torch.randn(inputs["hidden_states"].shape, generator=draw)
        yield {"hidden_states": noise, "timestep": torch.full((2,), sigma)}


def test_without_text_a_cached_guide_agrees_at_every_step_and_runs_once(listening, inputs, guide_latents):
    runs = Runs(listening)
    cached = Windows(LAYOUT, NO_TEXT, Guide(guide_latents, cached=True))
    for step in steps(inputs):
        exact = run(listening, inputs, Windows(LAYOUT, NO_TEXT, Guide(guide_latents)), **step)
        assert torch.equal(run(listening, inputs, cached, **step), exact)
    assert runs.count == 3 + 1


def test_with_text_a_cached_guide_has_seen_the_text_of_the_step_it_was_stored_at(
    listening, inputs, guide_latents
):
    cached = Windows(LAYOUT, guide=Guide(guide_latents, cached=True))
    first, second, third = steps(inputs)

    def exact(step):
        return run(listening, inputs, Windows(LAYOUT, guide=Guide(guide_latents)), **step)

    assert torch.equal(run(listening, inputs, cached, **first), exact(first))
    assert torch.equal(run(listening, inputs, cached, **first), exact(first))
    late = (run(listening, inputs, cached, **second) - exact(second)).abs().max()
    assert 0 < late < 0.1 * exact(second).abs().max()
    cached.guide.cache.clear()
    assert torch.equal(run(listening, inputs, cached, **third), exact(third))


@pytest.mark.parametrize("name", ["encoder_hidden_states", "pooled_projections", "guidance", "img_ids"])
def test_a_cache_is_made_anew_when_what_it_was_made_from_changes(listening, inputs, guide_latents, name):
    runs = Runs(listening)
    cached = Windows(LAYOUT, guide=Guide(guide_latents, cached=True))
    given = {**inputs, name: inputs[name].clone()}
    run(listening, given, cached)
    run(listening, {**given, name: given[name].clone()}, cached)
    assert runs.count == 1, "equal values are the same text"
    given[name].mul_(2.0)
    changed = run(listening, given, cached)
    assert runs.count == 2, "a tensor written into is another text"
    assert torch.equal(changed, run(listening, given, Windows(LAYOUT, guide=Guide(guide_latents))))


def test_a_cache_that_a_broken_call_left_half_full_is_made_anew(listening, inputs, guide_latents):
    cached = Windows(LAYOUT, guide=Guide(guide_latents, cached=True))
    last = listening.single_transformer_blocks[-1]

    def stop(module, args, kwargs):
        raise KeyboardInterrupt

    hook = last.register_forward_pre_hook(stop, with_kwargs=True)
    with pytest.raises(KeyboardInterrupt):
        run(listening, inputs, cached)
    hook.remove()
    assert cached.guide.cache.layers
    exact = run(listening, inputs, Windows(LAYOUT, guide=Guide(guide_latents)))
    assert torch.equal(run(listening, inputs, cached), exact)


def test_a_cache_notices_another_guide(listening, inputs, guide_latents):
    runs = Runs(listening)
    guide = Guide(guide_latents.clone(), cached=True)
    run(listening, inputs, Windows(LAYOUT, guide=guide))
    guide.latents.add_(1.0)
    out = run(listening, inputs, Windows(LAYOUT, guide=guide))
    assert runs.count == 2
    assert torch.equal(out, run(listening, inputs, Windows(LAYOUT, guide=Guide(guide.latents))))


def test_a_cache_notices_weights_adapters_and_their_scales(listening, inputs, guide_latents):
    from peft import LoraConfig

    runs = Runs(listening)
    cached = Windows(LAYOUT, guide=Guide(guide_latents, cached=True))
    runs_per_call = []

    def made_anew() -> bool:
        before = runs.count
        run(listening, inputs, cached)
        runs_per_call.append(runs.count - before)
        return runs_per_call[-1] == 1

    assert made_anew()
    assert not made_anew()
    listening.x_embedder.bias.add_(0.1)
    assert made_anew()
    listening.add_adapter(LoraConfig(r=2, target_modules=["to_k"]), adapter_name="style")
    assert made_anew()
    assert not made_anew()
    next(p for name, p in listening.named_parameters() if "lora_B" in name).add_(0.1)
    assert made_anew()
    listening.set_adapters("style", 0.5)
    assert made_anew()
    listening.disable_adapters()
    assert made_anew()
    assert not made_anew()


def test_a_cached_guide_under_gradients_is_refused(transformer, inputs, guide_latents):
    with temporarily(transformer, AttentionCalls()), pytest.raises(UserError, match="cached=False"):
        run(transformer, inputs, Windows(LAYOUT, guide=Guide(guide_latents, cached=True)))


def test_a_guide_of_another_size_is_refused(listening, inputs, guide_latents):
    with pytest.raises(AssertionError, match="guide"):
        run(listening, inputs, Windows(LAYOUT, guide=Guide(guide_latents[:, 1:])))


def test_the_guide_is_at_timestep_0_whatever_the_image_s_is(listening, inputs, guide_latents):
    seen = []
    hook = listening.time_text_embed.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    run(listening, inputs, Windows(LAYOUT, guide=Guide(guide_latents)))
    hook.remove()
    image, guide = seen
    assert torch.allclose(image, inputs["timestep"] * 1000)
    assert torch.equal(guide, torch.zeros(2))
