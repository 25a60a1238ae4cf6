"""A run that takes over earlier results ends like one from nothing, and calls a stage only where it must."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from uhr.base.errors import UserError
from uhr.curate.config import load
from uhr.curate.estimate import estimate
from uhr.curate.planning.plan import CurationPlan
from uhr.curate.run import job
from uhr.curate.run.earlier.so_far import so_far
from uhr.curate.run.job import CurationRequest
from uhr.manifests.lineage import lineage
from uhr.manifests.manifest import Manifest
from uhr.manifests.report.page import render
from uhr.manifests.sources.base import NO_LIMITS
from uhr.manifests.sources.folder import Folder
from uhr.pixels.types import PixelFault
from uhr.runtime.inline import InlineRunner
from uhr.runtime.pool import Pool

STAGES = '''
import pyarrow as pa
from uhr.base.config import Config
from uhr.curate.stage import BatchStage, Child, ExpandStage, FrameStage, Resources
from uhr.manifests.schema import Column
from uhr.models.scores.images import View

class Params(Config):
    log: str
    factor: float = 1.0
    fail: str = ""

def called(stage, name):
    with open(stage.params.log, "a") as file:
        print(type(stage).__name__, name, file=file)

class Red(FrameStage):
    name = "red"
    adds = (Column("red", pa.float64(), "mean of red"),)
    Params = Params

    def annotate(self, frame):
        called(self, frame.uri)
        red = frame.rgb[..., 0].mean()
        if self.params.fail and red < 60:
            raise ValueError("too dark")
        return {"red": red * self.params.factor}

class Odd(FrameStage):
    """Has no value for most images."""

    name = "odd"
    needs = ("red",)
    adds = (Column("odd", pa.string(), "said of bright images"),)
    Params = Params

    def annotate(self, frame):
        called(self, frame.uri)
        return {"odd": "bright" if frame.row["red"] > 200 else None}

class Said(FrameStage):
    """Depends on the caption beside the image."""

    name = "said"
    needs = ("caption",)
    adds = (Column("said", pa.int64(), "length of the caption"),)
    Params = Params

    def annotate(self, frame):
        called(self, frame.uri)
        return {"said": len(frame.row.get("caption") or "")}

class Blue(BatchStage):
    name = "blue"
    adds = (Column("blue", pa.float64(), "mean of blue"),)
    views = {"small": View(shortest=8)}
    resources = Resources(num_gpus=0, batch_size=4)
    Params = Params

    def score(self, rows, views):
        for row in rows:
            called(self, row["uri"] if row.get("box") is None else f"{row['uri']}{row['box']}")
        return {"blue": [view[..., 2].double().mean().item() for view in views["small"]]}

class Again(Red):
    name = "again"
    needs = ("red_rank",)
    adds = (Column("again", pa.float64(), "mean of red"),)

    def annotate(self, frame):
        return {"again": frame.rgb[..., 0].mean()}

class Halves(ExpandStage):
    name = "halves"
    adds = (Column("half", pa.int64(), "which"),)
    Params = Params

    def expand(self, frame):
        called(self, frame.uri)
        if self.params.fail and frame.rgb[..., 0].mean() > 180:
            raise ValueError("too bright")
        width, height = frame.header.width // 2, frame.header.height
        return [Child((at * width, 0, width, height), {"half": at}) for at in (1, 0)]
'''


class Interrupted(Exception):
    pass


@dataclasses.dataclass(frozen=True)
class Stops:
    """A pool whose run is interrupted after some tasks."""

    tasks: int

    def runner(self, limits: object) -> Any:
        done = itertools.count(1)

        class Runner(InlineRunner):
            def run(runner, *arguments: Any) -> Iterator[tuple[int, int]]:
                for task in super().run(*arguments):
                    yield task
                    if next(done) == self.tasks:
                        raise Interrupted

        return Runner()


class Lab:
    """A folder of images and runs over it, each in this process."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.source, self.log = folder, folder / "images", folder / "calls.txt"
        self.source.mkdir(parents=True)
        self._numbers = itertools.count()

    def image(self, name: str, value: int, caption: str | None = None) -> None:
        pixels = np.full((12, 16, 3), value, np.uint8)
        pixels[:, :, 2] = np.arange(16) * 10
        Image.fromarray(pixels).save(self.source / f"{name}.png")
        if caption is not None:
            (self.source / f"{name}.txt").write_text(caption)

    def touch(self, name: str) -> None:
        path = self.source / f"{name}.png"
        os.utime(path, ns=(1, path.stat().st_mtime_ns + 10**9))

    def request(self, tree: dict[str, Any], **options: Any) -> CurationRequest:
        number = next(self._numbers)
        file = self.folder / f"pipeline-{number}.yaml"
        file.write_text(yaml.safe_dump({"name": "p", "preview": 8, "unit": 3, **tree}))
        source = Folder.at(self.source)
        plan = CurationPlan.of(load(str(file)), given=source.columns)
        out = options.pop("out", self.folder / f"out-{number}")
        return CurationRequest(plan, source, out, **{"pool": Pool("local", 0), **options})

    def run(self, tree: dict[str, Any], **options: Any) -> Manifest:
        self.log.write_text("")
        return job.run(self.request(tree, **options), str).manifest

    def begin(self, tree: dict[str, Any], tasks: int) -> Path:
        """Run until some tasks of the first pass are done; the folder."""
        self.log.write_text("")
        request = self.request(tree, pool=Stops(tasks))
        with contextlib.suppress(Interrupted):
            job.run(request, str)
        return request.out

    def calls(self) -> dict[str, set[str]]:
        """The images of each stage that was called, each once."""
        lines = [line.split(" ", 1) for line in self.log.read_text().splitlines()]
        counted = Counter(map(tuple, lines))
        assert set(counted.values()) <= {1}, "a stage was called twice for one image"
        found: dict[str, set[str]] = {}
        for stage, name in lines:
            found.setdefault(stage, set()).add(name.replace(".png", ""))
        return found

    def pipeline(self, *stages: str, rules: dict[str, Any] | None = None, **params: Any) -> dict[str, Any]:
        log = str(self.log)
        own = [{"stage": f"reused_stages:{stage}", "name": stage.lower(), "log": log} for stage in stages]
        for entry in own:
            entry.update(params.get(entry["name"], {}))
        return {"stages": ["header", "geometry", "decode", *own], "rules": rules or {}}


@pytest.fixture(scope="module")
def stages(tmp_path_factory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("stages")
    (folder / "reused_stages.py").write_text(STAGES)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        # it takes longer than the run
        patch.setattr("uhr.manifests.report.write_report", lambda manifest, out: out.touch() or out)
        yield


@pytest.fixture
def lab(stages, tmp_path) -> Lab:
    lab = Lab(tmp_path / "lab")
    for number in range(6):
        lab.image(f"i{number}", 40 * number, f"number {number}" if number % 2 else None)
    return lab


def content(manifest: Manifest) -> tuple[Any, ...]:
    """Rows, previews and funnel, without what names the folder."""
    rows = manifest.table().to_pylist()
    previews = manifest.previews({row["sample_id"] for row in rows})
    return rows, previews, [rule.model_dump() for rule in manifest.info.rules], manifest.info.counts


def test_a_new_column_calls_only_its_own_stage(lab):
    first = lab.run(lab.pipeline("Red", "Odd"))
    tree = lab.pipeline("Red", "Odd", "Blue")
    reused = lab.run(tree, reuse=(first.path,))
    assert lab.calls() == {"Blue": {f"i{n}" for n in range(6)}}
    assert content(reused) == content(lab.run(tree))
    parent = reused.info.parents[0]
    assert (parent.id, parent.role) == (first.id, "results reused from")
    assert [each["id"] for each in lineage(reused.path)] == [reused.id, first.id]
    assert reused.info.operation["reused"] == dict.fromkeys(("header", "geometry", "decode", "red", "odd"), 6)


def test_a_loosened_rule_measures_only_what_it_lets_in(lab):
    first = lab.run(lab.pipeline("Red", "Odd", "Blue", rules={"light": "red > 100"}))
    assert lab.calls()["Blue"] == {"i3", "i4", "i5"}
    tree = lab.pipeline("Red", "Odd", "Blue", rules={"light": "red > 50"})
    reused = lab.run(tree, reuse=(first.path,))
    assert lab.calls() == {"Odd": {"i2"}, "Blue": {"i2"}}
    assert content(reused) == content(lab.run(tree))


def test_another_parameter_calls_the_stage_and_those_that_read_it(lab):
    first = lab.run(lab.pipeline("Red", "Odd", "Said"))
    tree = lab.pipeline("Red", "Odd", "Said", red={"factor": 2.0})
    reused = lab.run(tree, reuse=(first.path,))
    # of i0 the value is 0 in both, so that nothing that reads it can change
    assert lab.calls() == {"Red": {f"i{n}" for n in range(6)}, "Odd": {f"i{n}" for n in range(1, 6)}}
    assert content(reused) == content(lab.run(tree))


def test_a_source_that_has_grown_measures_only_what_is_new(lab, uhr):
    tree = lab.pipeline("Red", "Said", "Blue")
    first = lab.begin(tree, 2)
    assert lab.calls() == {"Red": {"i0", "i1", "i2"}, "Said": {"i0", "i1", "i2"}, "Blue": {"i0", "i1", "i2"}}
    lab.image("a new one", 90)
    lab.image("i1", 111, "number 1")
    (lab.source / "i2.txt").write_text("now it has a caption")
    lab.touch("i0")
    shutil.copy(lab.source / "i0.png", lab.source / "a copy.png")
    reused = lab.run(tree, reuse=(first,))
    new = {"a new one", "i1", "i3", "i4", "i5"}
    assert lab.calls() == {"Red": new, "Said": {*new, "i2"}, "Blue": new}
    assert content(reused) == content(lab.run(tree))
    assert reused.info.parents[0].role == "results reused from the unfinished run"
    assert reused.info.parents[0].path == str(first)
    code, printed, _ = uhr("manifest", "lineage", reused.path)
    assert code == 0
    assert f"an unfinished run, which is no manifest (was at {first})" in printed


def test_patches_are_neither_cut_nor_measured_again(lab):
    def tree(**rules: str) -> dict[str, Any]:
        made = lab.pipeline("Red")
        inner = lab.pipeline("Blue")["stages"][3:]
        cut = {"stage": "reused_stages:Halves", "log": str(lab.log), "stages": inner, "rules": rules}
        return {**made, "stages": [*made["stages"], cut], "rules": {"bright": "red > 90"}}

    first = lab.run(tree())
    boxes = {f"i{n}[{x}, 0, 8, 12]" for n in (3, 4, 5) for x in (0, 8)}
    assert lab.calls()["Blue"] == boxes
    lab.image("j", 210)
    lab.touch("i4")
    changed = tree(right="half = 1")
    reused = lab.run(changed, reuse=(first.path,))
    assert lab.calls() == {"Red": {"j"}, "Halves": {"j"}, "Blue": {"j[8, 0, 8, 12]"}}
    assert content(reused) == content(lab.run(changed))


def test_a_fault_of_cutting_patches_is_taken_over_as_it_was(lab):
    def tree(**rules: str) -> dict[str, Any]:
        made = lab.pipeline("Red", rules=rules)
        cut = {"stage": "reused_stages:Halves", "log": str(lab.log), "fail": "bright"}
        return {**made, "stages": [*made["stages"], cut]}

    first = lab.run(tree())
    assert [row["error"] for row in first.table().to_pylist() if row["status"] == "failed"] == [
        "reused_stages:Halves: ValueError: too bright"
    ]
    changed = tree(light="red > 30")
    reused = lab.run(changed, reuse=(first.path,))
    assert lab.calls() == {}
    assert content(reused) == content(lab.run(changed))


def test_faults_are_taken_over_and_retried_by_their_reason(lab):
    (lab.source / "cut.png").write_bytes((lab.source / "i1.png").read_bytes()[:80])
    tree = lab.pipeline("Red", red={"fail": "dark"})
    first = lab.run(tree)
    assert first.info.counts["failed"] == 3
    again = lab.run({**tree, "rules": {"any": "red > 0"}}, reuse=(first.path,))
    assert lab.calls() == {}
    assert content(again)[0] == content(first)[0]
    retried = lab.run(tree, reuse=(first.path,), retry=("stage error",))
    assert lab.calls() == {"Red": {"i0", "i1"}}
    assert content(retried) == content(first)
    # with another limit a fault may be none
    lab.run({**tree, "limits": {"seconds": 90}}, reuse=(first.path,))
    assert lab.calls() == {"Red": {"i0", "i1"}}


@pytest.mark.parametrize("limits", [{}, {"seconds": 90}], ids=["same limits", "new limits"])
def test_an_unfinished_run_retries_in_place(lab, limits):
    tree = lab.pipeline("Red", red={"fail": "dark"})
    out = lab.begin(tree, 1)
    assert lab.calls() == {"Red": {"i0", "i1", "i2"}}
    changed = {**tree, "limits": limits}
    if limits:
        with pytest.raises(UserError, match="was begun with another pipeline"):
            lab.run(changed, out=out)
    finished = lab.run(changed, out=out, retry=("stage error",))
    assert lab.calls() == {"Red": {"i0", "i1", "i3", "i4", "i5"}}
    assert content(finished) == content(lab.run(changed))
    assert finished.info.parents == []
    with pytest.raises(UserError, match="is finished"):
        lab.run(changed, out=out, retry=("stage error",))


def test_an_image_that_a_new_list_rejects_is_not_read_from_reused_pixels(lab):
    tree = {**lab.pipeline("Red"), "pixels": "all"}
    first = lab.run(tree)
    listed = lab.folder / "listed.txt"
    listed.write_text(hashlib.sha256((lab.source / "i1.png").read_bytes()).hexdigest())
    # behind decode, so that the rejected row has the hash of its bytes
    stages = [*tree["stages"], {"stage": "blocklist", "files": [str(listed)]}]
    rules = {"blocklist": "blocklist_match IS NULL"}
    reused = lab.run({**tree, "stages": stages, "rules": rules}, reuse=(first.path,))
    assert lab.calls() == {}
    shutil.rmtree(lab.source)
    rows = {row["uri"]: row for row in reused.table().to_pylist()}
    assert {uri for uri, row in rows.items() if row["reason"] == "blocklist"} == {"i1.png"}
    for uri, row in rows.items():
        if uri == "i1.png":
            with pytest.raises(PixelFault, match="removed after it was listed"):
                reused.source.open(row).read(NO_LIMITS)
        else:
            data = reused.source.open(row).read(NO_LIMITS)
            assert hashlib.sha256(data).hexdigest() == row["content_hash"]
    assert first.source.open(rows["i1.png"]).read(NO_LIMITS), "M itself is not changed"


def test_what_a_reused_manifest_has_forgotten_does_not_come_back(lab, uhr):
    tree = lab.pipeline("Red")
    first = lab.run(tree)
    lab.run(tree, out=lab.folder / "before", reuse=(first.path,))
    code, _, errors = uhr("manifest", "forget", first.path, "--url", "i1.png")
    assert code == 0, errors
    reused = lab.run(tree, reuse=(first.path,))
    assert {row["uri"] for row in reused.table().to_pylist()} == {f"i{n}.png" for n in (0, 2, 3, 4, 5)}
    assert reused.info.source["forgotten"] == 1
    assert lab.calls() == {}


def test_a_dry_run_counts_what_would_be_reused(lab):
    first = lab.run(lab.pipeline("Red"))
    lab.image("new", 77)
    request = lab.request(lab.pipeline("Red", "Said"), reuse=(first.path,))
    found = estimate(request, job.list_source(request), 100)
    stages = {stage["stage"]: (stage["rows"], stage["reused"]) for stage in found["stages"]}
    assert stages == {"header": (1, 6), "geometry": (1, 6), "decode": (1, 6), "red": (1, 6), "said": (7, 0)}
    assert not request.out.exists()


def test_what_cannot_be_reused_is_one_line(lab):
    tree = lab.pipeline("Red")
    first = lab.run(tree)
    with pytest.raises(UserError, match="contains no run"):
        lab.run(tree, reuse=(lab.source,))
    with pytest.raises(UserError, match="is the folder of this run"):
        lab.run(tree, out=first.path, reuse=(first.path,))
    with pytest.raises(UserError, match="did you mean stage error"):
        lab.run(tree, reuse=(first.path,), retry=("stage eror",))


def test_a_report_on_an_unfinished_run_shows_what_is_there(lab, uhr):
    tree = lab.pipeline("Red", "Blue", rules={"light": "red > 30"})
    tree["stages"].append({"stage": "rank", "of": "red"})
    tree["stages"].append({**tree["stages"][3], "name": "again", "stage": "reused_stages:Again"})
    whole = lab.run(tree)
    for tasks, rows in ((1, 3), (4, 6), (5, 6)):
        out = lab.begin(tree, tasks)
        code, printed, errors = uhr("manifest", "report", out)
        assert code == 0, errors
        assert printed.strip() == str(out / "report.html")
        found = so_far(out, lab.folder / f"so-far-{tasks}")
        assert [row["uri"] for row in found.table().to_pylist()] == [f"i{n}.png" for n in range(rows)]
        assert {c.name: c.meaning for c in found.columns}["red"] == "mean of red"
        before = {row["uri"]: row for row in whole.table().to_pylist()}
        for row in found.table().to_pylist():
            assert row["status"] == before[row["uri"]]["status"]
            assert row["red"] == before[row["uri"]]["red"]
        page = render(found)
        assert f"{rows} rows so far of 6 files" in page
        assert "light" in page
        assert found.previews({row["sample_id"] for row in found.table().to_pylist()})
    code, _, errors = uhr("manifest", "report", lab.source)
    assert code == 1
    assert "contains no manifest.json" in errors


CHANGES = st.lists(
    st.tuples(
        st.sampled_from(["add", "change", "touch", "remove", "caption", "rename"]),
        st.integers(0, 5),
        st.integers(0, 255),
    ),
    max_size=4,
)


@st.composite
def pipelines(draw: st.DrawFn) -> dict[str, Any]:
    """The stages, parameters and rules of a pipeline, in words of `Lab.pipeline`."""
    stages = draw(st.lists(st.sampled_from(["Red", "Said", "Blue"]), unique=True, min_size=1))
    rules = {}
    if "Red" in stages:
        rules["light"] = f"red > {draw(st.sampled_from([0, 90, 150]))}"
    if "Said" in stages and draw(st.booleans()):
        rules["captioned"] = "said > 0"
    params = {"red": {"factor": draw(st.sampled_from([1.0, 1.5])), "fail": draw(st.sampled_from(["", "x"]))}}
    return {
        "stages": stages,
        "rules": rules,
        "params": params,
        "rank": "Red" in stages and draw(st.booleans()),
    }


@settings(max_examples=8)
@given(before=pipelines(), after=pipelines(), changes=CHANGES, tasks=st.integers(0, 5))
def test_a_run_that_reuses_another_ends_like_one_from_nothing(
    stages, tmp_path_factory, before, after, changes, tasks
):
    lab = Lab(tmp_path_factory.mktemp("property") / "lab")
    for number in range(6):
        lab.image(f"i{number}", 40 * number, "a caption" if number % 3 else None)

    def tree(drawn: dict[str, Any]) -> dict[str, Any]:
        made = lab.pipeline(*drawn["stages"], rules=drawn["rules"], **drawn["params"])
        rank = [{"stage": "rank", "of": "red"}] if drawn["rank"] else []
        return {**made, "stages": [*made["stages"], *rank]}

    first = lab.begin(tree(before), tasks) if tasks else lab.run(tree(before)).path
    for what, number, value in changes:
        path = lab.source / f"i{number}.png"
        if what == "add":
            lab.image(f"new{value}", value)
        elif not path.exists():
            continue
        elif what == "change":
            lab.image(f"i{number}", value)
        elif what == "touch":
            lab.touch(f"i{number}")
        elif what == "remove":
            path.unlink()
        elif what == "caption":
            path.with_suffix(".txt").write_text("x" * value)
        else:
            path.rename(lab.source / f"moved{number}.png")
    lab.image("last", 128)
    reused = lab.run(tree(after), reuse=(first,))
    lab.calls()
    assert content(reused) == content(lab.run(tree(after)))
