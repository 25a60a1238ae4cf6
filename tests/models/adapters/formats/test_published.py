"""Published weights in their own formats: made-up files of exactly their keys and shapes.

At FLUX.1-dev's real shape on the meta device (do all keys and shapes meet?), and scaled down to the tiny
model (is it the right function?).
"""

import re

import pytest
import torch
from diffusers import Flux2Transformer2DModel
from safetensors.torch import save_file

from uhr.base.errors import UserError
from uhr.models import zoo
from uhr.models.adapters import peft_layers
from uhr.models.adapters.conversion import lora_of
from uhr.models.adapters.files import load_adapter
from uhr.models.adapters.formats.published import is_urae_minor, urae_factors
from uhr.models.adapters.low_rank import LowRank
from uhr.models.adapters.minor import MinorSpec, add_minor, load_minor, state_factors
from uhr.models.adapters.plain import LoraSpec, add_lora, lora_state

SCALE_DIT_FLUX1 = (
    r"x_embedder|transformer_blocks\.\d+\.(norm1\.linear|attn\.to_[kqv]|attn\.to_out\.0|ff\.net\.2)"
    r"|single_transformer_blocks\.\d+\.(norm\.linear|proj_mlp|proj_out|attn\.to_[kqv])"
)
SCALE_DIT_FLUX2 = (
    r"x_embedder|transformer_blocks\.\d+\.(attn\.to_[kqv]|attn\.to_out\.0|ff\.linear_in|ff\.linear_out)"
    r"|single_transformer_blocks\.\d+\.attn\.(to_qkv_mlp_proj|to_out)"
)
"""The linears that Scale-DiT's training configurations adapt (its FLUX.1 and FLUX.2 versions)."""


def zeros(*shape):
    """A tensor of that shape in the memory of one number."""
    return torch.zeros(1, dtype=torch.bfloat16).expand(shape)


def linears(model, pattern):
    return {
        path: (module.out_features, module.in_features)
        for path, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and re.fullmatch(pattern, path)
    }


def urae_modules(model):
    return linears(model, r"(single_)?transformer_blocks\.\d+\.attn\.to_([qkv]|out\.0)")


def lora_keys(modules, rank, make=zeros):
    """diffusers' keys without alpha, as `FluxPipeline.save_lora_weights` wrote them in 2025."""
    state = {}
    for path, (out, width) in modules.items():
        state[f"transformer.{path}.lora_A.weight"] = make(rank, width)
        state[f"transformer.{path}.lora_B.weight"] = make(out, rank)
    return state


def urae_keys(modules, rank, make=zeros):
    """Parameters of URAE's attention processors, as `transformer.state_dict()` named them."""
    state = {}
    for path, (out, width) in modules.items():
        block, _, linear = path.removesuffix(".0").rpartition(".")
        state[f"{block}.processor.{linear}_a.weight"] = make(rank, width)
        state[f"{block}.processor.{linear}_b.weight"] = make(out, rank)
    return state


def write(tmp_path, state, name="published.safetensors"):
    save_file({key: tensor.contiguous() for key, tensor in state.items()}, tmp_path / name)
    return tmp_path / name


def test_uraes_2k_lora_meets_190_linears_of_flux_dev(flux_dev, tmp_path):
    state = lora_keys(urae_modules(flux_dev), rank=16)
    assert state["transformer.single_transformer_blocks.37.attn.to_v.lora_B.weight"].shape == (3072, 16)
    load_adapter(flux_dev, write(tmp_path, state), "urae-2k")
    layers = peft_layers.layers_of(flux_dev, "urae-2k")
    assert len(layers) == 190
    assert {layer.scaling["urae-2k"] for layer in layers.values()} == {1.0}


def test_uraes_4k_factors_meet_190_linears_of_flux_dev_over_the_2k_lora(flux_dev, tmp_path):
    modules = urae_modules(flux_dev)
    minor = urae_keys(modules, rank=16)
    assert len(minor) == 380
    assert {
        "transformer_blocks.18.attn.processor.to_out_b.weight",
        "single_transformer_blocks.37.attn.processor.to_q_a.weight",
    } <= minor.keys()
    assert not any("single" in key and "to_out" in key for key in minor)
    assert sum(tensor.numel() for tensor in minor.values()) == 18_677_760
    load_adapter(flux_dev, write(tmp_path, lora_keys(modules, rank=16), "2k.safetensors"), "urae-2k")
    load_adapter(flux_dev, write(tmp_path, minor, "4k.safetensors"), "urae-4k", over=["urae-2k"])
    assert len(peft_layers.layers_of(flux_dev, "urae-4k")) == 190
    assert peft_layers.active(flux_dev) == ["urae-2k", "urae-4k"]
    converted = lora_of(flux_dev, ["urae-4k", "urae-2k"])
    assert {(part.rank, part.scale) for part in converted.values()} == {(48, 1.0)}


def test_uraes_converted_lora_of_rank_48_meets_flux_dev(flux_dev, tmp_path):
    load_adapter(flux_dev, write(tmp_path, lora_keys(urae_modules(flux_dev), rank=48)), "urae-4k")
    layers = peft_layers.layers_of(flux_dev, "urae-4k")
    assert {layer.r["urae-4k"] for layer in layers.values()} == {48}
    assert {layer.scaling["urae-4k"] for layer in layers.values()} == {1.0}


def test_scale_dits_lora_meets_343_linears_of_flux_dev_and_is_kept_to_guide_tokens(flux_dev, tmp_path):
    state = lora_keys(linears(flux_dev, SCALE_DIT_FLUX1), rank=16)
    load_adapter(flux_dev, write(tmp_path, state), "guide")
    layers = peft_layers.layers_of(flux_dev, "guide")
    assert len(layers) == 1 + 19 * 6 + 38 * 6
    assert all(peft_layers.variant_of(layer, "guide") for layer in layers.values())


def test_scale_dits_lora_meets_flux2_klein_9b_and_is_kept_to_guide_tokens(tmp_path):
    with torch.device("meta"):
        model = Flux2Transformer2DModel(
            num_layers=8, num_single_layers=24, num_attention_heads=32, joint_attention_dim=12288
        )
    state = lora_keys(linears(model, SCALE_DIT_FLUX2), rank=16)
    load_adapter(model, write(tmp_path, state), "guide")
    layers = peft_layers.layers_of(model, "guide")
    assert len(layers) == 1 + 8 * 6 + 24 * 2
    assert all(peft_layers.variant_of(layer, "guide") for layer in layers.values())


def noise(*shape, draw=torch.Generator().manual_seed(0)):
    return 0.2 * torch.randn(*shape, generator=draw)


def test_the_4k_factors_are_the_function_of_the_official_inference_code(tmp_path, transformer):
    """W' = W + 2K LoRA; W' - b_0 a_0 + b_t a_t, all in float32."""
    modules = urae_modules(transformer)
    lora, minor = lora_keys(modules, 4, noise), urae_keys(modules, 4, noise)
    former = {path: transformer.get_submodule(path).weight.detach().clone() for path in modules}
    load_adapter(transformer, write(tmp_path, lora, "2k.safetensors"), "urae-2k")
    load_adapter(transformer, write(tmp_path, minor, "4k.safetensors"), "urae-4k", over=["urae-2k"])
    for path, weight in former.items():
        a, b = (lora[f"transformer.{path}.lora_{side}.weight"] for side in "AB")
        block, _, linear = path.removesuffix(".0").rpartition(".")
        a_t, b_t = (minor[f"{block}.processor.{linear}_{side}.weight"] for side in "ab")
        fused = weight + b @ a
        u, s, vh = torch.linalg.svd(fused)
        residual = u[:, :-4] @ torch.diag(s[:-4]) @ vh[:-4]
        layer = transformer.get_submodule(path)
        x = torch.eye(layer.in_features)
        ours = (layer(x) - layer.get_base_layer().bias).T
        torch.testing.assert_close(ours, residual + b_t @ a_t, rtol=1e-4, atol=1e-5)


def test_our_conversion_is_the_official_converters_file_key_for_key(tmp_path, transformer):
    """Its B starts with b_0 and its A with -a_0; signs of singular vectors are free, so these are compared as
    products."""
    modules = urae_modules(transformer)
    lora, minor = lora_keys(modules, 4, noise), urae_keys(modules, 4, noise)
    load_adapter(transformer, write(tmp_path, lora, "2k.safetensors"), "urae-2k")
    load_adapter(transformer, write(tmp_path, minor, "4k.safetensors"), "urae-4k", over=["urae-2k"])
    converted = lora_of(transformer, ["urae-4k", "urae-2k"])
    assert {f"transformer.{path}.lora_{side}.weight" for path in converted for side in "AB"} == lora.keys()
    path = "transformer_blocks.0.attn.to_out.0"
    a, b = converted[path].a, converted[path].b
    assert torch.equal(a[4:8], minor["transformer_blocks.0.attn.processor.to_out_a.weight"])
    assert torch.equal(a[8:], lora[f"transformer.{path}.lora_A.weight"])
    assert torch.equal(b[:, 4:8], minor["transformer_blocks.0.attn.processor.to_out_b.weight"])
    assert torch.equal(b[:, 8:], lora[f"transformer.{path}.lora_B.weight"])


def test_factors_that_were_saved_untrained_change_nothing(tiny_flux, transformer, inputs):
    add_minor(transformer, MinorSpec(4, zoo.get("tiny-flux1").lora_target_sets["attention"]), None)
    factors, _ = state_factors(lora_state(transformer))
    lora = {path: LowRank(pair.a, pair.b, 4.0) for path, pair in factors.items()}
    other = zoo.load_transformer(tiny_flux)
    with torch.no_grad():
        before = other(**inputs)[0]
        load_minor(other, lora, "four", None)
        assert torch.equal(other(**inputs)[0], before)


def test_minor_factors_without_their_lora_are_an_error(transformer, tmp_path):
    file = write(tmp_path, urae_keys(urae_modules(transformer), 4))
    with pytest.raises(UserError, match="on top of a 2K LoRA"):
        load_adapter(transformer, file, "urae-4k")
    assert peft_layers.names(transformer) == []


def test_a_factor_without_its_other_half_is_an_error_that_names_it(transformer):
    state = urae_keys(urae_modules(transformer), 4)
    assert is_urae_minor(state)
    del state["transformer_blocks.0.attn.processor.to_q_b.weight"]
    with pytest.raises(UserError, match=r"transformer_blocks\.0\.attn\.to_q"):
        urae_factors(state, "here")
    state["transformer_blocks.0.ff.weight"] = zeros(2, 2)
    with pytest.raises(UserError, match=r"unknown key 'transformer_blocks\.0\.ff\.weight'"):
        urae_factors(state, "here")


def test_weights_of_another_size_are_an_error_before_anything_is_changed(transformer, tmp_path, flux_dev):
    state = lora_keys(urae_modules(flux_dev), rank=2)
    state = {key: tensor for key, tensor in state.items() if "transformer_blocks.0." in key}
    keys = transformer.state_dict().keys()
    with pytest.raises(UserError, match="3072 x 3072, this model has 64 x 64"):
        load_adapter(transformer, write(tmp_path, state), "style")
    assert transformer.state_dict().keys() == keys


def test_a_lora_beside_it_does_not_change_what_an_adapter_is_read_as(transformer, tmp_path):
    add_lora(transformer, LoraSpec(2, ("to_q",)), seed=0, name="other")
    state = lora_keys(linears(transformer, r"x_embedder"), 3, noise)
    load_adapter(transformer, write(tmp_path, state), "style", scale=0.5)
    assert peft_layers.names(transformer) == ["other", "style"]
    (part,) = lora_of(transformer, ["style"]).values()
    torch.testing.assert_close(
        part.delta(),
        0.5 * state["transformer.x_embedder.lora_B.weight"] @ state["transformer.x_embedder.lora_A.weight"],
    )
