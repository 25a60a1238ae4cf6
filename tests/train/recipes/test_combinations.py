"""Parts, objectives, surgeries and attention are combined by configuration alone; methods on FLUX.2."""

import itertools

import pytest
import torch

from uhr.base.errors import UserError
from uhr.models.zoo import get
from uhr.train.data.names import NamedPath
from uhr.train.recipes import resolve
from uhr.train.run.job import start
from uhr.train.run.trainer import Trainer

STEP = ["runtime.precision=float32", "runtime.gradient_checkpointing=false", "batch.size=1", "batch.micro=1"]

PARTS = {
    "lora": "{kind: lora, rank: 4, alpha: 4, targets: attention}",
    "minor": "{kind: singular-components, rank: 4, targets: attention, components: minor}",
    "major": "{kind: singular-components, rank: 4, targets: all-linear, components: major}",
    "guide": "{kind: token-masked-lora, rank: 4, alpha: 4, targets: qkv}",
    "backbone": "{kind: backbone}",
}
OBJECTIVES = ("flow", "distillation", "reverse-distillation", "wavelet", "snr-huber-wavelet")
SURGERIES = {
    "plain": [],
    "ntk": ["surgeries=[{surgery: rope-ntk, factor: 10.0}]", "proportional=true"],
    "resonance": ["surgeries=[{surgery: rope-resonance, window: 4}]"],
    "yarn": ["surgeries=[{surgery: rope-yarn, window: 4}]", "proportional=true"],
}


def step(name, sets, model, data, out):
    """One step of a recipe: its line of the log, and whether each parameter moved."""
    recipe = resolve(name, None, [*STEP, *sets])
    given = [NamedPath(use.data, data) for phase in recipe.phases for use in phase.data]
    trainer = Trainer(start(recipe, str(model), list(dict.fromkeys(given)), out))
    before = {key: p.detach().clone() for key, p in trainer.state.parameters.items()}
    line = trainer.step()
    moved = {key: not torch.equal(p, before[key]) for key, p in trainer.state.parameters.items()}
    return trainer, line, moved


@pytest.mark.parametrize("part", PARTS)
def test_a_part_trains_by_every_objective_under_every_surgery(part, encoded, tiny_flux, tmp_path):
    for number, objective in enumerate(OBJECTIVES):
        kind = list(SURGERIES)[(number + list(PARTS).index(part)) % len(SURGERIES)]
        changes = list(SURGERIES[kind])
        if part == "guide":
            changes = [change for change in changes if "proportional" not in change]
            changes += ["windows={ratio: 4}", "sampling.sampler=ultragen"]
        sets = [f"trainable={PARTS[part]}", f"phases.main.objective={objective}", *changes]
        trainer, line, moved = step("lora", sets, tiny_flux, encoded, tmp_path / objective)
        assert torch.isfinite(torch.tensor(line["loss"])), objective
        surgeries = [entry["surgery"] for entry in trainer.model.surgeries]
        assert [name for name in surgeries if name.startswith("rope-")] == [
            change.partition("surgery: ")[2].split(",")[0] for change in changes if "surgery: " in change
        ]
        if objective == "distillation":
            # it begins as its own teacher, and has nothing to learn
            assert line["loss"] < 1e-10
        else:
            assert sum(moved.values()) >= len(moved) // 3, (objective, kind)


def test_urae_with_ultrafluxs_positions_and_loss_is_four_values(encoded, tiny_flux, tmp_path):
    sets = [
        "phases.main.resolution=null",
        "surgeries=[{surgery: rope-resonance, window: 64}]",
        "proportional=false",
        "phases.main.objective={kind: snr-huber-wavelet, gamma: 3.0}",
    ]
    trainer, line, moved = step("urae-4k@paper", sets, tiny_flux, encoded, tmp_path / "run")
    assert line["parts"].keys() == {"huber"}
    assert all(moved.values())
    names = [entry["surgery"] for entry in trainer.model.surgeries]
    assert names == ["rope-resonance", "singular-components"]


def test_proportional_attention_reaches_the_calls_of_training(encoded, tiny_flux, tmp_path):
    losses = [
        step("lora", [f"proportional={value}"], tiny_flux, encoded, tmp_path / value)[1]["loss"]
        for value in ("true", "false")
    ]
    assert losses[0] != losses[1]


ON_KLEIN = ["family=flux2", "guidance={kind: cfg, scale: null}"]


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("gca-stage2", ["init.after=null"]),
        ("urae-2k", ["phases.main.resolution=null"]),
        ("urae-4k@paper", ["phases.main.resolution=null"]),
        ("ultragen", []),
        ("ultraflux-stage1", ["phases.stage1.resolution=null"]),
    ],
)
def test_methods_run_on_klein_base(name, more, encoded2, klein_base, tmp_path):
    from uhr.train.recipes import recipe

    assert recipe(name).changes_for(get("tiny-flux2-base")) == ON_KLEIN
    _, line, moved = step(name, [*ON_KLEIN, *more], klein_base, encoded2, tmp_path / "run")
    assert torch.isfinite(torch.tensor(line["loss"]))
    assert sum(moved.values()) >= len(moved) // 3


@pytest.mark.parametrize("model", ["flux2-klein-base-9b", "flux2-klein-4b", "flux1-schnell"])
def test_reverse_distillation_says_why_it_needs_a_guidance_input(model):
    with pytest.raises(UserError) as error:
        resolve("gca-stage1").check(get(model))
    assert "recovers the field of a guidance-distilled model" in str(error.value)
    assert "as gca-stage2 does with --set init.after=null" in str(error.value)


def test_every_pair_of_part_and_surgery_is_among_the_steps():
    found = {
        (part, list(SURGERIES)[(number + place) % len(SURGERIES)])
        for place, part in enumerate(PARTS)
        for number in range(len(OBJECTIVES))
    }
    assert found == set(itertools.product(PARTS, SURGERIES))
