"""Optimisers by kind and by import path: what they are built from, and their state."""

import json

import pytest
import torch

from uhr.base.errors import UserError
from uhr.train.optimisers import NAMES, optimiser
from uhr.train.optimisers.base import Optimiser
from uhr.train.recipes import resolve
from uhr.train.recipes.core.base import Recipe
from uhr.train.run.checkpoints import optim

ADAM = {"betas": [0.8, 0.95], "eps": 1e-7, "weight_decay": 0.1}
CONFIGS = [
    {"kind": "adamw", **ADAM},
    {"kind": "adamw-8bit", **ADAM},
    {"kind": "prodigy", "weight_decay": 0.01, "d0": 1e-2},
    {"kind": "torch.optim:NAdam", "betas": [0.8, 0.9], "momentum_decay": 0.01},
    {"kind": "torch.optim:Adafactor", "weight_decay": 0.01},
    {"kind": "torch.optim:Muon", "momentum": 0.9},
    {"kind": "torch.optim:ASGD"},
]


def parameters_of(seed=0):
    # of more than 4,096 elements, so that bitsandbytes has 8 bits
    draw = torch.Generator().manual_seed(seed)
    return {
        name: torch.nn.Parameter(torch.randn(80, 64, generator=draw)) for name in ("a.weight", "b.weight")
    }


def steps(built, parameters, numbers):
    for number in numbers:
        optim.set_lr(built, 0.01 * (number + 1))
        for index, parameter in enumerate(parameters.values()):
            draw = torch.Generator().manual_seed(100 * number + index)
            # a direction that stays, so that Prodigy's estimate rises
            parameter.grad = parameter.detach() + 0.1 * torch.randn(parameter.shape, generator=draw)
        built.step()


def stored(built, parameters):
    """The state as a checkpoint keeps it: tensors as bytes, values as JSON."""
    state = optim.optimiser_state(built, parameters)
    return optim.OptimiserState(dict(state.tensors), json.loads(json.dumps(state.values)))


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config["kind"])
@pytest.mark.parametrize("stops", [[3], [2, 4]])
def test_the_whole_state_is_restored_bit_for_bit(config, stops):
    straight = parameters_of()
    built = optimiser(config).build(list(straight.values()))
    steps(built, straight, range(6))
    broken, done = parameters_of(), 0
    again = optimiser(config).build(list(broken.values()))
    for stop in [*stops, 6]:
        steps(again, broken, range(done, stop))
        kept = stored(again, broken)
        broken = {name: torch.nn.Parameter(value.detach().clone()) for name, value in broken.items()}
        again, done = optimiser(config).build(list(broken.values())), stop
        optim.load_optimiser_state(again, broken, kept)
    assert all(torch.equal(straight[name], broken[name]) for name in straight)
    one, two = stored(built, straight), stored(again, broken)
    assert one.tensors.keys() == two.tensors.keys()
    assert all(torch.equal(value, two.tensors[name]) for name, value in one.tensors.items())
    assert one.values == two.values
    if config["kind"] == "prodigy":
        assert one.values["groups"][0]["r"] > 0
        assert one.values["groups"][0]["k"] == 6


def test_adamw_in_8_bits_has_moments_of_a_byte_on_this_machine():
    parameters = parameters_of()
    built = optimiser(CONFIGS[1]).build(list(parameters.values()))
    steps(built, parameters, range(2))
    state = stored(built, parameters).tensors
    assert state["a.weight.state1"].dtype == state["a.weight.state2"].dtype == torch.uint8


def test_every_option_of_an_optimiser_reaches_it():
    built = optimiser({"kind": "torch.optim:NAdam", "betas": [0.7, 0.8], "eps": 1e-3}).build(
        list(parameters_of().values())
    )
    assert (built.param_groups[0]["betas"], built.param_groups[0]["eps"]) == ((0.7, 0.8), 1e-3)
    config = {
        "kind": "prodigy", "betas": [0.7, 0.8], "eps": 1e-3, "weight_decay": 0.5, "bias_correction": False,
        "safeguard_warmup": False, "d0": 1e-3, "d_coef": 2.0,
    }  # fmt: skip
    group = optimiser(config).build(list(parameters_of().values())).param_groups[0]
    assert (group["d"], group["d_coef"], group["betas"], group["eps"]) == (1e-3, 2.0, (0.7, 0.8), 1e-3)
    assert (group["weight_decay"], group["bias_correction"], group["safeguard_warmup"]) == (0.5, False, False)
    for kind in ("adamw", "adamw-8bit"):
        group = optimiser({"kind": kind, **ADAM}).build(list(parameters_of().values())).param_groups[0]
        assert (group["betas"], group["eps"], group["weight_decay"]) == ((0.8, 0.95), 1e-7, 0.1)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("adamv", "unknown optimiser 'adamv': did you mean adamw"),
        ({"kind": "adamw", **ADAM, "amsgrad": True}, "optimiser 'adamw': unknown key 'amsgrad'"),
        (
            {"kind": "torch.optim:NAdam", "beta": 3},
            r"'torch\.optim:NAdam': unknown key 'beta': did you mean betas",
        ),
        ({"kind": "torch.optim:NAdam", "lr": 3}, "'lr' is set by the loop: set the phase's lr"),
        ("torch.optim:LBFGS", "computes the loss several times in a step"),
        ("torch.optim:Optimiser", "unknown optimiser in torch.optim 'Optimiser'"),
        ("math:sqrt", r"is not one: name a class derived from torch\.optim\.Optimizer"),
        (3, "optimiser 3: write it as"),
    ],
)
def test_a_mistake_names_the_optimiser_and_the_key(value, message):
    with pytest.raises(UserError, match=message):
        optimiser(value)


def test_what_its_class_refuses_is_an_error_of_one_line():
    with pytest.raises(UserError, match=r"'torch\.optim:NAdam' cannot be made \(Invalid.*change its keys"):
        optimiser({"kind": "torch.optim:NAdam", "eps": -1}).build(list(parameters_of().values()))


def test_state_that_no_file_can_hold_is_an_error_and_not_lost():
    parameters = parameters_of()
    built = optimiser(CONFIGS[0]).build(list(parameters.values()))
    steps(built, parameters, range(1))
    built.state[parameters["a.weight"]]["history"] = [torch.ones(1)]
    with pytest.raises(UserError, match=r"'history' of a\.weight is a list, which no checkpoint can contain"):
        optim.optimiser_state(built, parameters)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config["kind"])
def test_a_recipe_that_was_written_and_read_has_the_same_optimiser(config):
    recipe = resolve("lora").model_copy(update={"optimiser": optimiser(config)})
    again = Recipe.model_validate(json.loads(json.dumps(recipe.model_dump(mode="json"))))
    assert again.optimiser.model_dump(mode="json") == recipe.optimiser.model_dump(mode="json")
    assert type(again.optimiser) is type(recipe.optimiser)


def test_the_registry_names_what_exists():
    for name in NAMES:
        assert optimiser({"kind": name, **ADAM}).kind == name


@pytest.mark.parametrize("config", CONFIGS[:3], ids=lambda config: config["kind"])
def test_the_stated_bytes_of_a_state_are_those_that_a_step_leaves(config):
    stated, measured = (
        state_bytes(optimiser(config)) for state_bytes in (lambda o: o.state_bytes(), Optimiser.state_bytes)
    )
    # of the small matrix that is measured, the tables of the 8-bit codes are a part
    assert stated == pytest.approx(measured, abs=0.1)


def test_an_optimiser_that_asserts_its_arguments_is_built_and_says_what_is_wrong(tmp_path, monkeypatch):
    # as CAME's own package does
    (tmp_path / "asserting.py").write_text(
        """
import torch

class Asserting(torch.optim.SGD):
    def __init__(self, params, lr, betas=(0.9, 0.999, 0.9999)):
        assert lr > 0.0
        assert all(0.0 <= beta <= 1.0 for beta in betas), "betas are shares"
        super().__init__(params, lr)
"""
    )
    monkeypatch.syspath_prepend(tmp_path)
    built = optimiser("asserting:Asserting").build(list(parameters_of().values()))
    optim.set_lr(built, 0.5)
    assert built.param_groups[0]["lr"] == 0.5
    wrong = optimiser({"kind": "asserting:Asserting", "betas": [2.0]})
    with pytest.raises(UserError, match=r"cannot be made \(betas are shares\): change its keys"):
        wrong.build(list(parameters_of().values()))
