"""What a run has taken over stays known to those that reuse it in turn, in folders and in stores."""

from __future__ import annotations

import hashlib
import shutil

import pytest

from uhr.base.errors import UserError
from uhr.base.store import StoreError
from uhr.curate.frame import Frame
from uhr.curate.run.earlier.files import EarlierFile, earlier_files
from uhr.manifests.lineage import lineage
from uhr.manifests.manifest import Manifest
from uhr.manifests.sources.blobs import NO_LIMITS
from uhr.pixels.types import PixelFault


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


def test_what_one_run_hides_or_leaves_out_stays_so_for_those_that_reuse_it(lab, uhr):
    tree = {**lab.pipeline("Red"), "pixels": "all"}
    first = lab.run(tree)
    code, _, errors = uhr("manifest", "forget", first.path, "--url", "i5.png")
    assert code == 0, errors
    first = Manifest.open(first.path)
    listed = lab.folder / "listed.txt"
    listed.write_text(hashlib.sha256((lab.source / "i1.png").read_bytes()).hexdigest())
    stages = [*tree["stages"], {"stage": "blocklist", "files": [str(listed)]}]
    hiding = {**tree, "stages": stages, "rules": {"blocklist": "blocklist_match IS NULL"}}
    second = lab.run(hiding, reuse=(first.path,))
    assert second.info.redactions == first.info.redactions
    # it names the second alone, has no list, and its source still has both images
    third = lab.run({**tree, "pixels": "none"}, reuse=(second.path,))
    assert lab.calls() == {}
    rows = {row["uri"]: row for row in third.table().to_pylist()}
    assert rows.keys() == {f"i{n}.png" for n in range(5)}
    assert third.info.source["forgotten"] == 1
    assert third.info.redactions == first.info.redactions
    code, printed, _ = uhr("manifest", "verify", third.path)
    assert code == 0, printed
    shutil.rmtree(lab.source)
    with pytest.raises(PixelFault, match="removed after it was listed"):
        third.source.open(rows["i1.png"]).read(NO_LIMITS)
    data = third.source.open(rows["i2.png"]).read(NO_LIMITS)
    assert hashlib.sha256(data).hexdigest() == rows["i2.png"]["content_hash"]


def test_an_unfinished_run_passes_on_what_it_has_reused(lab, uhr):
    tree = {**lab.pipeline("Red"), "pixels": "all"}
    first = lab.run(tree)
    code, _, errors = uhr("manifest", "forget", first.path, "--url", "i5.png")
    assert code == 0, errors
    half = lab.begin({**tree, "pixels": "none"}, 1, reuse=(first.path,))
    third = lab.run({**tree, "pixels": "none"}, reuse=(half,))
    rows = {row["uri"]: row for row in third.table().to_pylist()}
    assert rows.keys() == {f"i{n}.png" for n in range(5)}
    assert third.info.redactions == Manifest.open(first.path).info.redactions
    shutil.rmtree(lab.source)
    assert third.source.open(rows["i2.png"]).read(NO_LIMITS)


def test_runs_in_stores_are_reused_from_any_machine(lab, s3, uhr, monkeypatch):
    everything = {f"i{n}" for n in range(6)}
    tree, changed = lab.pipeline("Red", "Odd"), lab.pipeline("Red", "Odd", "Blue")
    half, first = f"s3://{s3.bucket}/half", f"s3://{s3.bucket}/first"
    monkeypatch.setenv("XDG_CACHE_HOME", str(lab.folder / "cache of one"))
    lab.begin({**tree, "pixels": "all"}, 1, half)
    lab.in_store(first, {**tree, "pixels": "all"})
    assert lab.calls()["Red"] == everything
    oracle = lab.content(lab.run(changed))

    # of an unfinished run, on another machine: only the other unit is measured
    monkeypatch.setenv("XDG_CACHE_HOME", str(lab.folder / "cache of two"))
    of_half = lab.in_store(f"s3://{s3.bucket}/of-half", changed, reuse=(half,))
    assert lab.calls() == {"Red": {"i3", "i4", "i5"}, "Odd": {"i3", "i4", "i5"}, "Blue": everything}
    assert lab.content(of_half) == oracle
    assert of_half.info.parents[0].path == half

    # of a manifest, into a store: its stored images are read from the store
    second = lab.in_store(f"s3://{s3.bucket}/second", changed, reuse=(first,))
    assert lab.calls() == {"Blue": everything}
    assert lab.content(second) == oracle
    assert second.info.parents[0].path == first
    assert [link["path"] for link in lineage(f"s3://{s3.bucket}/second")] == [
        f"s3://{s3.bucket}/second",
        first,
    ]
    into_folder = lab.run(changed, reuse=(first,))
    assert lab.calls() == {"Blue": everything}
    assert lab.content(into_folder) == oracle
    shutil.rmtree(lab.source)
    monkeypatch.setenv("XDG_CACHE_HOME", str(lab.folder / "cache of three"))
    again = Manifest.open(f"s3://{s3.bucket}/second")
    for row in again.table().to_pylist():
        data = again.source.open(row).read(NO_LIMITS)
        assert hashlib.sha256(data).hexdigest() == row["content_hash"]


def test_an_unfinished_run_in_a_store_retries_in_place_though_it_is_killed_again(lab, s3, monkeypatch):
    out = f"s3://{s3.bucket}/out"
    tree = lab.pipeline("Red", red={"fail": "dark"})
    lab.begin(tree, 1, out)
    assert lab.calls() == {"Red": {"i0", "i1", "i2"}}
    changed = {**tree, "limits": {"seconds": 90}}
    with pytest.raises(UserError, match="was begun with another pipeline"):
        lab.in_store(out, changed)
    with monkeypatch.context() as patch:
        # what it had measured is collected, its parts are removed, and nothing is measured
        patch.setattr("uhr.curate.run.job.passes_run", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            lab.in_store(out, changed, retry=("stage error",))
    monkeypatch.setenv("XDG_CACHE_HOME", str(lab.folder / "another machine"))
    finished = lab.in_store(out, changed, retry=("stage error",))
    assert lab.calls() == {"Red": {"i0", "i1", "i3", "i4", "i5"}}
    assert lab.content(finished) == lab.content(lab.run(changed))
    assert finished.info.parents == []


def test_what_cannot_be_reused_from_a_store_is_one_line(lab, s3):
    out, tree = f"s3://{s3.bucket}/out", lab.pipeline("Red")
    with pytest.raises(UserError, match=f"--reuse: {out}-2 contains no run"):
        lab.in_store(out, tree, reuse=(f"{out}-2",))
    with pytest.raises(UserError, match=f"--reuse {out} is the prefix of this run"):
        lab.in_store(out, tree, reuse=(out,))


def test_a_slice_by_reference_in_a_store_lends_its_previews_to_any_machine(lab, s3, uhr, monkeypatch):
    first, sliced = f"s3://{s3.bucket}/first", f"s3://{s3.bucket}/sliced"
    monkeypatch.setenv("XDG_CACHE_HOME", str(lab.folder / "cache of one"))
    tree = {**lab.pipeline("Red"), "preview": 20}
    changed = {**lab.pipeline("Red", "Odd"), "preview": 20}
    lab.in_store(first, tree)
    code, _, errors = uhr(
        "manifest", "slice", first, "--where", "red < 150", "--materialise", "none", "--out", sliced
    )
    assert code == 0, errors
    assert Manifest.open(sliced).info.by_reference
    for name in ("i4.png", "i5.png"):
        (lab.source / name).unlink()
    oracle = lab.content(lab.run(changed))
    # the images are of 16 px: the same preview at 30 px, another at 12 px
    other_sizes = {size: lab.content(lab.run({**changed, "preview": size})) for size in (30, 12)}
    made = []
    preview = Frame.preview
    monkeypatch.setattr(Frame, "preview", lambda *all_: (made.append(all_[1]), preview(*all_))[1])
    # one machine collects what the slice has, another one does the work
    out = lab.begin(changed, 1, reuse=(sliced,))
    shutil.rmtree(lab.folder / "cache of one")
    monkeypatch.setenv("XDG_CACHE_HOME", str(lab.folder / "cache of two"))
    (file,) = earlier_files(out / "units")
    assert EarlierFile(file).preview(0) is not None
    assert lab.content(lab.run(changed, out=out)) == oracle
    assert lab.calls() == {"Odd": {"i3"}}
    assert made == []
    for size, expected in other_sizes.items():
        again = lab.run({**changed, "preview": size}, reuse=(sliced,))
        assert lab.content(again) == expected
        assert made == ([] if size == 30 else [12] * 4)


@pytest.mark.parametrize("fault", [StoreError("s3://b: the store failed", "wait"), FileNotFoundError("gone")])
def test_a_preview_that_cannot_be_read_says_nothing_about_its_image(lab, monkeypatch, fault):
    tree = lab.pipeline("Red")
    first = lab.run(tree)
    oracle = lab.content(first)

    def unreadable(*_: object) -> None:
        raise fault

    with monkeypatch.context() as patch:
        patch.setattr(EarlierFile, "preview", unreadable)
        second = lab.run(tree, reuse=(first.path,))
    if isinstance(fault, FileNotFoundError):
        assert lab.content(second) == oracle, "it is made anew"
    else:
        assert second.info.counts["reasons"] == {"unavailable": 6}
        error = "decode: its preview cannot be read (s3://b: the store failed)"
        assert second.table()["error"].to_pylist() == [error] * 6
    assert lab.content(lab.run(tree, reuse=(first.path, second.path))) == oracle
    assert lab.calls() == {}
