"""Adapters where a model is sharded or quantised, and the bookkeeping of several."""

import os
import socket

import bitsandbytes
import pytest
import torch
import torch.distributed as dist

from uhr.base.errors import UserError
from uhr.models import zoo
from uhr.models.adapters import peft_layers
from uhr.models.adapters.low_rank import LowRank
from uhr.models.adapters.merging import merge
from uhr.models.adapters.minor import MinorSpec, add_minor
from uhr.models.adapters.plain import ADAPTER, LoraSpec, add_lora, lora_state

TARGETS = zoo.get("tiny-flux1").lora_target_sets["attention"]
Q = "transformer_blocks.0.attn.to_q"


def call(model, inputs):
    with torch.no_grad():
        return model(**inputs)[0]


def update(out=64, width=64, rank=2, alpha=3.0):
    draw = torch.Generator().manual_seed(0)
    return LowRank(torch.randn(rank, width, generator=draw), torch.randn(out, rank, generator=draw), alpha)


def test_what_is_put_on_a_model_is_read_back_bit_for_bit_and_only_where_it_belongs(transformer):
    lora = {Q: update(), "proj_out": update(out=64, rank=3, alpha=1.5)}
    peft_layers.put(transformer, lora, "style", "here", scale=0.5)
    layers = peft_layers.layers_of(transformer, "style")
    assert layers.keys() == lora.keys()  # and not single_transformer_blocks.0.proj_out
    for path, layer in layers.items():
        found = peft_layers.low_rank(layer, "style")
        assert torch.equal(found.a, lora[path].a)
        assert torch.equal(found.b, lora[path].b)
        assert found.scale == 0.5 * lora[path].scale


def test_float32_values_stay_float32_on_a_bfloat16_backbone(tiny_flux):
    model = zoo.load_transformer(tiny_flux, dtype="bfloat16")
    peft_layers.put(model, {Q: update()}, "style", "here")
    weight = model.get_submodule(Q).lora_A["style"].weight
    assert weight.dtype == torch.float32
    assert torch.equal(weight, update().a)


def test_putting_one_on_leaves_those_that_act_acting_and_those_that_train_training(transformer):
    add_lora(transformer, LoraSpec(2, TARGETS), seed=0, name="first")
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    peft_layers.put(transformer, {Q: update()}, "second", "here")
    assert torch.equal(torch.rand(3), expected)
    assert peft_layers.active(transformer) == ["first", "second"]
    assert peft_layers.training(transformer) == ["first"]
    peft_layers.remove(transformer, "first")
    assert peft_layers.active(transformer) == ["second"]
    assert peft_layers.training(transformer) == []


@pytest.mark.parametrize(
    ("path", "shape", "message"),
    [(Q, (64, 32), "64 x 32, this model has 64 x 64"), ("blocks.0", (64, 64), "no such linear")],
)
def test_an_update_that_fits_nowhere_is_an_error_and_the_model_stays_as_it_was(
    transformer, path, shape, message
):
    keys = transformer.state_dict().keys()
    with pytest.raises(UserError, match=message):
        peft_layers.put(transformer, {Q: update(), path: update(*shape)}, "style", "style.safetensors")
    assert transformer.state_dict().keys() == keys


def test_an_adapter_that_is_not_there_is_an_error_with_the_nearest_names(transformer):
    peft_layers.put(transformer, {Q: update()}, "style", "here")
    with pytest.raises(UserError, match="did you mean style"):
        peft_layers.remove(transformer, "stile")


def quantise(model, make, flag):
    """Replace every q, k and v by a quantised linear, as diffusers' quantisers do, which require a GPU."""
    for block in [*model.transformer_blocks, *model.single_transformer_blocks]:
        for name in ("to_q", "to_k", "to_v"):
            linear = make(64, 64)
            linear.load_state_dict(getattr(block.attn, name).state_dict())
            setattr(block.attn, name, linear.to("cpu"))
    setattr(model, flag, True)


QUANTISED = {
    "is_loaded_in_4bit": lambda *shape: bitsandbytes.nn.Linear4bit(*shape, compute_dtype=torch.float32),
    "is_loaded_in_8bit": lambda *shape: bitsandbytes.nn.Linear8bitLt(*shape, has_fp16_weights=False),
}


@pytest.mark.parametrize("flag", QUANTISED)
def test_components_of_a_quantised_base_start_exactly_and_leave_it_quantised(transformer, inputs, flag):
    quantise(transformer, QUANTISED[flag], flag)
    before = call(transformer, inputs)
    own = add_minor(transformer, MinorSpec(4, ("to_q", "to_k", "to_v")), None)
    assert torch.equal(call(transformer, inputs), before)
    assert not transformer.get_submodule(Q).get_base_layer().weight.is_floating_point()
    transformer(**inputs)[0].square().mean().backward()
    assert all(parameter.grad.any() for parameter in own)
    layer = transformer.get_submodule(Q)
    dequantised = peft_layers.base_weight(layer)
    x = torch.eye(64)
    torch.testing.assert_close(
        layer.get_base_layer()(x) - layer.get_base_layer().bias, dequantised.T, rtol=1e-4, atol=1e-4
    )
    with pytest.raises(UserError, match="quantised"):
        merge(transformer)


def test_under_fsdp2_in_bfloat16_the_start_is_exact_and_the_gathered_state_is_whole(tiny_flux, inputs):
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    model = zoo.load_transformer(tiny_flux)
    add_minor(model, MinorSpec(4, TARGETS), None)
    expected = lora_state(model)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free.getsockname()[1])}
    dist.init_process_group("gloo", rank=0, world_size=1)
    try:
        mesh = dist.device_mesh.init_device_mesh("cpu", (1,))
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16)
        for part in (*model.transformer_blocks, *model.single_transformer_blocks, model):
            fully_shard(part, mesh=mesh, mp_policy=policy)
        fresh = call(model, inputs)
        model.disable_lora()
        assert torch.equal(fresh, call(model, inputs))
        model.enable_lora()
        options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
        state = lora_state(model, state_dict=get_model_state_dict(model, options=options))
    finally:
        dist.destroy_process_group()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[key], tensor) for key, tensor in expected.items())


def test_nothing_is_added_to_a_model_with_merged_adapters(transformer):
    """peft would unmerge them by subtraction first, and the weight would no longer be the one before."""
    add_lora(transformer, LoraSpec(2, TARGETS), seed=0, name=ADAPTER)
    merged = merge(transformer)
    with pytest.raises(UserError, match="unmerge them first"):
        add_minor(transformer, MinorSpec(2, TARGETS), None, name="minor")
    with pytest.raises(UserError, match="unmerge them first"):
        peft_layers.put(transformer, {Q: update()}, "style", "here")
    merged.unmerge()
    peft_layers.put(transformer, {Q: update()}, "style", "here")
