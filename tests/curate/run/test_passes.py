"""Passes and segments: models score batches of what is still kept, and a fault costs its own row."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from uhr.base.errors import UserError
from uhr.curate.config import load
from uhr.curate.explain import check_verdicts
from uhr.curate.planning.plan import CurationPlan
from uhr.curate.run import job
from uhr.curate.run.status import status_of
from uhr.manifests.manifest import Manifest
from uhr.manifests.verify.audit import audit

STAGES = '''
import os
import signal
from pathlib import Path

import pyarrow as pa
import torch
from uhr.base.config import Config
from uhr.curate.stage import BatchStage, Resources, SetStage
from uhr.manifests.schema import Column
from uhr.models.scores.images import View


class Mean(BatchStage):
    """The mean of a view; does what the file's name says, and writes down its batches."""

    name = "mean"
    adds = (Column("mean", pa.float64(), "mean of the view"), Column("view", pa.string(), "its size"))
    views = {"small": View(shortest=16), "whole": View()}
    resources = Resources(num_gpus=0, batch_size=4)

    class Params(Config):
        log: str

    def open(self, device):
        self.device = device
        with open(self.params.log + ".opened", "a") as file:
            print(os.getpid(), file=file)

    def score(self, rows, views):
        names = [row["uri"] for row in rows]
        with open(self.params.log, "a") as file:
            print(" ".join(names), file=file)
        if any("kill" in name for name in names):
            os.kill(os.getpid(), signal.SIGKILL)
        if any("raise" in name for name in names):
            raise KeyError("no such image")
        if any("large" in name for name in names) or (len(names) > 2 and "huge" in " ".join(names)):
            raise torch.OutOfMemoryError("CUDA out of memory")
        small = views["small"]
        assert [tuple(v.shape[:2]) for v in views["whole"]] == [(row["height"], row["width"]) for row in rows]
        sizes = [f"{v.shape[1]}x{v.shape[0]}" for v in small]
        return {"mean": [v.double().mean().item() for v in small], "view": sizes}


class Late(BatchStage):
    """Scores columns alone."""

    name = "late"
    needs = ("mean_rank",)
    adds = (Column("late", pa.float64(), "what it saw"),)
    resources = Resources(num_gpus=0, batch_size=64)

    def score(self, rows, views):
        assert views == {}
        return {"late": [row["mean_rank"] for row in rows]}
'''

NAMES = ["0", "1", "2", "3", "4", "5", "6", "7"]


@pytest.fixture
def run(uhr, tmp_path, monkeypatch) -> Callable[..., tuple[Manifest, str]]:
    """Run a pipeline of `STAGES` over images of the given names: the manifest and what was printed."""
    package = tmp_path / "elsewhere" / "model_stages.py"
    package.parent.mkdir()
    package.write_text(STAGES)
    monkeypatch.syspath_prepend(str(package.parent))
    monkeypatch.delitem(__import__("sys").modules, "model_stages", raising=False)
    source = tmp_path / "source"

    def call(names: list[str], tree: str, workers: int = 0, engine: str = "local", out: str = "out") -> Any:
        source.mkdir(exist_ok=True)
        for number, name in enumerate(names):
            if not (source / f"{name}.png").exists():
                pixels = np.full((40, 60, 3), 20 * number + 5, np.uint8)
                pixels[::2, ::2] += 20
                Image.fromarray(pixels).save(source / f"{name}.png")
        pipeline = tmp_path / "models.yaml"
        pipeline.write_text(tree.replace("LOG", str(tmp_path / "batches.txt")))
        arguments = ("--source", source, "--out", tmp_path / out, "--engine", engine, "--workers", workers)
        code, printed, errors = uhr("curate", "run", pipeline, *arguments)
        assert code == 0, errors
        made = Manifest.open(tmp_path / out)
        # every verdict is what its rules give: those of channels, of models, and with nulls
        assert list(check_verdicts(made)) == []
        return made, printed

    return call


def rows_of(manifest: Manifest) -> dict[str, dict[str, Any]]:
    return {row["uri"].removesuffix(".png"): row for row in manifest.table().to_pylist()}


def batches(tmp_path: Path) -> list[list[str]]:
    lines = (tmp_path / "batches.txt").read_text().splitlines()
    return [line.replace(".png", "").split() for line in lines]


ONE = """
stages: [header, decode, {stage: "model_stages:Mean", log: LOG}]
rules: {bright: mean >= 40, first: "uri <> '1.png'"}
"""


def test_a_model_sees_batches_of_what_earlier_rules_kept(run, tmp_path):
    manifest, printed = run(NAMES, ONE)
    rows = rows_of(manifest)
    assert batches(tmp_path) == [["0", "2", "3", "4"], ["5", "6", "7"]]
    for number, name in enumerate(NAMES):
        row = rows[name]
        if name == "1":
            assert (row["reason"], row["mean"]) == ("first", None)
            continue
        assert row["mean"] == pytest.approx(20 * number + 10, abs=1)
        assert row["view"] == "24x16", "the shortest side is 16 px"
        assert row["reason"] == ("bright" if row["mean"] < 40 else None)
    assert "rejected         1 of 8   first" in printed
    assert {rule.name: (rule.seen, rule.rejected) for rule in manifest.info.rules} == {
        "first": (8, 1),
        "bright": (7, 1),
    }


def test_a_worker_opens_a_model_once_whatever_the_number_of_units(run, tmp_path):
    manifest, _ = run(NAMES, f"unit: 1\n{ONE}")
    assert len(rows_of(manifest)) == len(NAMES)
    # each unit apart; a rule over the uri rejects one of the eight images before
    assert len(batches(tmp_path)) == 7
    assert (tmp_path / "batches.txt.opened").read_text().split() == [str(os.getpid())]


def test_memory_that_does_not_suffice_halves_the_batch_and_an_image_alone_fails_its_row(run, tmp_path):
    rows = rows_of(run(["0", "1huge", "2", "3", "4large", "5"], ONE.replace("mean >= 40", "mean >= 0"))[0])
    assert batches(tmp_path) == [
        *[["0", "1huge", "2", "3"], ["0", "1huge"], ["2", "3"]],
        *[["4large", "5"], ["4large"], ["5"]],
    ]
    assert {name: row["reason"] for name, row in rows.items()} == {
        **dict.fromkeys(["0", "1huge", "2", "3", "5"]),
        "4large": "memory limit",
    }
    assert rows["4large"]["error"].endswith("the model ran out of memory with this image alone")


@pytest.mark.usefixtures("warm_workers")
@pytest.mark.parametrize(("name", "reason"), [("raise", "stage error"), ("kill", "crash")])
def test_a_row_that_ends_its_batch_is_found_and_the_others_are_scored(run, tmp_path, name, reason):
    names = ["0", "1", f"2{name}", "3", "4", "5"]
    # in a worker process: one that is killed ends with it
    rows = rows_of(run(names, ONE.replace("mean >= 40", "mean >= 0"), workers=int(name == "kill"))[0])
    assert rows[f"2{name}"]["reason"] == reason
    assert rows[f"2{name}"]["error"].startswith("model_stages:Mean: ")
    for other in ("0", "3", "4", "5"):
        assert rows[other]["mean"] is not None
    assert rows["1"]["reason"] == "first"


def test_a_model_s_part_that_is_missing_after_a_restart_is_made_from_the_image_again(
    run, tmp_path, monkeypatch
):
    calm = run(NAMES, ONE, out="calm")[0].id
    (tmp_path / "batches.txt").unlink()

    def stop(*_: object) -> None:
        raise UserError("stopped")

    with monkeypatch.context() as patch:
        patch.setattr(job, "commit", stop)
        with pytest.raises(AssertionError, match="stopped"):
            run(NAMES, ONE)
    parts = sorted((tmp_path / "out" / "units").glob("unit-*.parquet"))
    assert len(parts) == 2, "one of the CPU, and one of the model"
    newest = max(parts, key=lambda part: part.stat().st_mtime_ns)
    seen = status_of(tmp_path / "out")
    assert (seen["state"], seen["pass"], seen["tasks_done"], seen["kept"]) == ("stopped", 1, [1, 1], 6)
    newest.unlink()
    seen = status_of(tmp_path / "out")
    assert (seen["tasks_done"], seen["units_done"]) == ([1, 0], 0)
    (kept,) = [part for part in parts if part != newest]
    before = kept.stat().st_mtime_ns
    assert run(NAMES, ONE)[0].id == calm
    assert batches(tmp_path) == 2 * [["0", "2", "3", "4"], ["5", "6", "7"]]
    assert not kept.exists() or kept.stat().st_mtime_ns == before


def test_a_model_after_a_rank_sees_what_the_rank_let_through(run):
    tree = """
stages:
  - header
  - {stage: "model_stages:Mean", log: LOG}
  - {stage: rank, of: mean}
  - model_stages:Late
rules: {best: mean_rank < 0.5, not_first: late > 0}
"""
    manifest, printed = run(NAMES, tree)
    rows = rows_of(manifest)
    assert {name: row["late"] for name, row in rows.items()} == {
        "7": 0.0,
        "6": 0.125,
        "5": 0.25,
        "4": 0.375,
        **dict.fromkeys("0123"),
    }
    assert {name: row["reason"] for name, row in rows.items() if row["reason"]} == {
        **dict.fromkeys("0123", "best"),
        "7": "not_first",
    }
    assert "rejected         1 of 4   not_first" in printed
    assert [rule.name for rule in manifest.info.rules] == ["best", "not_first"]


CHANNELS = """
stages: [header, {stage: "model_stages:Mean", log: LOG}, {stage: rank, of: mean, channel: bright}]
rules: {size: width > 0}
channels:
  bright: {light: mean >= 80, top: {where: mean_rank < 0.5, null: keep}}
  odd: {named: "uri IN ('1.png', '3.png', '5.png', '7.png')"}
"""


def test_an_image_is_kept_if_one_channel_accepts_it(run, uhr, tmp_path):
    manifest, printed = run(NAMES, CHANNELS)
    rows = rows_of(manifest)
    # means are about 10, 30, ..., 150: from 4 on they are light, and the best half of these are 6 and 7
    assert {name: row["channels"] for name, row in rows.items()} == {
        "0": [],
        "2": [],
        "4": [],
        "1": ["odd"],
        "3": ["odd"],
        "5": ["odd"],
        "6": ["bright"],
        "7": ["bright", "odd"],
    }
    assert {name: row["reason"] for name, row in rows.items() if row["reason"]} == {
        "0": "light",
        "2": "light",
        "4": "top",
    }
    assert {name: row["mean_rank"] for name, row in rows.items() if row["mean_rank"] is not None} == {
        "7": 0.0,
        "6": 0.25,
        "5": 0.5,
        "4": 0.75,
    }
    funnel = {rule.name: (rule.channel, rule.seen, rule.rejected) for rule in manifest.info.rules}
    assert funnel == {
        "named": ("odd", 8, 4),
        "size": ("", 8, 0),
        "light": ("bright", 8, 4),
        "top": ("bright", 4, 2),
    }
    assert "top (channel bright)" in printed
    code, text, _ = uhr("curate", "explain", tmp_path / "out", "5.png", "--json")
    assert code == 0
    outcomes = {rule["rule"]: (rule.get("channel"), rule["outcome"]) for rule in json.loads(text)["rules"]}
    assert outcomes == {
        "size": (None, "pass"),
        "named": ("odd", "pass"),
        "light": ("bright", "pass"),
        "top": ("bright", "fail"),
    }
    _, text, _ = uhr("manifest", "show", manifest.path)
    assert "top (channel bright)" in text
    page = (manifest.path / "report.html").read_text()
    assert ">top (channel bright)</th>" in page
    assert "A rule of a channel takes samples out of that channel only" in page
    assert "also to rejected ones" not in page


def test_the_rules_of_two_stages_over_the_set_are_both_in_rejected_by(run):
    tree = """
stages: [header, geometry, decode, phash, {stage: near_duplicates, channel: o'k},
  {stage: rank, of: megapixels}]
all_rules: true
channels:
  o'k: {copy: dup_of IS NOT NULL}
  first: {best: megapixels_rank > 0}
  all: {}
"""
    rows = rows_of(run(NAMES, tree)[0])
    # images of one colour look alike: the first is the best of them, and all others its duplicates
    assert rows["0"]["rejected_by"] == ["copy", "best"]
    assert rows["0"]["channels"] == ["all"]
    assert [rows[name]["rejected_by"] for name in NAMES[1:]] == [None] * 7
    assert rows["1"]["channels"] == ["o'k", "first", "all"]


def test_rules_of_a_channel_that_is_lost_already_are_in_rejected_by_and_the_funnel_counts_the_first(run):
    tree = """
stages: [header, geometry, decode, phash, entropy, {stage: "model_stages:Mean", log: LOG},
  {stage: rank, of: megapixels}]
all_rules: true
channels:
  lost: {wide: width > 100, busy: entropy > 3, unknown: 1 / (width - width) > 3, bright: mean > 1000,
    brighter: mean > 2000, best: megapixels_rank > 100}
  all: {}
"""
    manifest, _ = run(NAMES, tree)
    rows = rows_of(manifest)
    assert {row["status"] for row in rows.values()} == {"kept"}
    assert {tuple(row["channels"]) for row in rows.values()} == {("all",)}
    assert {tuple(row["rejected_by"]) for row in rows.values()} == {
        ("wide", "busy", "bright", "brighter", "best")
    }
    funnel = {rule.name: (rule.seen, rule.rejected) for rule in manifest.info.rules}
    count = len(rows)
    assert funnel.pop("wide") == (count, count)
    assert set(funnel.values()) == {(0, 0)}


def test_a_channel_without_rules_makes_another_plan(tmp_path):
    def mark(channels: str) -> str:
        (tmp_path / "p.yaml").write_text(f"stages: [header]\nchannels: {channels}")
        return CurationPlan.of(load(str(tmp_path / "p.yaml"))).fingerprint

    marks = {mark("{}"), mark("{a: {x: width > 5}}"), mark("{a: {x: width > 5}, b: {}}"), mark("{b: {}}")}
    assert len(marks) == 4


@pytest.mark.parametrize(("null", "reason"), [("fail", "no value"), ("reject", "said"), ("keep", None)])
def test_a_rule_says_what_becomes_of_a_missing_value(run, tmp_path, null, reason):
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "1.txt").write_text("a field")
    tree = f"stages: [header]\nrules: {{said: {{where: length(caption) > 3, null: {null}}}}}"
    rows = rows_of(run(["0", "1"], tree)[0])
    assert rows["1"]["status"] == "kept"
    assert rows["0"]["reason"] == reason
    assert rows["0"]["status"] == {None: "kept", "said": "rejected"}.get(reason, "failed")


def test_with_all_rules_a_rejected_image_is_measured_on_and_lists_every_rule(run):
    tree = """
stages: [header, geometry, decode, entropy, {stage: "model_stages:Mean", log: LOG}]
rules: {wide: width > 100, busy: entropy > 3, right: "uri = '7.png'", bright: mean > 1000}
all_rules: true
"""
    manifest, _ = run(NAMES, tree)
    rows = rows_of(manifest)
    assert {row["reason"] for row in rows.values()} == {"right", "wide"}
    assert rows["0"]["reason"] == "right", "a rule over the source's own columns is evaluated first"
    assert rows["0"]["rejected_by"] == ["right", "wide", "busy"]
    assert rows["7"]["rejected_by"] == ["wide", "busy"]
    assert all(row["entropy"] is not None and row["content_hash"] is not None for row in rows.values())
    assert all(row["mean"] is None for row in rows.values()), "models see only what is kept"
    audit(manifest, manifest.path.parent / "audit.parquet")
    lines = pq.read_table(manifest.path.parent / "audit.parquet").to_pylist()
    assert {line["outcome"] for line in lines if line["rule"] == "bright"} == {"not measured"}
    assert {line["outcome"] for line in lines if line["rule"] == "busy"} == {"rejected"}
    assert "also to rejected ones" in (manifest.path / "report.html").read_text()
