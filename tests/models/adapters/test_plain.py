import math

import pytest
import torch

from uhr.base.errors import UserError
from uhr.models import zoo
from uhr.models.adapters.merging import merge
from uhr.models.adapters.plain import ADAPTER, LoraSpec, add_lora, lora_state
from uhr.models.adapters.scales import set_scales

TARGETS = zoo.get("tiny-flux1").lora_target_sets["attention"]


def randomise(parameters, seed=1):
    """Give B something to say: a fresh adapter does nothing."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in parameters:
            parameter.copy_(torch.randn(parameter.shape, generator=draw) * 0.2)


def dense_deltas(transformer, lora, scale=1.0):
    """(alpha / rank) B A of every module, by hand."""
    state = lora_state(transformer)
    paths = {key.partition(".lora_")[0] for key in state}
    return {
        path: scale * lora.alpha / lora.rank
        * state[f"{path}.lora_B.weight"] @ state[f"{path}.lora_A.weight"]
        for path in paths
    }  # fmt: skip


def test_a_fresh_adapter_leaves_the_output_bitwise_alone(transformer, inputs):
    with torch.no_grad():
        before = transformer(**inputs)[0]
        add_lora(transformer, LoraSpec(4, TARGETS), seed=0)
        assert torch.equal(transformer(**inputs)[0], before)


def test_only_the_adapter_is_trainable_and_it_is_float32_on_a_bfloat16_backbone(tiny_flux):
    model = zoo.load_transformer(tiny_flux, dtype="bfloat16")
    own = add_lora(model, LoraSpec(4, TARGETS), seed=0)
    assert {id(p) for p in own} == {id(p) for p in model.parameters() if p.requires_grad}
    assert {p.dtype for p in own} == {torch.float32}
    assert model.x_embedder.weight.dtype == torch.bfloat16


def test_initial_weights_come_from_the_seed_alone(tiny_flux):
    states = []
    for seed, noise in ((0, 1), (0, 2), (5, 1)):
        model = zoo.load_transformer(tiny_flux)
        torch.manual_seed(noise)
        add_lora(model, LoraSpec(8, TARGETS), seed=seed)
        states.append(lora_state(model))
    first, again, other = states
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["transformer_blocks.0.attn.to_q.lora_A.weight"],
                           other["transformer_blocks.0.attn.to_q.lora_A.weight"])  # fmt: skip
    a = torch.cat([t.flatten() for key, t in first.items() if "lora_A" in key])
    assert a.std().item() == pytest.approx(1 / 8, rel=0.05)
    assert all(not t.any() for key, t in first.items() if "lora_B" in key)


def test_adding_one_leaves_torchs_random_state_alone(transformer):
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    add_lora(transformer, LoraSpec(4, TARGETS), seed=0)
    assert torch.equal(torch.rand(4), expected)


def test_flux_dev_has_190_adapted_linears_with_18677760_parameters_at_rank_16():
    from diffusers import FluxTransformer2DModel

    with torch.device("meta"):
        model = FluxTransformer2DModel(guidance_embeds=True)
    own = add_lora(model, LoraSpec(16, zoo.get("flux1-dev").lora_target_sets["attention"]), seed=0)
    assert len(own) == 2 * 190
    assert sum(p.numel() for p in own) == 18_677_760


def test_the_larger_target_set_reaches_text_stream_and_feed_forwards_but_no_projection_of_single_blocks(
    transformer,
):
    targets = zoo.get("flux1-dev").lora_target_sets["all-linear"]
    add_lora(transformer, LoraSpec(4, targets), seed=0)
    adapted = {key.partition(".lora_")[0] for key in lora_state(transformer)}
    assert len(adapted) == 2 * 12 + 2 * 3
    assert "transformer_blocks.0.ff_context.net.2" in adapted
    assert not any("proj_mlp" in path or "proj_out" in path or "norm" in path for path in adapted)


def test_a_target_that_matches_nothing_is_an_error(transformer):
    with pytest.raises(UserError, match="to_queue"):
        add_lora(transformer, LoraSpec(4, ("to_q", "to_queue")), seed=0)


@pytest.mark.parametrize("alpha", [4.0, 1.0, 32.0])
def test_merging_adds_alpha_over_rank_b_a_and_unmerging_restores_every_bit(transformer, inputs, alpha):
    lora = LoraSpec(4, TARGETS, alpha=alpha)
    before = {name: p.clone() for name, p in transformer.named_parameters()}
    randomise(add_lora(transformer, lora, seed=0))
    deltas = dense_deltas(transformer, lora)
    with torch.no_grad():
        unmerged = transformer(**inputs)[0]
        merged = merge(transformer)
        inside = transformer(**inputs)[0]
    torch.testing.assert_close(inside, unmerged, atol=1e-4, rtol=1e-4)
    for path, delta in deltas.items():
        weight = transformer.get_submodule(path).get_base_layer().weight
        torch.testing.assert_close(weight, before[f"{path}.weight"] + delta, atol=1e-6, rtol=1e-6)
    merged.unmerge()
    for path in deltas:
        assert torch.equal(transformer.get_submodule(path).get_base_layer().weight, before[f"{path}.weight"])
    with torch.no_grad():
        assert torch.equal(transformer(**inputs)[0], unmerged)


def test_a_merge_in_bfloat16_is_rounded_once_and_restored_bitwise(tiny_flux):
    model = zoo.load_transformer(tiny_flux, dtype="bfloat16")
    lora = LoraSpec(4, TARGETS)
    former = model.transformer_blocks[0].attn.to_q.weight.clone()
    randomise(add_lora(model, lora, seed=0))
    delta = dense_deltas(model, lora)["transformer_blocks.0.attn.to_q"]
    merged = merge(model)
    base = model.transformer_blocks[0].attn.to_q.get_base_layer().weight
    assert torch.equal(base, (former.float() + delta).bfloat16())
    merged.unmerge()
    assert torch.equal(base, former)


def test_scale_multiplies_what_was_trained_and_zero_is_off(transformer, inputs):
    lora = LoraSpec(4, TARGETS, alpha=8)
    with torch.no_grad():
        plain = transformer(**inputs)[0]
        randomise(add_lora(transformer, lora, seed=0))
        full = transformer(**inputs)[0]
        set_scales(transformer, {ADAPTER: 0.0})
        assert torch.equal(transformer(**inputs)[0], plain)
        set_scales(transformer, {ADAPTER: 1.0})
        assert torch.equal(transformer(**inputs)[0], full)
    module = transformer.transformer_blocks[0].attn.to_q
    set_scales(transformer, {ADAPTER: 0.5})
    assert math.isclose(module.scaling[ADAPTER], 0.5 * lora.scale)


def test_a_trained_step_changes_the_adapter_and_nothing_else(transformer, inputs):
    frozen = {name: p.clone() for name, p in transformer.named_parameters()}
    own = add_lora(transformer, LoraSpec(4, TARGETS), seed=0)
    optimiser = torch.optim.SGD(own, lr=0.1)
    transformer(**inputs)[0].square().mean().backward()
    optimiser.step()
    now = dict(transformer.named_parameters())
    for name, tensor in frozen.items():
        module, _, leaf = name.rpartition(".")
        kept = now.get(name, now.get(f"{module}.base_layer.{leaf}"))
        assert torch.equal(kept, tensor), name
    assert any(p.abs().sum() > 0 for name, p in now.items() if "lora_B" in name)
