"""An adapter that is added to the weights for good."""

import copy

import pytest
import torch

from uhr.base.errors import UserError
from uhr.models.adapters import peft_layers
from uhr.models.adapters.low_rank import LowRank
from uhr.models.adapters.merging import fuse

Q = "transformer_blocks.0.attn.to_q"


@pytest.fixture
def update():
    draw = torch.Generator().manual_seed(0)
    return {Q: LowRank(torch.randn(2, 64, generator=draw), 0.1 * torch.randn(64, 2, generator=draw), 4.0)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_sum_is_rounded_once_and_nothing_else_changes(transformer, update, dtype):
    model = copy.deepcopy(transformer).to(dtype)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert fuse(model, update, "base", "here")
    after = model.state_dict()
    assert after.keys() == before.keys()
    expected = (before[f"{Q}.weight"].float() + 2.0 * update[Q].b @ update[Q].a).to(dtype)
    assert torch.equal(after[f"{Q}.weight"], expected)
    assert all(torch.equal(after[name], before[name]) for name in before if name != f"{Q}.weight")


def test_a_quantised_weight_keeps_it_as_an_active_frozen_adapter(transformer, update):
    linear = transformer.get_submodule(Q)
    linear.weight = torch.nn.Parameter(torch.zeros(64, 64, dtype=torch.int8), requires_grad=False)
    assert not fuse(transformer, update, "base", "here")
    assert peft_layers.active(transformer) == ["base"]
    assert peft_layers.training(transformer) == []
    layer = peft_layers.layers_of(transformer, "base")[Q]
    assert torch.equal(layer.get_base_layer().weight, torch.zeros(64, 64, dtype=torch.int8))
    torch.testing.assert_close(peft_layers.delta_weight(layer, "base"), update[Q].delta())


def test_an_adapter_of_another_model_is_refused_before_anything_changes(transformer, update):
    before = transformer.get_submodule(Q).weight.clone()
    with pytest.raises(UserError, match="'nowhere' is 64 x 64, this model has no such linear"):
        fuse(transformer, {**update, "nowhere": update[Q]}, "base", "here")
    assert torch.equal(transformer.get_submodule(Q).weight, before)
