"""URAE's singular components in the difference form, on the tiny model and at FLUX.1-dev's real shape."""

import copy

import pytest
import torch
import torch.nn.functional as F

from uhr.base.errors import UserError
from uhr.models import zoo
from uhr.models.adapters import components, peft_layers
from uhr.models.adapters.components import Factors, decompose
from uhr.models.adapters.conversion import lora_of, lora_of_state
from uhr.models.adapters.low_rank import LowRank
from uhr.models.adapters.merging import merge
from uhr.models.adapters.minor import MinorSpec, add_minor, difference, load_minor
from uhr.models.adapters.plain import ADAPTER, LoraSpec, add_lora, lora_state

TARGETS = zoo.get("tiny-flux1").lora_target_sets["attention"]
SPEC = MinorSpec(4, TARGETS)
Q = "transformer_blocks.0.attn.to_q"


def move(parameters, by=0.2, seed=1):
    """Change every parameter, as training does."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in parameters:
            parameter += by * torch.randn(parameter.shape, generator=draw)


def call(model, inputs):
    with torch.no_grad():
        return model(**inputs)[0]


def weights(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("components", ["minor", "major"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_fresh_adapter_leaves_the_output_bitwise_alone(tiny_flux, inputs, dtype, components):
    model = zoo.load_transformer(tiny_flux, dtype=dtype)
    given = {
        key: value.to(model.dtype) if torch.is_tensor(value) and "ids" not in key else value
        for key, value in inputs.items()
    }
    before = call(model, given)
    add_minor(model, MinorSpec(4, TARGETS, components), None)
    assert torch.equal(call(model, given), before)


def test_flux_dev_has_190_adapted_linears_with_18677760_parameters_at_rank_16(flux_dev):
    own = add_minor(flux_dev, MinorSpec(16, zoo.get("flux1-dev").lora_target_sets["attention"]), None)
    assert len(peft_layers.layers_of(flux_dev, ADAPTER)) == 190
    assert sum(parameter.numel() for parameter in own) == 18_677_760


def test_each_linear_computes_the_difference_form(transformer):
    move(add_minor(transformer, SPEC, None))
    x = torch.randn(2, 5, 64)
    layers = peft_layers.layers_of(transformer, ADAPTER)
    assert layers
    for path, layer in layers.items():
        layer.set_scale(ADAPTER, 0.7)
        base = layer.get_base_layer()
        start = decompose(base.weight.detach(), 4, "minor")
        a, b = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
        expected = base(x) + 0.7 * ((x @ a.T) @ b.T - (x @ start.a.T) @ start.b.T)
        torch.testing.assert_close(layer(x), expected, msg=path)


def test_only_the_two_trained_factors_get_gradients_and_the_weight_is_never_touched(transformer, inputs):
    frozen = weights(transformer)
    own = add_minor(transformer, SPEC, None)
    assert {id(p) for p in own} == {id(p) for p in transformer.parameters() if p.requires_grad}
    assert {p.dtype for p in own} == {torch.float32}
    optimiser = torch.optim.SGD(own, lr=0.1)
    starts = {name: buffer.clone() for name, buffer in transformer.named_buffers() if "start" in name}
    transformer(**inputs)[0].square().mean().backward()
    assert all(parameter.grad.any() for parameter in own)  # a LoRA's A has none at first: its B is zero
    optimiser.step()
    now = transformer.state_dict()
    for name, tensor in frozen.items():
        module, _, leaf = name.rpartition(".")
        assert torch.equal(now.get(name, now.get(f"{module}.base_layer.{leaf}")), tensor), name
    assert len(starts) == 2 * len(peft_layers.layers_of(transformer, ADAPTER))
    assert all(
        torch.equal(dict(transformer.named_buffers())[name], tensor) for name, tensor in starts.items()
    )


def test_a_bfloat16_residual_undoes_the_removal_which_is_why_the_weight_stays():
    """The minor part is below half a unit in the last place of most entries of a bfloat16 weight, so that
    bf16(W - b a) is nearly W again, and the official form then counts b a twice."""
    side, rank = 512, 16
    draw = torch.Generator().manual_seed(0)
    u, _ = torch.linalg.qr(torch.randn(side, side, generator=draw))
    v, _ = torch.linalg.qr(torch.randn(side, side, generator=draw))
    spectrum = torch.linspace(0, 1, side).flip(0).square() * 4 + 1e-3  # a few strong, a long weak tail
    w = ((u * spectrum) @ v.T).bfloat16()
    minor = decompose(w, rank, "minor")
    part = minor.b @ minor.a
    official = (w.float() - part).bfloat16().float() + part - w.float()
    assert official.norm() > 0.9 * part.norm()
    x = torch.randn(8, side, generator=draw)
    exact = F.linear(F.linear(x, minor.a), minor.b) - F.linear(F.linear(x, minor.a), minor.b)
    assert not exact.any()


def test_scale_zero_and_disabling_are_the_backbone(transformer, inputs):
    plain = call(transformer, inputs)
    move(add_minor(transformer, SPEC, None))
    full = call(transformer, inputs)
    assert not torch.equal(full, plain)
    transformer.set_adapters([ADAPTER], [0.0])
    assert torch.equal(call(transformer, inputs), plain)
    transformer.set_adapters([ADAPTER], [1.0])
    assert torch.equal(call(transformer, inputs), full)
    transformer.disable_lora()
    assert torch.equal(call(transformer, inputs), plain)
    transformer.enable_lora()
    assert torch.equal(call(transformer, inputs), full)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_merging_adds_the_difference_rounded_once_and_unmerging_restores_every_bit(tiny_flux, dtype):
    model = zoo.load_transformer(tiny_flux, dtype=dtype)
    former = model.get_submodule(Q).weight.detach().clone()
    move(add_minor(model, SPEC, None))
    layer = model.get_submodule(Q)
    a, b = layer.lora_A[ADAPTER], layer.lora_B[ADAPTER]
    delta = (b.weight @ a.weight - b.start @ a.start).detach()
    merged = merge(model)
    assert torch.equal(layer.get_base_layer().weight, (former.float() + delta).to(former.dtype))
    merged.unmerge()
    assert torch.equal(layer.get_base_layer().weight, former)


def test_merging_a_fresh_adapter_changes_no_bit(transformer):
    former = transformer.get_submodule(Q).weight.detach().clone()
    add_minor(transformer, SPEC, None)
    merge(transformer)
    assert torch.equal(transformer.get_submodule(Q).get_base_layer().weight, former)


def test_a_merged_model_computes_what_the_adapter_beside_it_does(transformer, inputs):
    move(add_minor(transformer, SPEC, None))
    unmerged = call(transformer, inputs)
    merged = merge(transformer)
    torch.testing.assert_close(call(transformer, inputs), unmerged, rtol=1e-4, atol=1e-4)
    merged.unmerge()
    assert torch.equal(call(transformer, inputs), unmerged)


def test_diffusers_own_fusing_knows_the_difference_too(transformer, inputs):
    move(add_minor(transformer, SPEC, None))
    unmerged = call(transformer, inputs)
    for safe in (False, True):
        transformer.fuse_lora(safe_fusing=safe)
        torch.testing.assert_close(call(transformer, inputs), unmerged, rtol=1e-4, atol=1e-4)
        transformer.unfuse_lora()
        torch.testing.assert_close(call(transformer, inputs), unmerged, rtol=1e-4, atol=1e-4)


def test_as_a_plain_lora_of_twice_the_rank_it_is_the_same_function(tiny_flux, transformer, inputs):
    move(add_minor(transformer, SPEC, None))
    transformer.set_adapters([ADAPTER], [0.6])
    lora = lora_of(transformer)
    assert {(part.rank, part.scale) for part in lora.values()} == {(8, 0.6)}
    for path, layer in peft_layers.layers_of(transformer, ADAPTER).items():
        torch.testing.assert_close(lora[path].delta(), peft_layers.delta_weight(layer, ADAPTER))
    plain = zoo.load_transformer(tiny_flux)
    peft_layers.put(plain, lora, "plain", "here")
    torch.testing.assert_close(call(plain, inputs), call(transformer, inputs), rtol=1e-4, atol=1e-4)


def test_the_conversion_is_exact_in_float64_and_needs_only_the_state(transformer):
    draw = torch.Generator().manual_seed(3)
    shapes = ((4, 6), (9, 4), (4, 6), (9, 4))
    a, b, a0, b0 = (torch.randn(*s, generator=draw, dtype=torch.float64) for s in shapes)
    both = difference(Factors(a, b), Factors(a0, b0))
    torch.testing.assert_close(both.delta(), b @ a - b0 @ a0, rtol=1e-13, atol=1e-13)
    move(add_minor(transformer, SPEC, None))
    from_model, from_state = lora_of(transformer), lora_of_state(lora_state(transformer))
    assert from_model.keys() == from_state.keys()
    assert all(torch.equal(from_model[p].a, from_state[p].a) for p in from_model)
    assert all(torch.equal(from_model[p].b, from_state[p].b) for p in from_model)


def test_with_a_further_lora_the_ranks_add_up_in_the_order_of_the_official_converter(transformer):
    """URAE's 4K over its 2K: A = [-a_0; a_t; A_2k], B = [b_0, b_t, B_2k], rank 16 + 16 + 16 and scale 1."""
    move(add_lora(transformer, LoraSpec(4, TARGETS), seed=0, name="two"))
    move(add_minor(transformer, SPEC, None, name="four", over=["two"]), seed=2)
    lora = lora_of(transformer, ["four", "two"])
    assert {(part.rank, part.scale) for part in lora.values()} == {(12, 1.0)}
    for path, layer in peft_layers.layers_of(transformer, "four").items():
        a, b, two_a, two_b = (m[n] for n in ("four", "two") for m in (layer.lora_A, layer.lora_B))
        assert torch.equal(lora[path].a, torch.cat([-a.start, a.weight, two_a.weight]))
        assert torch.equal(lora[path].b, torch.cat([b.start, b.weight, two_b.weight], dim=1))


def test_over_another_adapter_the_components_are_those_of_the_sum(transformer, inputs):
    move(add_lora(transformer, LoraSpec(4, TARGETS), seed=0, name="two"))
    transformer.set_adapters(["two"], [0.5])
    before = call(transformer, inputs)
    add_minor(transformer, SPEC, None, name="four", over=["two"])
    assert torch.equal(call(transformer, inputs), before)
    layer = transformer.get_submodule(Q)
    a, b = layer.lora_A["two"].weight, layer.lora_B["two"].weight
    expected = decompose(layer.get_base_layer().weight + 0.5 * b @ a, 4, "minor")
    start = layer.lora_B["four"].start @ layer.lora_A["four"].start
    torch.testing.assert_close(start, expected.b @ expected.a, rtol=1e-5, atol=1e-7)
    assert peft_layers.active(transformer) == ["two", "four"]
    assert peft_layers.training(transformer) == ["four"]


def test_standing_over_an_adapter_that_is_not_there_is_an_error(transformer):
    with pytest.raises(UserError, match="unknown active adapter 'two'"):
        add_minor(transformer, SPEC, None, over=["two"])
    assert peft_layers.names(transformer) == []


def test_a_state_holds_the_frozen_halves(transformer):
    move(add_minor(transformer, SPEC, None))
    state = lora_state(transformer)
    assert set(state) >= {f"{Q}.lora_{side}.{part}" for side in "AB" for part in ("weight", "start")}
    starts = {name: buffer for name, buffer in transformer.named_buffers() if name.endswith(".start")}
    assert starts
    for name, buffer in starts.items():
        assert torch.equal(state[name.replace(f".{ADAPTER}.", ".")], buffer)


def test_published_factors_belong_to_a_fresh_decomposition(tiny_flux, transformer, inputs):
    own = add_minor(transformer, SPEC, None)
    move(own)
    trained = {
        path: LowRank(layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight, 4.0)
        for path, layer in peft_layers.layers_of(transformer, ADAPTER).items()
    }
    other = zoo.load_transformer(tiny_flux)
    load_minor(other, trained, "published", None)
    assert torch.equal(call(other, inputs), call(transformer, inputs))


def test_published_factors_are_refused_on_offloaded_weights_whose_values_would_be_lost(transformer):
    factors = {Q: LowRank(torch.ones(4, 64), torch.ones(64, 4), 4.0)}
    linear = transformer.get_submodule(Q)
    linear.weight = torch.nn.Parameter(linear.weight.to("meta"))
    with pytest.raises(UserError, match=f"needs the weight of {Q}, which is offloaded from memory: load the"):
        load_minor(transformer, factors, "published", None)
    assert peft_layers.names(transformer) == []


def test_decompositions_are_kept_by_the_weights_hash(tmp_path, tiny_flux, monkeypatch):
    first, second = (zoo.load_transformer(tiny_flux) for _ in range(2))
    add_minor(first, SPEC, tmp_path)
    assert len(list(tmp_path.iterdir())) == len(peft_layers.layers_of(first, ADAPTER))
    monkeypatch.setattr(components, "decompose", None)
    add_minor(second, SPEC, tmp_path)
    one, two = lora_state(first), lora_state(second)
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_linears_that_are_not_square_are_adapted_too(transformer, inputs):
    spec = MinorSpec(4, ("ff.net.0.proj", "ff.net.2", "proj_mlp", "norm.linear"))
    before = call(transformer, inputs)
    own = add_minor(transformer, spec, None)
    assert torch.equal(call(transformer, inputs), before)
    assert len({p.shape for p in own}) > 2


def test_a_rank_that_a_target_does_not_have_leaves_the_model_as_it_was(transformer):
    before = weights(transformer)
    with pytest.raises(UserError, match="rank 65"):
        add_minor(transformer, MinorSpec(65, TARGETS), None)
    assert weights(transformer).keys() == before.keys()


def test_taking_it_off_gives_the_plain_model_back(transformer, inputs):
    before, output = weights(transformer), call(transformer, inputs)
    move(add_minor(transformer, SPEC, None))
    peft_layers.remove(transformer, ADAPTER)
    after = weights(transformer)
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert torch.equal(call(transformer, inputs), output)


def test_a_copy_of_the_model_carries_the_adapter(transformer, inputs):
    move(add_minor(transformer, SPEC, None))
    assert torch.equal(call(copy.deepcopy(transformer), inputs), call(transformer, inputs))


def test_gradient_checkpointing_gives_the_same_gradients(transformer, inputs):
    own = add_minor(transformer, SPEC, None)
    move(own)
    transformer.train()
    transformer(**inputs)[0].square().mean().backward()
    plain = [parameter.grad.clone() for parameter in own]
    transformer.zero_grad()
    transformer.enable_gradient_checkpointing()
    transformer(**inputs)[0].square().mean().backward()
    for parameter, grad in zip(own, plain, strict=True):
        torch.testing.assert_close(parameter.grad, grad)


def test_diffusers_loads_the_plain_form_with_the_same_function(tmp_path, tiny_flux, transformer, inputs):
    from uhr.models.adapters.formats import writing
    from uhr.models.adapters.formats.keys import FLUX1

    move(add_minor(transformer, SPEC, None))
    file = writing.save(lora_of(transformer), tmp_path / "plain.safetensors", writing.Format.DIFFUSERS, FLUX1)
    other = zoo.load_transformer(tiny_flux)
    other.load_lora_adapter(str(file), prefix="transformer")
    torch.testing.assert_close(call(other, inputs), call(transformer, inputs), rtol=1e-4, atol=1e-4)


def test_a_name_that_is_taken_is_an_error(transformer):
    add_minor(transformer, SPEC, None)
    lora = {Q: LowRank(torch.zeros(1, 64), torch.zeros(64, 1), 1.0)}
    with pytest.raises(UserError, match="'default' is taken"):
        peft_layers.put(transformer, lora, ADAPTER, "here")
