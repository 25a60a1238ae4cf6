"""The part of peft that `models/adapters/peft_layers.py` uses: the hook for an adapter's arithmetic."""

import inspect

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import LoraVariant

from uhr.models.adapters.peft_layers import Variant, several_adapters


def layer(**options):
    model = torch.nn.Sequential(torch.nn.Linear(6, 5))
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["0"], **options), model, "one")
    return model[0]


def test_a_layer_keeps_its_variants_in_a_dict_by_adapter_that_is_empty_for_plain_lora():
    assert layer().lora_variant == {}


def test_ours_has_every_method_of_pefts_but_the_one_that_is_called_before_it_is_attached():
    expected = {name for name, _ in inspect.getmembers(LoraVariant, inspect.isfunction)} - {"init"}
    for name in expected:
        theirs = [p for p in inspect.signature(getattr(LoraVariant, name)).parameters if p != "self"]
        ours = [p for p in inspect.signature(getattr(Variant, name)).parameters if p != "self"]
        assert ours == theirs, name


def test_peft_calls_it_with_the_inputs_in_the_adapters_dtype_and_the_result_so_far():
    lora, calls = layer(), []

    class Spy(Variant):
        def forward(self, module, active_adapter, x, result, **kwargs):
            calls.append((module, active_adapter, x, result))
            return result + 1

        def delta(self, module, name):
            return torch.ones(5, 6)

        def low_rank(self, module, name):
            raise AssertionError

    lora.lora_variant["one"] = Spy()
    x = torch.randn(3, 6)
    plain = lora.get_base_layer()(x)
    assert torch.equal(lora(x), plain + 1)
    module, name, seen, result = calls[0]
    assert module is lora
    assert name == "one"
    assert torch.equal(seen, x)
    assert torch.equal(result, plain)
    lora.double()
    lora.lora_A["one"].float()
    lora(x.double())
    assert calls[1][2].dtype == torch.float32
    lora.float()
    weight = lora.get_base_layer().weight.detach().clone()
    lora.merge()
    torch.testing.assert_close(lora.get_base_layer().weight, weight + 1)
    lora.unmerge()
    torch.testing.assert_close(lora.get_base_layer().weight, weight)


def test_deleting_an_adapter_takes_its_variant_along():
    lora = layer()
    lora.lora_variant["one"] = object()
    lora.delete_adapter("one")
    assert lora.lora_variant == {}


def test_adding_another_adapter_silences_those_that_acted_unless_they_are_activated_again():
    """Why `put` and `add_minor` call `activate`."""
    model = torch.nn.Sequential(torch.nn.Linear(6, 5))
    for name in ("one", "two"):
        with several_adapters():
            inject_adapter_in_model(LoraConfig(r=2, target_modules=["0"]), model, name)
    assert isinstance(model[0], LoraLayer)
    assert model[0].active_adapters != ["one", "two"]
