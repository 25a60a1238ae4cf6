import ast
import math
import sys
from pathlib import Path

import pytest

import uhr.train
from uhr.base.config import Config, build
from uhr.base.errors import UserError
from uhr.models.adapters.surgeries import AdapterSurgery
from uhr.models.zoo import ModelSpec, get
from uhr.train.encode.config import EncodeConfig
from uhr.train.objectives.wavelet import Wavelet
from uhr.train.recipes import NAMES, describe, print_description, recipe, resolve
from uhr.train.recipes.core import base as recipe_module
from uhr.train.recipes.core.base import Phase, Recipe, leaves
from uhr.train.trainable.adapters import Lora


@pytest.mark.parametrize("name", NAMES)
def test_every_value_of_a_recipe_names_its_source(name):
    rows = describe(recipe(name))
    assert len(rows) > 25
    assert not [row["path"] for row in rows if not row["source"]]


def test_a_value_that_was_changed_says_so(tmp_path):
    resolved = resolve("lora", None, ["phases.main.lr=0.5", "seed=0"])
    sources = {row["path"]: row["source"] for row in describe(resolved)}
    assert sources["phases.0.lr"] == "set by you"
    assert sources["seed"] == "ours"


def test_a_file_holds_only_differences_and_the_command_line_comes_last(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(
        "recipe: lora\nadapter: {rank: 8}\nphases: {main: {steps: 50, timesteps: {shift: 6}}}\nseed: 3\n"
    )
    found = resolve(None, file, ["seed=4"])
    assert found == resolve("lora", file, ["seed=4"])
    assert (found.trainable.rank, found.trainable.alpha) == (8, 16)
    assert (found.phases[0].steps, found.phases[0].timesteps.shift, found.phases[0].lr) == (50, 6, 1e-4)
    assert found.seed == 4


@pytest.mark.parametrize(
    ("text", "sets", "message"),
    [
        ("recipe: lora\ntrainabel: {rank: 8}\n", [], "unknown key 'trainabel': did you mean trainable"),
        ("recipe: lora\nphases: {mian: {steps: 5}}\n", [], "unknown entry 'mian': did you mean main"),
        ("adapter: {rank: 8}\n", [], "begin it with 'recipe: NAME'"),
        (
            "recipe: lora\n",
            ["phases.main.stepz=3"],
            r"unknown key 'phases\.0\.stepz': did you mean phases\.0\.steps",
        ),
        ("recipe: lora\n", ["batch.remainder=keep"], "batch.remainder"),
        ("recipe: lora\n", ["phases.main.steps=0"], "phases.0.steps"),
        ("recipe: lorra\n", [], "unknown recipe 'lorra': did you mean lora"),
    ],
)
def test_a_mistake_is_one_line_that_names_its_place(tmp_path, text, sets, message):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=message):
        resolve(None, file, sets)


def test_a_file_for_another_recipe_is_refused(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("recipe: lora\n")
    with pytest.raises(UserError, match="is for recipe 'lora', not 'urae'"):
        resolve("urae", file)


def test_a_recipe_of_the_users_own_is_named_by_import_path(tmp_path, monkeypatch):
    (tmp_path / "my_recipes.py").write_text(
        "from uhr.train.recipes.lora import RECIPE\n"
        "def mine():\n"
        "    return RECIPE.model_copy(update={'name': 'mine', 'seed': 7})\n"
        "OTHER = 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert resolve("my_recipes:mine").seed == 7
    assert resolve("my_recipes:mine", None, ["seed=8"]).seed == 8
    with pytest.raises(UserError, match="'my_recipes:OTHER' is a int"):
        resolve("my_recipes:OTHER")
    with pytest.raises(UserError, match="did you mean mine"):
        resolve("my_recipes:mien")
    sys.modules.pop("my_recipes")


def test_guidance_has_no_default():
    tree = recipe("lora").model_dump(mode="json")
    del tree["guidance"]
    with pytest.raises(UserError, match="'guidance' is missing"):
        build(Recipe, tree, "recipe")


@pytest.mark.parametrize("sets", [["guidance.scale=null"], ["guidance.kind=none"]])
def test_guidance_is_a_kind_with_the_scale_that_belongs_to_it(sets):
    with pytest.raises(UserError, match="scale belongs to kind 'embedded'"):
        resolve("lora", None, sets)


def test_guidance_must_be_what_the_model_takes():
    dev, schnell = get("flux1-dev"), get("flux1-schnell")
    plain = "guidance={kind: none, scale: null}"
    resolve("lora").check(dev)
    resolve("lora", None, [plain]).check(schnell)
    with pytest.raises(
        UserError, match=r"flux1-schnell takes 'none': --set 'guidance={kind: none, scale: null}'"
    ):
        resolve("lora").check(schnell)
    with pytest.raises(
        UserError, match=r"flux1-dev takes 'embedded': --set 'guidance={kind: embedded, scale: 1.0}'"
    ):
        resolve("lora", None, [plain]).check(dev)


def test_targets_are_a_set_of_the_model_or_suffixes():
    dev = get("flux1-dev")
    assert resolve("lora").trainable.suffixes(dev) == dev.lora_target_sets["attention"]
    assert resolve("lora", None, ["trainable.targets=[to_q]"]).trainable.suffixes(dev) == ("to_q",)
    with pytest.raises(UserError, match="unknown set of targets 'atention': did you mean attention"):
        resolve("lora", None, ["trainable.targets=atention"]).check(dev)


def test_the_adapter_of_an_earlier_version_is_read_as_the_trainable_part(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("recipe: lora\nadapter: {rank: 8}\nphases: {main: {objective: wavelet}}\n")
    found = resolve(None, file, ["adapter.targets=[to_q]"])
    assert found.trainable == Lora(rank=8, alpha=16, targets=("to_q",))
    assert found.phases[0].objective == Wavelet()
    old = {
        **recipe("lora").model_dump(mode="json"),
        "adapter": {"rank": 4, "alpha": 2, "targets": "attention"},
    }
    del old["trainable"], old["windows"]
    assert build(Recipe, old, "run.json").trainable == Lora(rank=4, alpha=2, targets="attention")


def test_an_unknown_surgery_or_key_of_one_is_refused_when_the_recipe_is_read():
    with pytest.raises(UserError, match=r"surgeries\.0: unknown key 'windw': did you mean window"):
        resolve("lora", None, ["surgeries=[{surgery: rope-resonance, windw: 64}]"])
    with pytest.raises(UserError, match=r"unknown surgery 'rope-resonanse': did you mean rope-resonance"):
        resolve("lora", None, ["surgeries=[{surgery: rope-resonanse, window: 64}]"])
    with pytest.raises(UserError, match=r"surgeries\.0: 'surgery' is None"):
        resolve("lora", None, ["surgeries=[{window: 64}]"])


def test_an_adapter_among_the_surgeries_is_refused_since_it_would_not_be_trained():
    entry = "{surgery: lora, rank: 4, alpha: 4, targets: [to_q]}"
    with pytest.raises(UserError, match="'lora' is in surgeries, where it would not be trained"):
        resolve("lora", None, [f"surgeries=[{entry}]"]).check(get("flux1-dev"))


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        ("phases.main.objective=flwo", "unknown objective 'flwo': did you mean flow"),
        ("phases.main.objective={kind: flow, gamma: 3}", "objective 'flow': unknown key 'gamma'"),
        ("phases.main.objective={kind: snr-huber-wavelet, gamma: -1}", r"'gamma' should be greater than 0"),
        ("phases.main.objective={gamma: 5}", "objective: 'kind' is None"),
        ("phases.main.objective=3", "objective 3: write it as"),
        ("phases.main.objective=math:sqrt", "objective 'math:sqrt' is not one"),
        ("trainable.kind=lorra", "unknown trainable part 'lorra': did you mean lora"),
        ("trainable.kind=singular-components", "trainable part 'singular-components': unknown key 'alpha'"),
    ],
)
def test_a_mistake_in_what_is_chosen_by_kind_names_the_kind_and_the_key(sets, message):
    with pytest.raises(UserError, match=message):
        resolve("lora", None, [sets])


def test_an_objective_and_a_part_of_the_users_own_are_named_by_import_path(tmp_path, monkeypatch):
    (tmp_path / "my_parts.py").write_text(
        "from uhr.train.objectives.flow import Flow\n"
        "from uhr.train.trainable.adapters import Lora\n"
        "class Twice(Flow):\n"
        "    factor: float = 2.0\n"
        "class Mine(Lora):\n"
        "    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    sets = ["phases.main.objective={kind: 'my_parts:Twice', factor: 3}", "trainable.kind=my_parts:Mine"]
    found = resolve("lora", None, sets)
    assert found.phases[0].objective.factor == 3
    again = Recipe.model_validate(found.model_dump(mode="json"))
    assert again.model_dump() == found.model_dump()
    assert type(again.trainable).__name__ == "Mine"
    rows = {row["path"]: row["value"] for row in describe(found)}
    assert rows["phases.0.objective.kind"] == "my_parts:Twice"
    sys.modules.pop("my_parts")


def test_warmup_rises_linearly_to_the_rate():
    phase = resolve("lora", None, ["phases.main.warmup=4", "phases.main.lr=1"]).phases[0]
    assert [phase.lr_at(step) for step in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]


def test_schedules_fall_from_the_rate_after_the_warm_up_to_nearly_zero():
    def rates(kind):
        sets = [
            "phases.main.warmup=2",
            "phases.main.lr=1",
            "phases.main.steps=6",
            f"phases.main.schedule={kind}",
        ]
        phase = resolve("lora", None, sets).phases[0]
        return [phase.lr_at(step) for step in range(6)]

    assert rates("constant") == [0.5, 1, 1, 1, 1, 1]
    assert rates("linear") == [0.5, 1, 1, 0.75, 0.5, 0.25]
    half = math.sqrt(0.5)
    assert rates("cosine") == pytest.approx([0.5, 1, 1, (1 + half) / 2, 0.5, (1 - half) / 2])
    with pytest.raises(UserError, match="warmup 6 leaves no step for the schedule"):
        resolve("lora", None, ["phases.main.schedule=linear", "phases.main.warmup=6", "phases.main.steps=6"])


def test_steps_belong_to_phases_in_order():
    base = recipe("lora")
    phases = tuple(base.phases[0].model_copy(update={"steps": n}) for n in (2, 3))
    two = base.model_copy(update={"phases": phases})
    assert [two.phase_of(step) for step in range(5)] == [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)]
    assert [two.done_by_phase(step) for step in range(6)] == [[0, 0], [1, 0], [2, 0], [2, 1], [2, 2], [2, 3]]


def test_every_field_of_every_configuration_is_read_somewhere():
    # an option that is stored and never read is worse than none (the next test file shows what each one does)
    configs = (m for m in vars(recipe_module).values() if isinstance(m, type) and issubclass(m, Config))
    models = [m for m in configs if not issubclass(m, (AdapterSurgery, ModelSpec))]
    assert Phase in models
    fields = {name for model in [*models, EncodeConfig] for name in model.model_fields}
    read = set()
    for path in Path(uhr.train.__path__[0]).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                read.add(node.attr)
    assert not fields - read


def test_leaves_are_the_values_of_a_tree():
    tree = {"a": {"b": 1, "c": []}, "d": [{"e": 2}, {"e": 3}], "f": [1, 2]}
    assert dict(leaves(tree)) == {"a.b": 1, "a.c": [], "d.0.e": 2, "d.1.e": 3, "f": [1, 2]}


def test_values_without_effect_are_shown_only_where_a_user_set_them(capsys):
    def shown(*sets):
        found = resolve("gca-stage2", None, list(sets))
        print_description(found, describe(found))
        return capsys.readouterr().out

    plain = shown("phases.main.timesteps.density=uniform")
    for name in ("timesteps.mean", "timesteps.std", "timesteps.scale", "data.0.where", "data.1.repeats"):
        assert f"phases.0.{name} " not in plain
    assert "phases.0.data.0.weight " in plain
    mode = shown("phases.main.timesteps={density: mode, scale: 1.0, mean: 0.5}")
    assert "phases.0.timesteps.scale " in mode
    assert "phases.0.timesteps.mean " in mode
    assert "phases.0.timesteps.std " not in mode
