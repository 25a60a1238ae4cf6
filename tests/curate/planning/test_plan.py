"""The plan: checked and ordered before anything runs, and equal where the rows will be."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from uhr.base.errors import UserError
from uhr.curate import faults
from uhr.curate.config import PipelineConfig, load, preset_names
from uhr.curate.planning.plan import CurationPlan


def plan_of(strict: bool = False, **tree) -> CurationPlan:
    return CurationPlan.of(PipelineConfig.model_validate({"name": "test", **tree}), strict)


WITHOUT_SAFETY = ["stages.safety=null", "rules.nsfw=null"]
"""Settings for the presets that do not run without a model for it."""


def preset(name: str) -> PipelineConfig:
    return load(name, WITHOUT_SAFETY if name in ("multiaspect-4k", "urae-4k") else [])


def order(plan: CurationPlan) -> list[str]:
    """Stages and rules in the order in which they run."""
    stages = [f"[{rule.name}]" for rule in plan.first]
    for step in plan.stages:
        stages += [step.label, *(f"[{rule.name}]" for rule in step.rules)]
    return stages


def stages(*names: str | dict) -> list[dict]:
    return [{"stage": name} if isinstance(name, str) else name for name in names]


def test_a_header_stage_over_a_column_of_the_pixels_keeps_its_place():
    """A policy of licences judges an image before anything is measured of it, wherever `rights` is listed."""
    rules = {"licence": "license_problem IS NULL"}
    for listed in (("rights", "licence", "decode", "entropy"), ("licence", "rights", "decode", "entropy")):
        plan = plan_of(stages=stages("header", *listed), rules=rules)
        assert order(plan) == ["header", "rights", "licence", "[licence]", "decode", "entropy"]


def test_what_the_header_settles_comes_before_the_decode_and_rules_right_after_their_columns():
    plan = plan_of(
        stages=stages("decode", "entropy", "exact_duplicates", "flatness", "geometry", "header"),
        rules={
            "unique": "dup_rank = 0",
            "busy": "entropy > 4 AND flat_fraction < 0.5",
            "entropy": "entropy > 3",
            "large": "megapixels > 1",
            "named": "uri NOT LIKE '%thumb%'",
            "wide": "width > 100 AND caption IS NOT NULL",
        },
    )
    assert order(plan) == [
        "[named]",
        "geometry",
        "[large]",
        "header",
        "[wide]",
        "decode",
        "entropy",
        "[entropy]",
        "flatness",
        "[busy]",
        "exact_duplicates",
        "[unique]",
    ]
    assert [rule.name for rule in plan.rules] == ["named", "large", "wide", "entropy", "busy", "unique"]


def test_a_header_stage_that_waits_for_a_number_from_the_pixels_runs_after_it(outside):
    plan = plan_of(stages=stages("header", f"{outside}:Waits", "decode", "entropy"))
    assert order(plan) == ["header", "decode", "entropy", f"{outside}:Waits"]
    assert [step.label for step in plan.header] == ["header"]


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_gives_a_plan_here(name):
    config = preset(name)
    plan = CurationPlan.of(config)
    assert plan.header[0].label == "header"
    expected = set(config.rules).union(*(entry.rules for entry in config.stages), *config.channels.values())
    assert {rule.name for rule in plan.rules} | {idle.name for idle in plan.idle} == expected


@pytest.mark.parametrize("name", ["multiaspect-4k", "urae-4k"])
@pytest.mark.parametrize("sets", [(), ("stages.safety.if_missing=skip",), ("stages.safety=null",)])
def test_a_preset_of_a_published_set_does_not_run_without_safety(name, sets):
    with pytest.raises(UserError, match=r"safety|nsfw_prob"):
        CurationPlan.of(load(name, sets))


RULE = {"where": "faces > 0", "required": True}
FACES = {"stage": "nowhere.stages:Faces", "if_missing": "skip", "adds": ["faces"]}


def test_a_channel_without_its_required_rule_is_left_out():
    channels = {"general": {"size": "width > 1"}, "people": {"faces": RULE, "large": "width > 9"}}
    plan = plan_of(stages=stages("header", FACES), channels=channels)
    assert plan.channels == ("general",)
    assert [rule.name for rule in plan.idle] == ["faces", "large"]
    assert "channel 'people' requires rule 'faces': stage" in plan.idle[0].why
    for alone in (
        {"people": channels["people"]},
        {**channels, "people": {"people_sources": "1 = 1", "f": RULE}},
    ):
        with pytest.raises(UserError, match="requires rule"):
            plan_of(stages=stages("header", FACES), channels=alone)
    with pytest.raises(UserError, match="rule 'faces' is required, and stage"):
        plan_of(stages=stages("header", FACES), rules={"faces": RULE})


def test_a_stage_that_is_not_there_is_skipped_with_its_rules_and_those_that_need_it():
    plan = plan_of(
        stages=stages(
            "header",
            {"stage": "no.module:B", "name": "beauty", "if_missing": "skip", "adds": ["beauty"], "x": 1},
            {"stage": "nowhere.stages:Faces", "if_missing": "skip", "adds": ["faces"]},
            {"stage": "rank", "of": "beauty", "if_missing": "skip"},
        ),
        rules={"quality": "beauty > 4", "best": "beauty_rank < 0.3", "mixed": "faces > 0 OR width > 5"},
    )
    assert order(plan) == ["header"]
    assert {s.label: s.adds for s in plan.skipped} == {
        "beauty": ("beauty",),
        "nowhere.stages:Faces": ("faces",),
        "rank": ("beauty_rank",),
    }
    assert {idle.name: idle.why.split(":")[0] for idle in plan.idle} == {
        "quality": "stage 'beauty' was skipped",
        "best": "stage 'rank' was skipped",
        "mixed": "stage 'nowhere.stages",
    }
    assert "beauty" not in plan.schema.names


def test_a_skipped_stage_s_column_may_come_from_another_stage(outside):
    entries = stages(
        {"stage": "nowhere.stages:Red", "if_missing": "skip", "adds": ["redness"]},
        f"{outside}:Redness",
        "header",
    )
    plan = plan_of(stages=entries, rules={"red": "redness > 3"})
    assert [rule.name for rule in plan.rules] == ["red"]


def test_strict_makes_whatever_would_be_skipped_an_error():
    entries = stages("header", {"stage": "q_align", "if_missing": "skip", "adds": ["q_align"]})
    with pytest.raises(UserError, match="--strict: q_align would be skipped"):
        plan_of(strict=True, stages=entries)


@pytest.mark.parametrize(
    ("entries", "rules", "message"),
    [
        (["headr"], {}, "unknown stage 'headr': did you mean header"),
        (["nowhere.stages:Faces"], {}, "stage 'nowhere.stages:Faces' cannot be imported"),
        (["json:loads"], {}, "stage 'json:loads' is not a stage"),
        (["header", {"stage": "flatness", "pach": 3}], {}, "unknown key 'pach': did you mean patch"),
        (["header", {"stage": "flatness", "patch": "x"}], {}, "stage 'flatness': 'patch'"),
        (["header", "header"], {}, "'header' adds column 'format', which stage 'header' adds too"),
        (
            ["exact_duplicates", "header"],
            {},
            "needs column 'content_hash', which no stage adds: put stage 'decode'",
        ),
        (
            ["header", {"stage": "rank", "of": "widht"}],
            {},
            "needs column 'widht', which no stage adds: did you mean width",
        ),
        (
            ["header", {"stage": "rank", "of": "x_rank"}, {"stage": "rank", "of": "x"}],
            {},
            "needs column 'x_rank', which stage 'rank' adds only after it|needs column 'x'",
        ),
        (
            [
                "header",
                {"stage": "nowhere.stages:Q", "name": "q", "if_missing": "skip", "adds": ["q"]},
                {"stage": "rank", "of": "q"},
            ],
            {},
            "column 'q' of the skipped stage 'q': give 'rank' if_missing: skip too",
        ),
        (
            [{"stage": "q_align", "if_missing": "skip", "adds": ["q_align"]}],
            {},
            "no stage can run here",
        ),
        (
            ["header", {"stage": "q_aling", "if_missing": "skip", "adds": ["q_align"]}],
            {},
            "unknown stage 'q_aling': did you mean q_align",
        ),
        (["header", {"stage": "json:Faces", "if_missing": "skip"}], {}, "unknown stage in json 'Faces'"),
        (["header"], {"truncated": "width > 1"}, "rule 'truncated' has the name of a kind of fault"),
        (["header"], {"no value": "width > 1"}, "rule 'no value' has the name of a kind of fault"),
        (["exact_duplicates"], {}, "needs column 'content_hash'"),
        (["header"], {"r": "widht > 3"}, "rule 'r': unknown column 'widht': did you mean width"),
        (["header"], {"r": "entropy > 3"}, "rule 'r': no stage adds column 'entropy': put stage 'entropy'"),
        (["header"], {"r": "status = 'kept'"}, "rule 'r': unknown column 'status'"),
        (["header"], {"r": "width"}, "rule 'r': 'width' is INTEGER, not true or false"),
        (["header"], {"r": "width >"}, "rule 'r': 'width >' is not an SQL condition"),
        (["header"], {"r": "width > (SELECT 1)"}, "rule 'r': .* contains a subquery"),
        (["header"], {"r": "format > 3"}, "rule 'r': .* compares format, a text, with a number"),
        (["header"], {"r": ""}, "rule 'r': the condition is empty"),
    ],
)
def test_a_mistake_is_one_line_before_anything_runs(entries, rules, message):
    with pytest.raises(UserError, match=message) as error:
        plan_of(stages=stages(*entries), rules=rules)
    assert "\n" not in str(error.value)


def test_every_kind_of_fault_that_the_code_writes_is_one_that_no_rule_may_bear(tmp_path):
    curate = Path(faults.__file__).resolve().parent
    found = set()
    for folder in (curate, curate.parent / "uhr" / "pixels", curate.parent / "uhr" / "runtime"):
        for path in folder.rglob("*.py"):
            for kind in re.findall(r'PixelFault\(\s*"([a-z ]+)"|, "(unreadable)", f"', path.read_text()):
                assert set(kind) - {""} <= faults.KINDS, path
                found |= set(kind)
    assert {"truncated", "corrupt", "unsupported"} <= found


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("pass", "Broken has no method annotate: define it"),
        (
            "annotate = len\n    def __init__(self, params): raise RuntimeError('no\\nluck')",
            r"cannot be made \(RuntimeError: no luck\): fix Broken.__init__",
        ),
        ("annotate = len\n    def __init__(self): pass", r"cannot be made \(TypeError: .*given"),
    ],
)
def test_a_stage_of_the_user_s_that_cannot_be_made_is_one_line(outside, tmp_path, body, message):
    package = tmp_path / "elsewhere" / outside / "__init__.py"
    package.write_text(
        package.read_text() + f"\nclass Broken(FrameStage):\n    name = 'broken'\n    {body}\n"
    )
    with pytest.raises(UserError, match=message) as error:
        plan_of(stages=stages("header", f"{outside}:Broken"))
    assert f"stage '{outside}:Broken'" in str(error.value)
    assert "\n" not in str(error.value)


def test_two_stages_may_not_add_columns_that_sql_cannot_tell_apart(outside):
    with pytest.raises(UserError, match="adds column 'Width', which stage 'header' adds too"):
        plan_of(stages=stages("header", f"{outside}:Shouting"))


BASE: dict[str, Any] = {
    "stages": stages("header", "decode", "flatness"),
    "rules": {"a": "width > 1", "b": "height > 1"},
}


@pytest.mark.parametrize(
    "change",
    [
        {"stages": stages("header", "decode", {"stage": "flatness", "patch": 64})},
        {"stages": stages("header", "decode")},
        {"rules": {"a": "width > 1", "b": "height > 2"}},
        {"rules": {"b": "height > 1", "a": "width > 1"}},
        {"rules": {"a": "width > 1", "c": "height > 1"}},
        {"limits": {"pixels": 1000}},
        {"limits": {"seconds": 1}},
        {"preview": 64},
        {"sidecars": {"caption": ["text"]}},
    ],
)
def test_whatever_changes_rows_changes_the_fingerprint(change):
    assert plan_of(**BASE).fingerprint != plan_of(**{**BASE, **change}).fingerprint


@pytest.mark.parametrize("change", [{"name": "other"}, {"description": "words"}, {"unit": 7}])
def test_what_changes_no_row_leaves_the_fingerprint(change):
    assert plan_of(**BASE).fingerprint == plan_of(**{**BASE, **change}).fingerprint


@pytest.mark.parametrize("name", preset_names())
def test_the_resolved_pipeline_is_a_pipeline_that_gives_the_same_plan(name, tmp_path):
    plan = CurationPlan.of(preset(name))
    path = Path(tmp_path / "resolved.yaml")
    path.write_text(yaml.safe_dump(plan.resolved(), sort_keys=False))
    again = CurationPlan.of(load(str(path)))
    assert again.fingerprint == plan.fingerprint
    assert again.resolved() == plan.resolved()


def test_a_plan_survives_the_way_to_a_worker():
    plan = CurationPlan.of(load("as-is"))
    assert pickle.loads(pickle.dumps(plan)).fingerprint == plan.fingerprint


def test_units_are_small_in_a_small_set_and_never_large_where_images_are_decoded():
    pixels, header = plan_of(**BASE), plan_of(stages=stages("header"))
    assert [pixels.unit_size(n) for n in (1, 1000, 10**6)] == [8, 15, 64]
    assert [header.unit_size(n) for n in (1, 30_000, 10**6)] == [256, 468, 4096]
    assert plan_of(**BASE, unit=5).unit_size(10**6) == 5


def test_the_resources_of_an_entry_are_those_of_its_workers():
    def segment(**resources):
        caption = {"stage": "caption", "server": {"url": "http://a/v1", "model": "m"}, "resources": resources}
        return plan_of(stages=stages("header", "decode", caption), rules={}).passes[0].segments[0]

    found = segment(num_gpus=0.5, accelerator_type="H100", actors=[1, 16], batch_size=32).resources
    assert (found.num_gpus, found.accelerator_type, found.actors) == (0.5, "H100", (1, 16))
    assert found.batch_size == 32
    for wrong in ([4, 2], [0, 1]):
        with pytest.raises(UserError, match=r"stage 'caption': resources.*actors.*comes first") as error:
            segment(actors=wrong)
        assert "\n" not in str(error.value)
