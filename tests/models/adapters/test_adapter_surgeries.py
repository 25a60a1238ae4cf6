import copy

import pytest
import torch

from uhr.base.errors import UserError
from uhr.models import zoo
from uhr.models.adapters import peft_layers
from uhr.models.adapters.masked import masks
from uhr.models.adapters.plain import lora_state
from uhr.models.adapters.surgeries import PlainLora, SingularComponents, TokenMaskedLora
from uhr.models.surgery.base import applied, compose, from_record, record, temporarily

TARGETS = zoo.get("tiny-flux1").lora_target_sets["attention"]
KINDS = {
    "lora": PlainLora(adapter="a", rank=3, targets=TARGETS, alpha=6.0),
    "singular-components": SingularComponents(adapter="b", rank=3, targets=TARGETS, components="major"),
    "token-masked-lora": TokenMaskedLora(adapter="c", rank=3, targets=TARGETS, alpha=3.0, seed=5),
}


def everything(model):
    """All that a surgery could leave behind: tensors, what trains, class and mode."""
    return {
        **{f"tensor {name}": tensor.clone() for name, tensor in model.state_dict().items()},
        **{f"trains {name}": torch.tensor(p.requires_grad) for name, p in model.named_parameters()},
        **{f"training {name}": torch.tensor(module.training) for name, module in model.named_modules()},
    }


def same(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.parametrize("surgery", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("trains", [True, False])
def test_reverting_puts_back_every_bit_and_what_trained(transformer, surgery, trains):
    transformer.requires_grad_(trains)
    before = everything(transformer)
    surgery.apply(transformer)
    assert applied(transformer) == [surgery]
    trained = {name for name, p in transformer.named_parameters() if p.requires_grad}
    assert len(trained) == 2 * len(peft_layers.layers_of(transformer, surgery.adapter))
    assert all(".lora_" in name for name in trained)
    surgery.revert(transformer)
    assert same(everything(transformer), before)
    assert applied(transformer) == []


def test_all_kinds_go_onto_one_model_train_together_and_come_off_in_any_order(transformer):
    before = everything(transformer)
    compose(transformer, list(KINDS.values()))
    assert peft_layers.active(transformer) == ["a", "b", "c"]
    assert peft_layers.training(transformer) == ["a", "b", "c"]
    assert len(masks(transformer)) == 1
    for name in ("singular-components", "lora", "token-masked-lora"):
        KINDS[name].revert(transformer)
    assert same(everything(transformer), before)


def test_a_checkpoints_list_makes_the_same_structure_again(tiny_flux, transformer):
    compose(transformer, list(KINDS.values()))
    assert [entry["surgery"] for entry in record(transformer)] == list(KINDS)
    other = zoo.load_transformer(tiny_flux)
    compose(other, from_record(record(transformer)))
    assert applied(other) == applied(transformer)
    for name in peft_layers.names(transformer):
        one, two = lora_state(transformer, name), lora_state(other, name)
        assert one.keys() == two.keys()
        assert all(torch.equal(one[key], two[key]) for key in one)


def test_the_folder_of_decompositions_is_used_and_not_recorded(tmp_path, transformer):
    surgery = SingularComponents(rank=2, targets=TARGETS, cache=tmp_path)
    with temporarily(transformer, surgery):
        assert "cache" not in record(transformer)[0]
    assert len(list(tmp_path.iterdir())) == 14


def test_components_over_another_adapter_name_it(transformer):
    compose(transformer, [KINDS["lora"], SingularComponents(rank=2, targets=TARGETS, over=("a",))])
    assert record(transformer)[1]["over"] == ["a"]


def test_a_name_that_is_taken_is_an_error_and_the_model_stays_as_it_was(transformer):
    KINDS["lora"].apply(transformer)
    before = everything(transformer)
    with pytest.raises(UserError, match="'a' is taken"):
        SingularComponents(adapter="a", rank=3, targets=TARGETS).apply(transformer)
    assert same(everything(transformer), before)


def test_a_copy_can_be_operated_back_on_its_own(transformer):
    before = everything(transformer)
    compose(transformer, list(KINDS.values()))
    crowded = everything(transformer)
    twin = copy.deepcopy(transformer)
    for surgery in reversed(applied(twin)):
        surgery.revert(twin)
    assert same(everything(twin), before)
    assert same(everything(transformer), crowded)
