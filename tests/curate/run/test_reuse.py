"""A run that takes over earlier results ends like one from nothing, and calls a stage only where it must."""

from __future__ import annotations

import hashlib
import shutil
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from uhr.base.errors import UserError
from uhr.curate.estimate import estimate
from uhr.curate.run import job
from uhr.curate.run.earlier.so_far import so_far
from uhr.manifests.lineage import lineage
from uhr.manifests.report.page import render
from uhr.manifests.sources.blobs import NO_LIMITS
from uhr.pixels.types import PixelFault


def test_a_new_column_calls_only_its_own_stage(lab):
    first = lab.run(lab.pipeline("Red", "Odd"))
    tree = lab.pipeline("Red", "Odd", "Blue")
    reused = lab.run(tree, reuse=(first.path,))
    assert lab.calls() == {"Blue": {f"i{n}" for n in range(6)}}
    assert lab.content(reused) == lab.content(lab.run(tree))
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
    assert lab.content(reused) == lab.content(lab.run(tree))


def test_another_parameter_calls_the_stage_and_those_that_read_it(lab):
    first = lab.run(lab.pipeline("Red", "Odd", "Said"))
    tree = lab.pipeline("Red", "Odd", "Said", red={"factor": 2.0})
    reused = lab.run(tree, reuse=(first.path,))
    # of i0 the value is 0 in both, so that nothing that reads it can change
    assert lab.calls() == {"Red": {f"i{n}" for n in range(6)}, "Odd": {f"i{n}" for n in range(1, 6)}}
    assert lab.content(reused) == lab.content(lab.run(tree))


def test_another_version_of_the_code_and_other_weights_call_the_stage(lab, monkeypatch):
    weights = lab.folder / "weights.bin"
    weights.write_bytes(b"one")
    tree = lab.pipeline("Red", "Odd", "Weighs", weighs={"path": str(weights)})
    first = lab.run(tree)
    everything = {f"i{n}" for n in range(6)}
    lab.run(tree, reuse=(first.path,))
    assert lab.calls() == {}
    weights.write_bytes(b"others")
    second = lab.run(tree, reuse=(first.path,))
    assert lab.calls() == {"Weighs": everything}
    assert set(second.table()["weighs"].to_pylist()) == {6}
    monkeypatch.setattr("reused_stages.Red.version", 2)
    third = lab.run(tree, reuse=(first.path, second.path))
    # what reads its column finds the values that it had
    assert lab.calls() == {"Red": everything}
    assert lab.content(third) == lab.content(lab.run(tree))


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
    assert lab.content(reused) == lab.content(lab.run(tree))
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
    assert lab.content(reused) == lab.content(lab.run(changed))


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
    assert lab.content(reused) == lab.content(lab.run(changed))


def test_faults_are_taken_over_and_retried_by_their_reason(lab):
    (lab.source / "cut.png").write_bytes((lab.source / "i1.png").read_bytes()[:80])
    tree = lab.pipeline("Red", red={"fail": "dark"})
    first = lab.run(tree)
    assert first.info.counts["failed"] == 3
    again = lab.run({**tree, "rules": {"any": "red > 0"}}, reuse=(first.path,))
    assert lab.calls() == {}
    assert lab.content(again)[0] == lab.content(first)[0]
    retried = lab.run(tree, reuse=(first.path,), retry=("stage error",))
    assert lab.calls() == {"Red": {"i0", "i1"}}
    assert lab.content(retried) == lab.content(first)
    # with another limit a fault may be none
    lab.run({**tree, "limits": {"seconds": 90}}, reuse=(first.path,))
    assert lab.calls() == {"Red": {"i0", "i1"}}


def test_an_image_beyond_a_lower_limit_fails_though_it_was_measured(lab):
    Image.new("RGB", (30, 12), "white").save(lab.source / "wide.png")
    (lab.source / "heavy.png").write_bytes((lab.source / "i5.png").read_bytes() + bytes(2000))
    views = {"stages": ["header", lab.pipeline("Blue")["stages"][3]], "preview": 0}
    for tree, last in ((lab.pipeline("Red"), "decode"), (views, "views")):
        first = lab.run(tree)
        assert first.info.counts["failed"] == 0
        for limits, name in (({"pixels": 200}, "wide"), ({"file_bytes": 1000}, "heavy")):
            lower = {**tree, "limits": limits}
            again = lab.run(lower, reuse=(first.path,))
            assert lab.calls() == {}, "every other image is as it was"
            failed = [row for row in again.table().to_pylist() if row["status"] == "failed"]
            assert [(row["uri"], row["reason"]) for row in failed] == [(f"{name}.png", "too large")]
            assert failed[0]["error"].startswith(f"{last}: ")
            assert lab.content(again) == lab.content(lab.run(lower))
            # and a higher limit measures it again
            higher = lab.run(tree, reuse=(again.path,))
            assert lab.calls() == ({"Blue": {name}} if last == "views" else {"Red": {name}})
            assert lab.content(higher) == lab.content(first)


def test_patches_of_an_image_beyond_a_lower_limit_fail_as_well(lab):
    Image.new("RGB", (30, 12), "white").save(lab.source / "wide.png")
    inner = lab.pipeline("Red")["stages"][3:]
    cut = {"stage": "reused_stages:Halves", "log": str(lab.log), "stages": inner}
    tree = {"stages": ["header", cut], "rules": {}, "preview": 0}
    first = lab.run(tree)
    assert first.info.counts["failed"] == 0
    lower = {**tree, "limits": {"pixels": 200}}
    again = lab.run(lower, reuse=(first.path,))
    assert lab.content(again) == lab.content(lab.run(lower))
    assert again.info.counts["reasons"] == {"too large": 2}


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
    assert lab.content(finished) == lab.content(lab.run(changed))
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


def test_a_dry_run_counts_what_would_be_reused(lab):
    first = lab.run(lab.pipeline("Red"))
    lab.image("new", 77)
    request = lab.request(lab.pipeline("Red", "Said"), reuse=(first.path,))
    found = estimate(request, job.list_source(request), 100)
    stages = {stage["stage"]: (stage["rows"], stage["reused"]) for stage in found["stages"]}
    reused = {"header": (1, 6), "geometry": (1, 6), "decode": (1, 6), "red": (1, 6), "said": (7, 0)}
    assert stages == {**reused, "making previews": (1, 0)}
    assert not request.out.exists()


def test_what_cannot_be_reused_is_one_line(lab):
    tree = lab.pipeline("Red")
    first = lab.run(tree)
    with pytest.raises(UserError, match="contains no run"):
        lab.run(tree, out=lab.folder / "none", reuse=(lab.source,))
    assert not (lab.folder / "none").exists()
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
    lab_at, tmp_path_factory, before, after, changes, tasks
):
    lab = lab_at(tmp_path_factory.mktemp("property") / "lab")
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
    assert lab.content(reused) == lab.content(lab.run(tree(after)))


@pytest.mark.parametrize("digits", [64, 16], ids=["sha256", "phash"])
def test_stages_before_a_decode_that_failed_were_not_called_whichever_stage_decoded(lab, tmp_path, digits):
    """A perceptual hash takes the pixels, and a preview is made after the first stage."""
    (tmp_path / "list.txt").write_text("5" * digits)
    red = lab.pipeline("Red")["stages"][-1]
    tree = {"stages": ["header", red, "decode"], "blocklist": str(tmp_path / "list.txt"), "rules": {}}
    first = lab.run({**tree, "limits": {"pixels": 100}})
    assert {row["error"].partition(":")[0] for row in first.table().to_pylist()} == {"decode"}
    assert lab.calls() == {}
    reused = lab.run(tree, reuse=(first.path,))
    assert lab.calls() == {"Red": {f"i{number}" for number in range(6)}}
    assert lab.content(reused) == lab.content(lab.run(tree))
