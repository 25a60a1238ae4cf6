"""Keys of recipes and options of commands that do not exist are refused, and the nearest one is named."""

import re

import pytest
import typer

from uhr.base.errors import UserError
from uhr.cli import main
from uhr.models.specs.registry import SPECS
from uhr.train.cli import app
from uhr.train.recipes import NAMES, leaves, resolve

SPEC = {"flux1": "flux1-dev", "flux2": "flux2-klein-base-4b"}


@pytest.mark.parametrize("name", NAMES)
def test_each_key_of_a_recipe_that_is_misspelt_is_refused_with_the_right_one(name):
    given, tried = resolve(name), set()
    spec = SPECS[SPEC[given.family]]
    for path, _ in leaves(given.model_dump(mode="json")):
        *before, last = path.split(".")
        wrong = ".".join([*before, last[:-1]])
        # names of columns are no keys, and the sampler's options are checked when a run begins
        free = path.startswith(("captions.", "sampling.options.")) or before[-1:] == ["lowest"]
        if last.isdigit() or last == "surgery" or free or wrong in tried:
            continue
        tried.add(wrong)
        with pytest.raises(UserError, match=rf"unknown key '.*{last[:-1]}'.*\b{last}\b"):
            resolve(name, None, [f"{wrong}=1"]).check(spec)
    assert len(tried) > 30


def test_each_option_of_a_command_that_is_misspelt_is_refused_with_the_right_one(capsys):
    group = typer.main.get_command(app)
    tried = 0
    for command, each in group.commands.items():
        for option in (name for parameter in each.params for name in parameter.opts if name.startswith("--")):
            assert main(["train", command, option[:-1], "1"]) == 2
            shown = capsys.readouterr().err
            assert re.search(rf"No such option: {option[:-1]} .*{option}\b", shown), shown
            tried += 1
    assert tried > 40
