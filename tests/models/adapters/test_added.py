"""An ordinary LoRA that is added in one operation: peft's values, with fewer passes over the output."""

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch.utils._python_dispatch import TorchDispatchMode

from uhr.models.adapters import peft_layers
from uhr.models.adapters.added import Added, add_at_once
from uhr.models.adapters.guide_only import guide_only

NAME = "default"


def pair(alpha=6, dtype=torch.float32):
    """The same adapted linear twice: with peft's own operations, and with ours."""
    made = []
    for _ in range(2):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(12, 10)).requires_grad_(False).to(dtype)
        config = LoraConfig(r=3, lora_alpha=alpha, target_modules=["0"], init_lora_weights=False)
        inject_adapter_in_model(config, model, NAME)
        for half in (model[0].lora_A, model[0].lora_B):
            half[NAME].float()
        made.append(model)
    add_at_once(made[1], NAME)
    return made


class Operations(TorchDispatchMode):
    """Records the operations on tensors as wide as the output."""

    def __init__(self):
        super().__init__()
        self.wide = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        if isinstance(found, torch.Tensor) and found.shape[-1] == 10 and func.overloadpacket is not None:
            self.wide.append(str(func.overloadpacket))
        return found


@pytest.mark.parametrize("shape", [(4, 12), (2, 5, 12)])
@pytest.mark.parametrize("alpha", [3, 6])
def test_output_and_gradients_are_those_of_peft(shape, alpha):
    x, weight = torch.randn(shape), torch.randn(*shape[:-1], 10)
    found = []
    for model in pair(alpha):
        given = x.clone().requires_grad_()
        output = model(given)
        (output * weight).sum().backward()
        layer = model[0]
        found.append((output, given.grad, layer.lora_A[NAME].weight.grad, layer.lora_B[NAME].weight.grad))
    for theirs, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert not torch.equal(found[0][0], pair(alpha)[0][0].get_base_layer()(x))


def test_an_adapter_whose_b_is_zero_changes_no_bit():
    _, model = pair()
    torch.nn.init.zeros_(model[0].lora_B[NAME].weight)
    x = torch.randn(3, 12)
    assert torch.equal(model(x), model[0].get_base_layer()(x))


def test_the_output_is_neither_multiplied_nor_added_to_by_operations_of_their_own():
    x, seen = torch.randn(4, 12), []
    for model in pair():
        with Operations() as operations:
            model(x)
        seen.append([name for name in operations.wide if name in ("aten.mul", "aten.add")])
    assert seen == [["aten.mul", "aten.add"], []]


@pytest.mark.parametrize("alpha", [3, 6])
def test_a_float32_adapter_on_bfloat16_weights_is_computed_as_peft_does_bit_for_bit(alpha):
    theirs, ours = pair(alpha, torch.bfloat16)
    x = torch.randn(4, 12, dtype=torch.bfloat16)
    assert ours(x).dtype == torch.bfloat16
    assert torch.equal(ours(x), theirs(x))


def test_it_is_an_ordinary_lora_for_all_that_reads_or_merges_it():
    theirs, ours = (model[0] for model in pair())
    one, other = (peft_layers.low_rank(layer, NAME) for layer in (theirs, ours))
    assert torch.equal(one.a, other.a)
    assert torch.equal(one.b, other.b)
    assert one.alpha == other.alpha == 6
    x = torch.randn(3, 12)
    before = ours(x)
    ours.merge()
    torch.testing.assert_close(ours(x), before)
    ours.unmerge()
    torch.testing.assert_close(ours(x), before)


def test_a_call_that_restricts_it_to_guide_tokens_gives_it_back():
    _, model = pair()
    with guide_only(model, [NAME]) as restricted:
        assert restricted == [NAME]
        assert not isinstance(peft_layers.variant_of(model[0], NAME), Added)
    assert isinstance(peft_layers.variant_of(model[0], NAME), Added)
