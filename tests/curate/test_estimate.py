"""`--dry-run` measures a small sample, says its size, and extrapolates with the rates of the rules."""

from __future__ import annotations

import json
import shlex
import time
from pathlib import Path

import pytest
from PIL import Image

STAGES = """
import time
import pyarrow as pa
from uhr.base.config import Config
from uhr.curate.stage import BatchStage, FrameStage, Resources
from uhr.manifests.schema import Column
from uhr.models.scores.images import View

class Slow(FrameStage):
    name = "slow"
    adds = (Column("slow", pa.float64(), "mean of red"),)

    def annotate(self, frame):
        time.sleep(0.02)
        return {"slow": frame.rgb[..., 0].mean()}

class Caption(BatchStage):
    name = "caption"
    needs = ("slow",)
    adds = (Column("text", pa.string(), "a caption"),)
    resources = Resources(num_gpus=0, batch_size=4)

    class Params(Config):
        column: str = "text"

    def score(self, rows, views):
        return {"text": ["three plain words"] * len(rows)}

class Looks(Caption):
    name = "looks"
    views = {"small": View(shortest=8)}
"""


@pytest.fixture
def pictures(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "slow_stages.py").write_text(STAGES)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(__import__("sys").modules, "slow_stages", raising=False)
    source = tmp_path / "source"
    source.mkdir()
    for number in range(24):
        Image.new("RGB", (16, 12), (200 * (number % 2), 0, number)).save(source / f"{number:02}.png")
    return source


PIPELINE = """
stages:
  - header
  - decode
  - {stage: "slow_stages:Slow", name: slow}
  - {stage: "slow_stages:Caption", name: caption}
rules: {red: slow > 100}
preview: 8
pixels: kept
"""


def test_a_dry_run_extrapolates_what_it_measured(uhr, pictures, tmp_path):
    file, out = tmp_path / "p.yaml", tmp_path / "out"
    file.write_text(PIPELINE)
    arguments = ("curate", "run", file, "--source", pictures, "--out", out, "--workers", 0, "--dry-run")
    code, printed, errors = uhr(*arguments, "--measure", 12, "--json")
    assert code == 0, errors
    assert not out.exists()
    found = json.loads(printed)["estimate"]
    assert (found["measured"], found["of"]) == (12, 24)
    stages = {stage["stage"]: stage for stage in found["stages"]}
    assert (stages["slow"]["measured"], stages["slow"]["rows"]) == (12, 24)
    assert stages["slow"]["seconds_each"] >= 0.02
    assert stages["slow"]["seconds"] == pytest.approx(24 * stages["slow"]["seconds_each"])
    # the sample has its own share of bright images; what comes after the rule is that share of all
    bright = stages["caption"]["measured"]
    assert 0 < bright < 12
    assert stages["caption"]["rows"] == 2 * bright
    assert found["rules"] == [{"rule": "red", "seen": 12, "rejected": 12 - bright}]
    assert found["tokens"] == {"text": {"texts": 2 * bright, "tokens": 8 * bright, "counted": False}}
    (this,) = found["passes"]
    assert this["rows"] == 24
    assert this["seconds"] >= stages["slow"]["seconds"]
    sizes = [path.stat().st_size for path in pictures.iterdir()]
    assert 24 * min(sizes) <= found["bytes"]["read"] <= 24 * max(sizes)
    assert found["bytes"]["stored"] == pytest.approx(found["bytes"]["read"] * bright / 12, rel=0.1)
    code, again, _ = uhr(*arguments, "--measure", 12)
    assert "estimated from 12 of 24 files, which were measured" in again
    assert f"text: {2 * bright} texts, about {8 * bright} tokens" in again


def test_the_estimate_has_the_time_of_previews_and_of_views(uhr, pictures, tmp_path, monkeypatch):
    from uhr.curate.frame import Frame
    from uhr.models.scores.images import View

    preview, of = Frame.preview, View.of
    monkeypatch.setattr(Frame, "preview", lambda *all_: (time.sleep(0.03), preview(*all_))[1])
    monkeypatch.setattr(View, "of", lambda *all_: (time.sleep(0.05), of(*all_))[1])
    file = tmp_path / "p.yaml"
    file.write_text(PIPELINE.replace("Caption", "Looks").replace("caption}", "looks}"))
    arguments = ("--source", pictures, "--out", tmp_path / "out", "--workers", 0, "--dry-run", "--json")
    code, printed, errors = uhr("curate", "run", file, *arguments, "--measure", 12)
    assert code == 0, errors
    found = json.loads(printed)["estimate"]
    stages = {stage["stage"]: stage for stage in found["stages"]}
    assert (stages["making previews"]["measured"], stages["making previews"]["rows"]) == (12, 24)
    assert stages["making previews"]["seconds_each"] >= 0.03
    assert stages["making views"]["measured"] == stages["looks"]["measured"] > 0
    assert stages["making views"]["seconds_each"] >= 0.05
    names = ("slow", "making previews", "making views")
    assert found["passes"][0]["seconds"] >= sum(stages[name]["seconds"] for name in names)
    code, text, _ = uhr("curate", "run", file, *arguments[:-1], "--measure", 0)
    assert "view: at most 8 px on the shorter side, bicubic" in text


def test_decoding_is_not_counted_as_making_previews(uhr, pictures, tmp_path):
    listed = tmp_path / "list.txt"
    listed.write_text("0" * 64)
    file = tmp_path / "p.yaml"
    file.write_text("stages: [header, decode]\nrules: {}\n")
    stages = {}
    for blocked in (False, True):
        arguments = ["--source", pictures, "--out", tmp_path / "out", "--workers", 0, "--measure", 2]
        arguments += ["--set", f"blocklist={listed}"] if blocked else []
        code, printed, errors = uhr("curate", "run", file, *arguments, "--dry-run", "--json")
        assert code == 0, errors
        found = json.loads(printed)["estimate"]["stages"]
        stages[blocked] = {stage["stage"]: stage["measured"] for stage in found}
    assert stages[True]["decoding"] == stages[True]["making previews"] == 2, "the list needs only the bytes"
    assert "decoding" not in stages[False], "the stage `decode` was first"


def test_the_plan_of_a_preset_without_its_required_stage_is_printed_with_the_error(uhr, pictures, tmp_path):
    arguments = ("--source", pictures, "--out", tmp_path / "out", "--dry-run")
    code, printed, errors = uhr("curate", "run", "multiaspect-4k", *arguments, "--measure", 0)
    assert code == 1
    fix = "--set 'stages.safety.nsfw={weights: FOLDER, labels: [nsfw]}'"
    assert f"no model is named: {fix} or --set 'stages.safety.watermark=" in errors.splitlines()[-1]
    assert "    keep where entropy >= 7.0   [entropy, channel general]" in printed
    assert f"skipped  safety: stage 'safety' cannot run: no model is named: {fix}" in printed
    assert "not evaluated  rule nsfw (nsfw_prob < 0.5)" in printed
    code, _, again = uhr("curate", "run", "multiaspect-4k", *arguments[:-1])
    assert code == 1
    assert again.splitlines()[-1] == errors.splitlines()[-1]
    # the fix, as a shell would read it, is a valid setting
    code, _, errors = uhr("curate", "run", "multiaspect-4k", *arguments, "--measure", 0, *shlex.split(fix))
    assert "the weights 'FOLDER' do not exist" in errors.splitlines()[-1]


def test_the_estimate_counts_the_cutting_of_patches(uhr, pictures, tmp_path):
    file = tmp_path / "p.yaml"
    file.write_text("stages: [header, decode, {stage: patches, size: 64, place: grid}]")
    arguments = ("--source", pictures, "--out", tmp_path / "out", "--workers", 0, "--dry-run", "--json")
    code, printed, errors = uhr("curate", "run", file, *arguments, "--measure", 3)
    assert code == 0, errors
    stages = {stage["stage"]: stage for stage in json.loads(printed)["estimate"]["stages"]}
    assert (stages["patches"]["measured"], stages["patches"]["rows"]) == (3, 24)
    assert stages["patches"]["seconds"] > 0


def test_a_dry_run_says_what_is_missing_and_how_to_get_it(uhr, pictures, tmp_path):
    file = tmp_path / "p.yaml"
    file.write_text("stages: [header, decode, {stage: embedding, weights: no/such-model}]\nrules: {}")
    arguments = ("curate", "run", file, "--source", pictures, "--out", tmp_path / "out", "--dry-run")
    code, printed, errors = uhr(*arguments, "--measure", 0)
    assert code == 1
    assert "skipped  embedding: " in printed
    assert "hf download no/such-model" in printed
    assert "hf download no/such-model" in errors.splitlines()[-1]
    assert "estimated" not in printed


def test_a_sample_is_drawn_whatever_the_order(pictures, tmp_path):
    from uhr.manifests.sources.folder import Folder

    listing = Folder.at(pictures).list()
    drawn = listing.drawn(8, 3).items["uri"].to_pylist()
    assert drawn == sorted(drawn)
    assert len(set(drawn)) == 8
    assert drawn != listing.first(8).items["uri"].to_pylist()
    assert listing.drawn(8, 4).items["uri"].to_pylist() != drawn
    # a name that is added changes the draw by at most one
    (pictures / "another.png").write_bytes((pictures / "00.png").read_bytes())
    more = Folder.at(pictures).list().drawn(8, 3).items["uri"].to_pylist()
    assert len(set(drawn) - set(more)) <= 1
    assert listing.drawn(100, 3).items.equals(listing.items)


def test_sample_and_seed_on_the_command_line(uhr, pictures, tmp_path):
    file = tmp_path / "p.yaml"
    file.write_text("stages: [header]")
    arguments = ("curate", "run", file, "--source", pictures, "--workers", 0)
    code, printed, errors = uhr(*arguments, "--out", tmp_path / "a", "--sample", 5, "--seed", 1, "--json")
    assert code == 0, errors
    assert json.loads(printed)["counts"]["rows"] == 5
    code, printed, errors = uhr(*arguments, "--out", tmp_path / "a", "--sample", 5, "--seed", 2)
    assert code == 1
    assert "--sample 5 --seed 2" in errors
    assert f"--reuse {tmp_path}/a --out {tmp_path}/a-2" in errors
    for wrong in (("--sample", 5, "--limit", 3), ("--seed", 2)):
        assert uhr(*arguments, "--out", tmp_path / "b", *wrong)[0] == 1
