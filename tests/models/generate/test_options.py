"""`uhr sample options` prints every option with its meaning and its true default."""

import json
import subprocess
import sys

import pytest

from uhr.base.config import apply_sets
from uhr.cli import main
from uhr.models.generate.options import options_of
from uhr.models.generate.request import Request
from uhr.models.generate.setup import SamplerChoice
from uhr.models.samplers import SAMPLERS, options_class, sampler_class
from uhr.models.zoo import get


def choice(sampler, **options):
    return SamplerChoice.of(Request(sampler=sampler, model="m", options=options), get("tiny-flux1"))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_option_is_reported_with_its_meaning(sampler):
    options = sampler_class(sampler, "flux1").Options
    entries = options_of(sampler)
    assert {each["name"] for each in entries if "." not in each["name"]} == set(options.model_fields)
    assert [each["name"] for each in entries if not each["meaning"] or not each["values"]] == []


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_defaults_set_by_hand_change_nothing(sampler):
    usual = choice(sampler).options
    sets = [
        f"{each['name']}={json.dumps(each['default'])}"
        for each in options_of(sampler)
        if each["default"] is not None
    ]
    # a part that is off is on once one of its parts is set
    off = {name for name in type(usual).model_fields if getattr(usual, name) is None}
    sets = [each for each in sets if each.partition(".")[0] not in off]
    assert choice(sampler, **apply_sets({}, sets)).options == usual


def test_setting_a_part_leaves_the_other_parts_as_the_sampler_has_them():
    usual = choice("imax").options.toolkit
    changed = choice("imax", toolkit={"ntk": 4}).options.toolkit
    assert changed == usual.model_copy(update={"ntk": 4.0})
    assert usual.text_duplication


def test_the_command_lists_them_for_people_and_machines(capsys):
    assert main(["sample", "options", "sdedit"]) == 0
    out = capsys.readouterr().out
    assert "--set strength=FLOAT  [default: 0.7]" in out
    # a part of what is off has no effect by default
    assert main(["sample", "options", "euler"]) == 0
    shown = capsys.readouterr().out
    assert "--set toolkit={}  [off unless it or one of its parts is set]" in shown
    assert "--set toolkit.ntk=FLOAT  [default once it is on: 10.0]" in shown
    assert main(["sample", "options", "sdedit", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == options_of("sdedit")
    assert main(["sample", "options", "sdedid"]) == 1
    assert "did you mean sdedit?" in capsys.readouterr().err


@pytest.mark.parametrize("family", ["flux1", "flux2"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_options_that_are_listed_are_the_ones_that_the_sampler_takes(sampler, family):
    assert options_class(sampler) is sampler_class(sampler, family).Options


def test_they_are_listed_without_importing_torch():
    code = (
        "import sys; from uhr.cli import main\n"
        "assert main(['sample', 'list']) == main(['sample', 'options', 'ultragen']) == 0\n"
        "assert not {'torch', 'diffusers', 'transformers', 'peft'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
