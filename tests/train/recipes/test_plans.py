"""What each recipe trains of FLUX.1-dev, from its shapes alone."""

import pytest

from uhr.train.recipes import NAMES, recipe, resolve
from uhr.train.run.estimate.estimate import estimate

QKV = 16 * (3072 + 3072)
"""Parameters of one adapted projection at rank 16."""

TRAINED = {
    "lora": (190, 18_677_760),
    "gca-stage1": (19 * 12 + 38 * 3, None),
    "gca-stage2": (19 * 12 + 38 * 3, None),
    "urae-2k": (190, 18_677_760),
    "urae-4k@paper": (190, 18_677_760),
    "urae-4k@code": (190, 18_677_760),
    "ultragen": (57 * 3, 57 * 3 * QKV),
    "ultraflux-stage1": (0, 11_901_408_320),
    "ultraflux-stage2": (0, 11_901_408_320),
    "ultraflux": (0, 11_901_408_320),
}


@pytest.mark.parametrize("name", TRAINED)
def test_a_plan_counts_what_is_trained(name):
    plan = estimate(recipe(name), "flux1-dev", [])
    linears, trained = TRAINED[name]
    assert plan["parameters"]["linears"] == linears
    if trained is not None:
        assert plan["parameters"]["trainable"] == trained
    assert plan["memory"]["total"] > plan["parameters"]["trainable"] * 16
    assert plan["steps"] == recipe(name).steps


def test_the_plan_of_klein_base():
    plan = estimate(recipe("lora-flux2"), "flux2-klein-base-4b", [])
    assert (plan["parameters"]["linears"], plan["steps"]) == (5 * 4 + 20, 2000)


def test_the_short_name_says_which_recipe_it_is(capsys):
    assert resolve("urae-4k").name == "urae-4k@code"
    assert "recipe urae-4k is urae-4k@code; the other is urae-4k@paper" in capsys.readouterr().err


def test_paper_and_code_of_urae_differ_where_they_are_said_to():
    paper, code = recipe("urae-4k@paper"), recipe("urae-4k@code")
    one, two = paper.model_dump(mode="json"), code.model_dump(mode="json")
    differs = {key for key in one if one[key] != two[key]}
    assert differs == {"name", "about", "init", "phases"}
    assert (paper.steps, code.steps) == (2000, 10_000)
    assert (paper.init.after, code.init.use, code.init.after) == (None, "fuse", "urae-2k")


def test_guidance_is_in_every_recipe_and_every_plan_is_tested():
    backbones = [name for name in NAMES if name != "vae-f16"]
    assert {name: recipe(name).guidance.kind for name in backbones} == {
        name: "cfg" if name == "lora-flux2" else "embedded" for name in backbones
    }
    # the plan of the VAE: run/vae/test_plan.py
    assert {*TRAINED, "lora-flux2", "vae-f16"} == set(NAMES)
