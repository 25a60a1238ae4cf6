"""`uhr curate` as people and machines read it."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil

import pytest
import yaml

from uhr.base.formatting import human_bytes
from uhr.curate.config import preset_names, preset_text
from uhr.curate.stages import NAMES
from uhr.manifests.schema import sample_id


@pytest.fixture
def out(curated):
    return curated[0]


def explained(uhr, out, sample) -> dict:
    code, printed, errors = uhr("curate", "explain", out, sample, "--json")
    assert code == 0, errors
    return json.loads(printed)


def outcomes(explanation: dict) -> dict[str, str]:
    return {rule["rule"]: rule["outcome"] for rule in explanation["rules"]}


def test_explain_follows_an_image_to_its_verdict(uhr, out):
    passed = {"resolution": "pass", "flatness": "pass", "entropy": "pass", "duplicates": "pass"}
    nothing = dict.fromkeys(passed, "not reached")
    expected = {
        "1.jpg": ("kept", passed),
        "trip/same as 1.jpg": ("rejected", {**passed, "duplicates": "fail"}),
        "flat.png": ("rejected", {**nothing, "resolution": "pass", "flatness": "fail"}),
        "small.png": ("rejected", {**nothing, "resolution": "fail"}),
        "truncated.jpg": ("failed", {**nothing, "resolution": "pass"}),
        "notes.txt": ("failed", nothing),
        "gone.jpg": ("failed", nothing),
    }
    for uri, (status, rules) in expected.items():
        explanation = explained(uhr, out, uri)
        assert (explanation["status"], outcomes(explanation)) == (
            status,
            {**rules, "quality": "not evaluated"},
        ), uri


def test_explain_shows_what_each_rule_looked_at_and_every_column_under_its_stage(uhr, out):
    explanation = explained(uhr, out, sample_id("1.jpg")[:12])
    assert explanation["uri"] == "1.jpg"
    rules = {rule["rule"]: rule for rule in explanation["rules"]}
    assert rules["resolution"]["values"] == {"megapixels": 0.12}
    assert rules["quality"]["why"].startswith("stage 'q_align' was skipped")
    by_stage = {column["column"]: column["stage"] for column in explanation["columns"]}
    assert (by_stage["caption"], by_stage["width"], by_stage["entropy"]) == ("source", "header", "entropy")
    code, printed, _ = uhr("curate", "explain", out, "small.png")
    assert code == 0
    assert "rejected: resolution" in printed
    assert "fail           resolution: megapixels >= 0.1   [megapixels = 0.0024]" in printed
    assert "not reached    entropy" in printed
    assert "width              60 px" in printed


def test_verify_evaluates_the_rules_again(uhr, out):
    assert uhr("manifest", "verify", out)[0] == 0
    code, printed, _ = uhr("manifest", "verify", out, "--rules", "--json")
    assert code == 0
    assert json.loads(printed)["faults"] == []
    assert json.loads(printed)["checks"][-1] == "rules"


def test_explain_of_what_is_not_there_is_one_line(uhr, out, tmp_path):
    assert uhr("curate", "explain", out, "nobody.jpg")[2].startswith("uhr: no sample 'nobody.jpg'")
    code, _, errors = uhr("curate", "explain", tmp_path / "nowhere", "x")
    assert code == 1
    assert errors.count("\n") == 1


def test_status_of_a_finished_run_and_of_none(uhr, out, tmp_path):
    code, printed, _ = uhr("curate", "status", out)
    assert code == 0
    assert printed == f"{out}: finished\n17 of 17 files\nkept 8, rejected 5, failed 4\n"
    assert json.loads(uhr("curate", "status", out, "--json")[1])["state"] == "finished"
    code, _, errors = uhr("curate", "status", tmp_path / "nowhere")
    assert code == 1
    assert "contains no run" in errors


def test_a_dry_run_prints_the_plan_and_writes_nothing(uhr, images, tmp_path):
    arguments = (
        "curate",
        "run",
        "multiaspect-4k",
        "--set",
        "stages.safety=null",
        "--set",
        "rules.nsfw=null",
        "--source",
        images,
        "--out",
        tmp_path / "out",
        "--dry-run",
    )
    code, printed, _ = uhr(*arguments)
    assert code == 0
    assert not (tmp_path / "out").exists()
    lines = printed.splitlines()
    assert "17 files" in printed
    assert "in 3 units of 8" in printed
    at = [
        next(i for i, line in enumerate(lines) if word in line)
        for word in ("geometry", "8.2944", "decode ", "flat_f")
    ]
    assert at == sorted(at)
    assert (
        "skipped  q_align: stage 'q_align' cannot run: the weights 'q-future/one-align' are neither"
        in printed
    )
    facts = json.loads(uhr(*arguments, "--json")[1])
    assert (facts["inputs"], facts["units"]) == (17, 3)
    assert [s["stage"] for s in facts["stages"][:3]] == ["header", "geometry", "decode"]
    idle = [rule["name"] for rule in facts["not_evaluated"]]
    of_people = [name for name in idle if name.endswith("people")]
    assert idle == [*of_people, "quality", "aesthetics"]
    assert len(of_people) == 5, "without its model the channel is left out"
    assert facts["channels"] == ["general"]


def test_the_summary_is_there_for_machines_too(uhr, images, tmp_path):
    arguments = ("curate", "run", "quickstart", "--source", images, "--out", tmp_path / "out", "--workers", 0)
    facts = json.loads(uhr(*arguments, "--json")[1])
    assert facts["counts"]["kept"] == 8
    assert facts["finished_before"] is False
    assert json.loads(uhr(*arguments, "--json")[1])["finished_before"] is True


@pytest.mark.parametrize("name", preset_names())
def test_show_prints_a_preset_whole(uhr, name):
    code, printed, _ = uhr("curate", "show", name)
    assert code == 0
    assert printed == preset_text(name)
    assert json.loads(uhr("curate", "show", name, "--json")[1]) == yaml.safe_load(preset_text(name))


def test_show_of_a_file_refuses_what_a_run_would(uhr, tmp_path):
    file = tmp_path / "mine.yaml"
    for rules, message in (
        ("{a: entrpy > 3}", "rule 'a': unknown column 'entrpy'"),
        ("{a: phash IS NOT NULL}", "put stage 'phash' into the pipeline"),
        ("{a: entropy + 1}", "rule 'a'"),
    ):
        file.write_text(f"preset: quickstart\nrules: {rules}\n")
        code, printed, errors = uhr("curate", "show", file)
        assert (code, printed) == (1, "")
        assert message in errors
        ran = uhr("curate", "run", file, "--source", tmp_path, "--out", tmp_path / "out")
        assert ran[0] == 1
        assert ran[2].splitlines()[-1] == errors.splitlines()[-1]
    # what a source may have, and models that are not here, are no mistakes
    file.write_text(
        "preset: multiaspect-4k\nrules: {a: stated_width > 9, b: contract = 'C-1', c: opt_out IS NULL}\n"
    )
    code, printed, errors = uhr("curate", "show", file)
    assert code == 0, errors
    assert "stated_width > 9" in printed


def test_show_knows_the_columns_that_only_a_named_source_has(uhr, out, tmp_path):
    file = tmp_path / "again.yaml"
    # the manifest has it, and no stage of this pipeline adds it
    file.write_text("stages: [header]\nrules: {busy: entropy > 3}\n")
    code, printed, errors = uhr("curate", "show", file)
    assert (code, printed) == (1, "")
    assert "no stage adds column 'entropy': put stage 'entropy' into the pipeline" in errors
    assert errors.endswith("or name a --source that has it\n")
    code, printed, errors = uhr("curate", "show", file, "--source", f"manifest:{out}")
    assert code == 0, errors
    assert yaml.safe_load(printed)["rules"] == {"busy": "entropy > 3"}
    # the run judges the same: what neither has is a mistake in both
    for rule, code in (("entropy > 3", 0), ("phash IS NULL", 1)):
        words = ("--source", f"manifest:{out}", "--set", f"rules.busy={rule}")
        assert uhr("curate", "show", file, *words)[0] == code
        assert uhr("curate", "run", file, *words, "--out", tmp_path / "o", "--workers", 0)[0] == code
    code, _, errors = uhr("curate", "show", "--source", f"manifest:{out}")
    assert code == 1
    assert "no pipeline is named" in errors


def test_show_lists_presets_and_stages_lists_stages(uhr):
    listed = uhr("curate", "show")[1]
    assert all(name in listed for name in preset_names())
    stages = {stage["stage"]: stage for stage in json.loads(uhr("curate", "stages", "--json")[1])}
    assert list(stages) == list(NAMES)
    assert stages["flatness"]["parameters"] == {"patch": 240, "variance": 800.0}
    assert stages["exact_duplicates"]["needs"] == ["content_hash"]
    assert stages["header"]["reads"] == "header"
    printed = uhr("curate", "stages")[1]
    assert all(name in printed for name in NAMES)


@pytest.mark.parametrize("lacking", [None, "open_clip"])
def test_the_list_of_stages_tells_a_package_that_is_lacking_from_a_model_that_is_not_named(
    uhr, monkeypatch, lacking
):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == lacking else real(name))
    stages = {stage["stage"]: stage for stage in json.loads(uhr("curate", "stages", "--json")[1])}
    by_name = {line.split()[0]: line for line in uhr("curate", "stages")[1].splitlines()}
    # what runs as it is has nothing to do, and the rest says what a run without it would
    assert by_name["flatness"].endswith("flat_fraction")
    assert stages["flatness"]["set"] == []
    assert by_name["rank"].endswith("set of")
    assert by_name["caption"].endswith("set weights or server")
    assert stages["caption"]["set"] == ["weights", "server"]
    assert by_name["safety"].endswith("set nsfw or watermark")
    assert by_name["q_align"].endswith("icecream (MIT); without its weights")
    found = "open_clip (MIT), not installed; set weights" if lacking else "open_clip (MIT); set weights"
    assert by_name["embedding"].endswith(found)
    assert [each["installed"] for each in stages["embedding"]["packages"]] == [lacking is None]


@pytest.mark.parametrize("columns", [100, 140, 300])
def test_the_table_of_stages_fits_on_the_terminal(uhr, monkeypatch, columns):
    wide = uhr("curate", "stages")[1]
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr("uhr.base.console.on_terminal", lambda: True)
    printed = uhr("curate", "stages")[1]
    assert max(map(len, printed.splitlines())) <= columns
    # nothing is lost: the cells of a column, read from the top, have the same words
    assert sorted(printed.split()) == sorted(wide.split())
    assert (len(printed.splitlines()) == len(wide.splitlines())) == (columns == 300)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("show", "quickstrat"), 1, "unknown preset 'quickstrat': did you mean quickstart?"),
        (("run", "quickstart", "--source", "nowhere", "--out", "o"), 1, "nowhere does not exist"),
        (
            ("run", "quickstart", "--source", "s", "--out", "o", "--engine", "spark"),
            1,
            "unknown engine 'spark'",
        ),
        (("run", "quickstart", "--source", "s", "--out", "o", "--set", "rules"), 1, "write it as path=value"),
        (
            ("run", "quickstart", "--source", "s", "--out", "o", "--set", "rules.a=entrpy > 3"),
            1,
            "did you mean entropy",
        ),
        (
            ("run", "quickstart", "--source", "s", "--out", "o", "--set", "stages.flatnes.patch=3"),
            1,
            "mean flatness",
        ),
        (
            ("run", "quickstart", "--source", "s", "--out", "o", "--set", "limit.pixels=3"),
            1,
            "did you mean limits",
        ),
        (("run", "quickstart", "--source", "s"), 2, "--out"),
        (
            ("run", "quickstart", "--source", "s", "--out", "o", "--rules.entropy", "entropy > 6"),
            2,
            "No such option: --rules.entropy",
        ),
        (
            ("run", "quickstart", "--source", "s", "--out", "o", "--rules.entropy=entropy > 6"),
            2,
            ": write --set rules.entropy=VALUE (Usage",
        ),
        (
            ("run", "quickstart", "--source", "s", "--out", "o", "--address", "x", "--engine", "local"),
            1,
            "--address",
        ),
    ],
)
def test_a_mistake_is_one_line_and_no_traceback(uhr, tmp_path, monkeypatch, arguments, code, message):
    monkeypatch.chdir(tmp_path)
    found, printed, errors = uhr("curate", *arguments)
    assert (found, printed) == (code, "")
    assert message in errors
    assert errors.count("\n") == 1 + errors.count("list:")
    assert not (tmp_path / "o").exists()


def test_explain_takes_an_image_as_people_name_it(uhr, images, tmp_path, monkeypatch):
    odd = os.fsdecode(b"caf\xe9 100%.png")
    shutil.copy(images / "flat.png", images / odd)
    shutil.copy(images / "flat.png", images / "100% é.png")
    shutil.copy(images / "1.jpg", images / "red \x1b[31m\nline.jpg")
    out = tmp_path / "out"
    assert uhr("curate", "run", "quickstart", "--source", images, "--out", out, "--workers", 0)[0] == 0
    path = str(images / odd)
    monkeypatch.chdir(images / "trip")
    for name in ("caf%E9 100%25.png", odd, path, f"../{odd}"):
        explanation = explained(uhr, out, name)
        assert explanation["uri"] == "caf%E9 100%25.png"
        assert explanation["path"] is None, "JSON cannot hold it"
    shown = explained(uhr, out, "same as 1.jpg")
    assert (shown["uri"], shown["path"]) == ("trip/same as 1.jpg", str(images / "trip" / "same as 1.jpg"))
    full = explained(uhr, out, "100% é.png")
    assert (full["uri"], full["path"]) == ("100%25 é.png", str(images / "100% é.png"))
    code, printed, _ = uhr("curate", "explain", out, "red \x1b[31m\nline.jpg")
    assert code == 0
    assert printed.startswith("red \\x1b[31m\\nline.jpg   ")
    assert "\x1b" not in printed
    code, _, errors = uhr("curate", "explain", out, os.fsdecode(b"no\xe9body\x1b"))
    assert code == 1
    assert "\x1b" not in errors
    assert errors.startswith("uhr: no sample 'no%E9body\\x1b'")


def test_a_dry_run_of_the_first_files_counts_their_bytes_only(uhr, images, tmp_path):
    arguments = ("curate", "run", "quickstart", "--source", images, "--out", tmp_path / "o", "--dry-run")
    # by uri: 1.jpg, 3.jpg, 5.jpg with its two sidecars
    whole = [images / name for name in ("1.jpg", "3.jpg", "5.jpg", "5.txt", "5.json")]
    expected = human_bytes(sum(path.stat().st_size for path in whole))
    assert f"3 files, {expected}," in uhr(*arguments, "--limit", 3)[1]
    assert f"3 files, {expected}," not in uhr(*arguments)[1]


def test_a_run_in_this_process_says_once_that_it_has_no_protection(uhr, images, tmp_path):
    arguments = ("curate", "run", "quickstart", "--source", images, "--out", tmp_path / "o")
    assert uhr(*arguments, "--workers", 0)[2].count("warning: in this process: an image that crashes") == 1
    assert "in this process" not in uhr(*arguments, "--workers", 0)[2], "nothing is left to do"


def test_the_summary_says_what_went_wrong_and_which_rule_never_worked(uhr, images, tmp_path):
    arguments = ("curate", "run", "quickstart", "--source", images, "--out", tmp_path / "o", "--workers", 0)
    code, printed, errors = uhr(*arguments, "--set", "rules.odd=cast(format as int) > 1")
    assert code == 0
    assert "rule 'odd' (cast(format as int) > 1): Conversion Error" in printed
    assert "warning: rule odd failed every row that reached it" in errors
    facts = json.loads(uhr(*arguments, "--set", "rules.odd=cast(format as int) > 1", "--json")[1])
    assert facts["rules_that_failed_every_row"] == ["odd"]
    assert {one["kind"] for one in facts["failures"]} >= {"rule error", "not an image"}
