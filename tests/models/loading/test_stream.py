"""Blocks whose frozen weights are streamed: the same numbers, few blocks at a time, and none used outside."""

import pytest
import torch

from uhr.base.errors import UserError
from uhr.models.adapters.plain import LoraSpec, add_lora
from uhr.models.loading.stream import blocks_of, check_device, stream_blocks
from uhr.models.zoo import get, load_transformer

CASES = [("tiny_flux", "tiny-flux1"), ("tiny_flux2", "tiny-flux2")]


def inputs_of(model, seed=0):
    draw = torch.Generator().manual_seed(seed)
    config = model.config
    given = {
        "hidden_states": torch.randn(2, 24, config.in_channels, generator=draw),
        "encoder_hidden_states": torch.randn(2, 8, config.joint_attention_dim, generator=draw),
        "timestep": torch.tensor([0.3, 0.9]),
        "img_ids": torch.zeros(24, len(config.get("axes_dims_rope"))),
        "txt_ids": torch.zeros(8, len(config.get("axes_dims_rope"))),
    }
    given["img_ids"][:, 1] = torch.arange(24)
    if "pooled_projection_dim" in config:
        given["pooled_projections"] = torch.randn(2, config.pooled_projection_dim, generator=draw)
    if config.get("guidance_embeds"):
        given["guidance"] = torch.tensor([1.0, 3.0])
    return given


def trained(folder, streamed, spec):
    """Output and gradients of an adapter, and the stream."""
    model = load_transformer(folder)
    # by their own paths, as FLUX.2 has other names in its single blocks
    suffixes = ("to_q", "to_k", "to_v") if spec.family == "flux1" else ("to_q", "to_qkv_mlp_proj")
    added = add_lora(model, LoraSpec(4, suffixes), seed=1)
    for number, parameter in enumerate(added):
        with torch.no_grad():
            parameter.add_(
                0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
            )
    model.train()
    stream = None
    if streamed:
        stream = stream_blocks(model, (spec.double_block, spec.single_block), torch.device("cpu"))
    else:
        model.enable_gradient_checkpointing()
    output = model(**inputs_of(model), return_dict=False)[0]
    output.square().mean().backward()
    return model, output.detach(), [p.grad for p in added], stream


@pytest.mark.parametrize(("fixture", "name"), CASES)
def test_outputs_and_gradients_are_bitwise_those_of_weights_in_place(request, fixture, name):
    folder, spec = request.getfixturevalue(fixture), get(name)
    _, output, gradients, _ = trained(folder, False, spec)
    model, found, streamed, stream = trained(folder, True, spec)
    assert torch.equal(found, output)
    assert all(torch.equal(one, two) for one, two in zip(gradients, streamed, strict=True))
    assert all(gradient.abs().max() > 0 for gradient in gradients)
    # afterwards only a block that would come next may be on the device
    assert len(stream.resident) <= 1
    with torch.no_grad():
        assert torch.equal(model(**inputs_of(model), return_dict=False)[0], output)


def test_at_most_two_blocks_are_on_the_device_and_the_others_are_empty(tiny_flux):
    spec = get("tiny-flux1")
    model = load_transformer(tiny_flux).requires_grad_(False)
    add_lora(model, LoraSpec(4, ("to_q",)), seed=1)
    blocks = blocks_of(model, (spec.double_block, spec.single_block))
    stream = stream_blocks(model, (spec.double_block, spec.single_block), torch.device("cpu"))
    most, seen = [], []

    def look(block, *_):
        most.append(len(stream.resident))
        filled = [any(p.numel() for p in each.parameters() if not p.requires_grad) for each in blocks]
        seen.append(filled.index(True))
        assert sum(filled) == 1
        assert all(p.numel() for p in block.parameters())

    for block in blocks:
        block.register_forward_pre_hook(look)
    model.train()
    model(**inputs_of(model), return_dict=False)[0].sum().backward()
    assert max(most) == 2
    count = len(blocks)
    assert seen == [*range(count), *reversed(range(count))]
    assert all(p.numel() for p in model.parameters() if p.requires_grad)


def test_it_is_refused_on_a_cpu():
    with pytest.raises(UserError, match=r"the device is cpu: leave it out: --set runtime\.offload=null"):
        check_device(torch.device("cpu"))
    check_device(torch.device("cuda"))
