"""The parts of peft that this project uses: the layer of adapters, its configuration, its state."""

import dataclasses
import inspect
import json

import pytest
import torch
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer

from uhr.models.adapters.formats import settings


def model(**config):
    torch.manual_seed(0)
    net = torch.nn.Sequential()
    net.add_module("to_q", torch.nn.Linear(6, 4))
    settings = {
        "r": 2,
        "lora_alpha": 8,
        "target_modules": ["to_q"],
        "init_lora_weights": "gaussian",
        **config,
    }
    inject_adapter_in_model(LoraConfig(**settings), net, adapter_name="x")
    return net


def test_the_three_keys_that_we_write_make_a_configuration():
    config = LoraConfig(r=2, lora_alpha=8.0, target_modules=["to_q"])
    assert (config.r, config.lora_alpha) == (2, 8.0)


def test_a_layer_names_its_matrices_scale_and_base():
    layer = model().to_q
    assert isinstance(layer, LoraLayer)
    assert layer.lora_A["x"].weight.shape == (2, 6)
    assert layer.lora_B["x"].weight.shape == (4, 2)
    assert layer.scaling["x"] == 4
    assert list(layer.active_adapters) == ["x"]
    assert layer.get_base_layer() is layer.base_layer
    torch.nn.init.ones_(layer.lora_B["x"].weight)
    by_hand = 4 * layer.lora_B["x"].weight @ layer.lora_A["x"].weight
    torch.testing.assert_close(layer.get_delta_weight("x"), by_hand)


def test_gaussian_initialisation_has_standard_deviation_one_over_rank_and_b_zero():
    net = torch.nn.Sequential()
    net.add_module("to_q", torch.nn.Linear(4096, 4))
    config = LoraConfig(r=8, target_modules=["to_q"], init_lora_weights="gaussian")
    inject_adapter_in_model(config, net, adapter_name="x")
    assert net.to_q.lora_A["x"].weight.std().item() == pytest.approx(1 / 8, rel=0.05)
    assert not net.to_q.lora_B["x"].weight.any()


def test_a_merged_layer_uses_its_base_weight_alone():
    layer = model().to_q
    torch.nn.init.ones_(layer.lora_B["x"].weight)
    x = torch.randn(3, 6)
    layer.merged_adapters.append("x")
    torch.testing.assert_close(layer(x), layer.get_base_layer()(x))
    layer.merged_adapters.clear()
    assert not torch.allclose(layer(x), layer.get_base_layer()(x))


def test_state_goes_out_without_the_adapters_name_and_in_again():
    net = model()
    assert "state_dict" in inspect.signature(get_peft_model_state_dict).parameters
    # peft reads the configuration of an adapter from the model by its name, where diffusers stores it
    net.peft_config = {"x": LoraConfig(r=2, target_modules=["to_q"])}
    state = get_peft_model_state_dict(net, adapter_name="x")
    assert set(state) == {"to_q.lora_A.weight", "to_q.lora_B.weight"}
    set_peft_model_state_dict(net, {key: torch.ones_like(t) for key, t in state.items()}, adapter_name="x")
    assert bool((net.to_q.lora_A["x"].weight == 1).all())


def test_every_key_of_a_configuration_is_computed_without_effect_or_refused():
    """A key that fails this is new: decide in `models/adapters/formats/settings.py` what its values mean."""
    known = [*settings.COMPUTED, *settings.WITHOUT_EFFECT, *settings.PLAIN, settings.INITIAL]
    assert len(known) == len(set(known))
    assert sorted(known) == sorted(field.name for field in dataclasses.fields(LoraConfig))


def test_pefts_own_defaults_are_a_plain_lora():
    plain = json.loads(json.dumps(LoraConfig().to_dict()))
    for key, accepted in settings.PLAIN.items():
        assert plain[key] == accepted[0], key
    assert {key: plain[key] for key in settings.DEFAULTS} == settings.DEFAULTS
    assert settings.PeftSettings.of(plain, "here").scale("to_q") == 1
