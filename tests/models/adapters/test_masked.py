"""Token-masked LoRA: exact on the chosen rows, and nothing at all on the others."""

import copy

import pytest
import torch
from diffusers import Flux2Transformer2DModel
from hypothesis import given
from hypothesis import strategies as st

from uhr.base.errors import UserError
from uhr.models import zoo
from uhr.models.adapters import peft_layers
from uhr.models.adapters.conversion import lora_of
from uhr.models.adapters.low_rank import LowRank
from uhr.models.adapters.masked import TokenMask, mask_adapter, masks, stream_of
from uhr.models.adapters.merging import merge
from uhr.models.adapters.plain import LoraSpec, add_lora, lora_state
from uhr.models.adapters.scales import set_scales

TARGETS = zoo.get("tiny-flux1").lora_target_sets["attention"]
IMAGE, JOINT = "transformer_blocks.0.attn.to_q", "single_transformer_blocks.0.attn.to_q"
TEXT = 16
"""Text tokens of the `inputs` fixture; 64 image tokens follow, of which tests call the last few the guide."""


def move(parameters, seed=1):
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in parameters:
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=draw))


def call(model, inputs):
    with torch.no_grad():
        return model(**inputs)[0]


def tell_guide(mask, image, guide):
    """Choose the rows of the guide in [text | image | guide]; shared modulations are left alone."""
    rows = torch.arange(TEXT + image + guide) >= TEXT + image
    mask.choose(image=rows[TEXT:], joint=rows)


@pytest.fixture
def masked(transformer):
    """(the model with a masked adapter "guide" that changes the output, its mask)"""
    move(add_lora(transformer, LoraSpec(4, TARGETS, alpha=6), seed=0, name="guide"))
    mask = TokenMask()
    mask_adapter(transformer, "guide", mask)
    return transformer, mask


@given(st.lists(st.booleans(), min_size=1, max_size=12), st.sampled_from([torch.float32, torch.float64]))
def test_chosen_rows_are_those_of_the_ordinary_lora_and_the_others_those_of_the_weight(rows, dtype):
    linear = torch.nn.Linear(6, 5, dtype=dtype)
    model = torch.nn.ModuleDict({"x_embedder": linear})
    draw = torch.Generator().manual_seed(0)
    part = LowRank(torch.randn(2, 6, generator=draw), torch.randn(5, 2, generator=draw), 3.0)
    peft_layers.put(model, {"x_embedder": part}, "guide", "here", dtype=dtype)
    x = torch.randn(2, len(rows), 6, generator=draw).to(dtype)
    plain, full = linear(x), model["x_embedder"](x)
    mask = TokenMask()
    mask_adapter(model, "guide", mask)
    mask.choose(image=torch.tensor(rows))
    out, chosen = model["x_embedder"](x), torch.tensor(rows)
    assert torch.equal(out[:, ~chosen], plain[:, ~chosen])
    torch.testing.assert_close(out[:, chosen], full[:, chosen])
    mask.choose(image=True)
    assert torch.equal(model["x_embedder"](x), full)
    mask.choose()
    assert torch.equal(model["x_embedder"](x), plain)


def test_the_output_is_w_x_plus_m_times_b_a_x_times_the_scale(masked):
    model, mask = masked
    layer = model.get_submodule(IMAGE)
    layer.set_scale("guide", 0.5)
    rows = torch.zeros(64, dtype=torch.bool)
    rows[::3] = True
    mask.choose(image=rows)
    x = torch.randn(2, 64, 64)
    a, b = layer.lora_A["guide"].weight, layer.lora_B["guide"].weight
    update = rows.float()[:, None] * (x @ a.T @ b.T) * (0.5 * 6 / 4)
    torch.testing.assert_close(layer(x), layer.get_base_layer()(x) + update)


def test_a_mask_of_everything_is_the_ordinary_lora_and_of_nothing_the_backbone(tiny_flux, masked, inputs):
    model, mask = masked
    plain = call(zoo.load_transformer(tiny_flux), inputs)
    mask.choose()
    assert torch.equal(call(model, inputs), plain)
    mask.choose(image=True, text=True, joint=True, modulation=True)
    everything = call(model, inputs)
    ordinary = zoo.load_transformer(tiny_flux)
    move(add_lora(ordinary, LoraSpec(4, TARGETS, alpha=6), seed=0))
    assert torch.equal(everything, call(ordinary, inputs))


def test_gradients_come_from_chosen_rows_only(masked):
    model, mask = masked
    layer = model.get_submodule(IMAGE)
    a, b = layer.lora_A["guide"].weight, layer.lora_B["guide"].weight
    rows = torch.arange(64) >= 60
    mask.choose(image=rows)
    x = torch.randn(1, 64, 64, requires_grad=True)
    layer(x)[:, ~rows].square().sum().backward()
    assert not a.grad.any()
    assert not b.grad.any()
    base = layer.get_base_layer()
    expected = torch.autograd.grad(base(x)[:, ~rows].square().sum(), x)[0]
    assert torch.equal(x.grad, expected)
    layer(x)[:, rows].square().sum().backward()
    got = a.grad.clone(), b.grad.clone()
    full = (base(x) + (x @ a.T @ b.T) * 1.5)[:, rows].square().sum()
    for grad, reference in zip(got, torch.autograd.grad(full, [a, b]), strict=True):
        torch.testing.assert_close(grad, reference)


def test_guide_rows_are_the_last_of_the_image_stream_and_of_the_joint_one(masked, inputs):
    """text | image | guide: text rows and image rows of every masked linear keep the backbone's bits."""
    model, mask = masked
    seen = {}

    def watch(path):
        def hook(module, args, output):
            seen[path] = (args[0].detach(), output.detach())

        return hook

    for path, layer in peft_layers.layers_of(model, "guide").items():
        layer.register_forward_hook(watch(path))
    tell_guide(mask, 60, 4)
    call(model, inputs)
    for path, layer in peft_layers.layers_of(model, "guide").items():
        x, out = seen[path]
        changed = (out != layer.get_base_layer()(x)).any(dim=-1).any(dim=0)
        expected = torch.arange(x.shape[1]) >= x.shape[1] - 4
        assert torch.equal(changed, expected), path
    assert {x.shape[1] for x, _ in seen.values()} == {64, TEXT + 64}


def test_two_masked_adapters_and_an_ordinary_one_add_up(tiny_flux, inputs):
    model = zoo.load_transformer(tiny_flux)
    one, two = TokenMask(), TokenMask()
    for seed, name in enumerate(("ordinary", "one", "two")):
        with peft_layers.several_adapters():
            move(add_lora(model, LoraSpec(4, TARGETS), seed=0, name=name), seed)
    mask_adapter(model, "one", one)
    mask_adapter(model, "two", two)
    set_scales(model, {"ordinary": 0.5, "one": 2.0, "two": -1.0})
    rows = torch.arange(64)
    one.choose(image=rows < 10)
    two.choose(image=(rows > 5) & (rows < 20))
    layer = model.get_submodule(IMAGE)
    x = torch.randn(2, 64, 64)
    expected = layer.get_base_layer()(x)
    chosen = {"ordinary": rows >= 0, "one": rows < 10, "two": (rows > 5) & (rows < 20)}
    for name, scale in (("ordinary", 0.5), ("one", 2.0), ("two", -1.0)):
        update = x @ layer.lora_A[name].weight.T @ layer.lora_B[name].weight.T
        expected = expected + scale * chosen[name].float()[:, None] * update
    torch.testing.assert_close(layer(x), expected)
    assert masks(model) == [one, two]


def test_a_model_lists_its_masks_and_a_copy_has_masks_of_its_own(masked, transformer):
    model, mask = masked
    assert masks(model) == [mask]
    (other,) = masks(copy.deepcopy(model))
    assert other is not mask
    peft_layers.remove(model, "guide")
    assert masks(model) == []


def test_a_mask_without_a_choice_is_an_error_that_names_the_adapter(masked, inputs):
    model, _ = masked
    with pytest.raises(UserError, match="'guide' acts on chosen tokens only"):
        call(model, inputs)


def test_a_mask_of_another_length_is_a_programmers_error(masked, inputs):
    model, mask = masked
    tell_guide(mask, 50, 4)
    with pytest.raises(AssertionError, match="54 tokens long, not 64"):
        call(model, inputs)


def test_it_is_no_change_of_the_weights_so_it_is_neither_merged_nor_converted(masked, inputs):
    model, mask = masked
    tell_guide(mask, 60, 4)
    before = call(model, inputs)
    with pytest.raises(UserError, match="cannot be merged"):
        merge(model)
    with pytest.raises(UserError, match="cannot be merged"):
        lora_of(model)
    with pytest.raises(UserError, match="cannot be merged"):
        model.fuse_lora()
    assert torch.equal(call(model, inputs), before)


def test_its_state_is_that_of_a_plain_lora(masked):
    model, _ = masked
    state = lora_state(model, "guide")
    assert {key.rpartition(".lora_")[2] for key in state} == {"A.weight", "B.weight"}


def test_gradient_checkpointing_gives_the_same_gradients(masked, inputs):
    model, mask = masked
    tell_guide(mask, 60, 4)
    own = [p for p in model.parameters() if p.requires_grad]
    model.train()
    model(**inputs)[0].square().mean().backward()
    plain = [parameter.grad.clone() for parameter in own]
    assert any(grad.any() for grad in plain)
    model.zero_grad()
    model.enable_gradient_checkpointing()
    model(**inputs)[0].square().mean().backward()
    for parameter, grad in zip(own, plain, strict=True):
        torch.testing.assert_close(parameter.grad, grad)


def test_in_bfloat16_the_other_rows_keep_their_bits(tiny_flux):
    model = zoo.load_transformer(tiny_flux, dtype="bfloat16")
    move(add_lora(model, LoraSpec(4, TARGETS), seed=0, name="guide"))
    layer, x = model.get_submodule(IMAGE), torch.randn(2, 64, 64, dtype=torch.bfloat16)
    full, plain = layer(x), layer.get_base_layer()(x)
    mask = TokenMask()
    mask_adapter(model, "guide", mask)
    rows = torch.arange(64) >= 60
    mask.choose(image=rows)
    out = layer(x)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out[:, ~rows], plain[:, ~rows])
    torch.testing.assert_close(out[:, rows], full[:, rows])


def test_streams_of_flux1_are_read_off_the_path(flux_dev):
    linears = [path for path, module in flux_dev.named_modules() if isinstance(module, torch.nn.Linear)]
    count = {stream: sum(stream_of(path) == stream for path in linears) for stream in
             ("image", "text", "joint", "modulation")}  # fmt: skip
    # per double block: q, k, v, out, two of the feed-forward in either stream, and two modulations
    assert count == {"image": 19 * 6 + 2, "text": 19 * 6 + 1, "joint": 38 * 5, "modulation": 19 * 2 + 38 + 7}
    assert stream_of("transformer_blocks.3.norm1_context.linear") == "modulation"
    assert stream_of("transformer_blocks.3.attn.to_add_out") == "text"
    assert stream_of("single_transformer_blocks.3.proj_mlp") == "joint"
    assert stream_of("single_transformer_blocks.3.norm.linear") == "modulation"


def test_the_streams_have_as_many_rows_as_the_linears_read(stock, inputs):
    lengths = {"image": {64}, "text": {TEXT}, "joint": {64 + TEXT}}
    model = copy.deepcopy(stock.transformer)
    seen = {}
    for path, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(lambda m, args, out, path=path: seen.update({path: args[0].shape}))
    call(model, inputs)
    assert {stream_of(path) for path in seen} == {*lengths, "modulation"}
    for path, shape in seen.items():
        stream = stream_of(path)
        assert len(shape) == 2 if stream == "modulation" else {shape[1]} == lengths[stream], path


def test_streams_of_flux2_too():
    model = Flux2Transformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=24, axes_dims_rope=(4, 4, 4, 4), timestep_guidance_channels=32,
    )  # fmt: skip
    seen = {}
    for path, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(lambda m, args, out, path=path: seen.update({path: args[0].shape}))
    given = {
        "hidden_states": torch.randn(1, 9, 16),
        "encoder_hidden_states": torch.randn(1, 5, 24),
        "timestep": torch.tensor([0.5]),
        "guidance": torch.tensor([1.0]),
        "img_ids": torch.zeros(9, 4),
        "txt_ids": torch.zeros(5, 4),
        "return_dict": False,
    }
    call(model, given)
    lengths = {"image": 9, "text": 5, "joint": 14}
    assert {stream_of(path) for path in seen} == {*lengths, "modulation"}
    for path, shape in seen.items():
        stream = stream_of(path)
        assert len(shape) == 2 if stream == "modulation" else shape[1] == lengths[stream], path
