"""Pipeline YAML: presets, differences, settings of the command line, and one line for every mistake."""

from __future__ import annotations

from pathlib import Path

import pytest

from uhr.base.errors import UserError
from uhr.curate.config import PRESETS, load, preset_names, preset_text


def write(folder: Path, text: str) -> str:
    path = folder / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def labels(config) -> list[str]:
    return [entry.label for entry in config.stages]


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_loads_is_commented_and_names_itself(name):
    config = load(name)
    assert config.name == name
    assert config.description
    text = preset_text(name)
    assert text == (PRESETS / f"{name}.yaml").read_text(encoding="utf-8")
    lines = text.splitlines()
    assert sum("#" in line for line in lines) > len(lines) / 3


def test_quickstart_has_what_the_readme_promises():
    assert load("quickstart").rules == {
        "resolution": "megapixels >= 0.1",
        "flatness": "flat_fraction <= 0.95",
        "entropy": "entropy >= 4",
        "duplicates": "dup_rank = 0",
    }


def test_multiaspect_4k_has_the_thresholds_of_the_paper():
    config = load("multiaspect-4k")
    general, people = config.channels["general"], config.channels["people"]
    assert config.rules["resolution"] == "megapixels >= 8.2944"
    assert general["flatness"] == people["flatness_of_people"] == "flat_fraction <= 0.5"
    assert general["entropy"] == people["entropy_of_people"] == "entropy >= 7.0"
    assert general["quality"] == people["quality_of_people"] == "q_align > 4.0"
    assert general["aesthetics"] == "artimuse_rank < 0.3"
    assert next(iter(config.rules)) == "nsfw"


def test_as_is_rejects_nothing():
    config = load("as-is")
    assert config.rules == config.channels == {}


def test_a_file_that_starts_from_a_preset_holds_only_differences(tmp_path):
    text = """
        preset: quickstart
        stages: {flatness: {patch: 120}, sharpness: null, "mine.stages:Faces": {least: 2}}
        rules: {entropy: null, faces: face_count > 0, resolution: megapixels >= 2}
        limits: {seconds: 5}
    """
    base, mine = load("quickstart"), load(write(tmp_path, text))
    assert mine.name == "mine"
    assert labels(mine) == [n for n in labels(base) if n != "sharpness"] + ["mine.stages:Faces"]
    params = {entry.label: entry.params for entry in mine.stages}
    assert (params["flatness"], params["mine.stages:Faces"]) == ({"patch": 120}, {"least": 2})
    assert list(mine.rules.items()) == [
        ("resolution", "megapixels >= 2"),
        ("flatness", "flat_fraction <= 0.95"),
        ("duplicates", "dup_rank = 0"),
        ("faces", "face_count > 0"),
    ]
    assert (mine.limits.seconds, mine.limits.memory) == (5, base.limits.memory)


def test_a_list_of_stages_replaces_the_preset_s(tmp_path):
    text = "preset: quickstart\nstages: [header]\nrules: {flatness: null, entropy: null}"
    assert labels(load(write(tmp_path, text))) == ["header"]


def test_settings_of_the_command_line_reach_every_place(tmp_path):
    sets = [
        "stages.flatness.patch=64",
        "stages.sharpness=null",
        "rules.entropy=entropy >= 6.5",
        "rules.duplicates=null",
        "rules.new=caption IS NOT NULL",
        "limits.memory=2GiB",
        "preview=0",
    ]
    config = load("quickstart", sets)
    assert next(e.params for e in config.stages if e.label == "flatness") == {"patch": 64}
    assert "sharpness" not in labels(config)
    assert config.rules["entropy"] == "entropy >= 6.5"
    assert list(config.rules)[-1] == "new"
    assert "duplicates" not in config.rules
    assert (config.limits.memory, config.preview) == (2 * 2**30, 0)


def test_a_stage_may_occur_twice_under_two_names(tmp_path):
    text = "stages: [header, {stage: rank, name: by width, of: width}, {stage: rank, of: height}]"
    assert labels(load(write(tmp_path, text))) == ["header", "by width", "rank"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stages: [header]\nrule: {a: b}", "unknown key 'rule': did you mean rules"),
        ("stages: [header]\nlimits: {second: 3}", "unknown key 'limits.second': did you mean limits.second"),
        ("stages: []", "'stages'"),
        ("stages: header", "stages is 'header': write a list"),
        ("preset: quickstart\nstages: header", "stages is 'header': write a list"),
        ("stages: [header]\nrules: [a]", r"rules is \['a'\]: write a mapping"),
        ("preset: quickstart\nrules: [a]", r"rules is \['a'\]: write a mapping"),
        ("name: x", "'stages' is missing|'stages' list should have"),
        ("stages: {header: {}}", "write a list"),
        ("stages: [{patch: 3}]", "'stages.0.stage' is missing"),
        ("stages: [{stage: header, if_missing: maybe}]", "if_missing"),
        ("stages: [header]\nrules: {a: 3}", "rules.a"),
        ("stages: [header]\nlimits: {memory: lots}", "limits.memory"),
        ("stages: [header]\nlimits: {seconds: -1}", "limits.seconds"),
        ("stages: [header]\npreview: big", "preview"),
        ("preset: quickstrt", "unknown preset 'quickstrt': did you mean quickstart"),
        ("preset: quickstart\nstages: {flatnes: null}", "unknown stage 'flatnes': did you mean flatness"),
        ("preset: quickstart\nstages: {flatness: 3}", "stages.flatness is 3"),
        ("stages: [header]\nstages: [decode]", "is given twice"),
        ("[1, 2]", "not a mapping"),
        ("a: b: c", "fix the YAML"),
    ],
)
def test_a_mistake_in_a_file_is_one_line_with_the_file_and_the_way_out(tmp_path, text, message):
    path = write(tmp_path, text)
    with pytest.raises(UserError, match=message) as error:
        load(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("quickstrat", "unknown pipeline 'quickstrat': did you mean quickstart"),
        ("no/such.yaml", "does not exist"),
        ("mine.yml", "does not exist"),
    ],
)
def test_a_pipeline_that_is_not_there_names_those_that_are(name, message):
    with pytest.raises(UserError, match=message):
        load(name)


@pytest.mark.parametrize(("change", "message"), [("rules=5", "rules is 5"), ("stages=5", "stages is 5")])
def test_a_setting_of_the_wrong_shape_is_one_line(change, message):
    with pytest.raises(UserError, match=message):
        load("quickstart", [change])


@pytest.mark.parametrize("name", ["seconds", "pixels", "file_bytes"])
@pytest.mark.parametrize("value", ["0", "-1"])
def test_a_limit_that_no_image_is_within_is_refused(name, value):
    with pytest.raises(UserError, match=rf"'limits.{name}' should be greater than .*\(got {value}\)"):
        load("quickstart", [f"limits.{name}={value}"])


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("3", "should be a condition, or a mapping with `where`"),
        ("{null: keep}", "where' is missing"),
        ("{where: width > 3, null: nope}", "should be 'fail', 'reject' or 'keep' (got 'nope')"),
        ("{where: width > 3, nul: keep}", "unknown key 'rules.x.rule.nul'"),
    ],
)
def test_a_mistake_in_a_rule_is_about_what_was_written(tmp_path, rule, message):
    (tmp_path / "p.yaml").write_text(f"stages: [header]\nrules: {{x: {rule}}}\n")
    with pytest.raises(UserError) as error:
        load(str(tmp_path / "p.yaml"))
    assert message in str(error.value)
