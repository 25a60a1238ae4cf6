"""Slices by reference: what every reader sees equals the slice that has its rows itself."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from uhr.base.errors import UserError
from uhr.base.files import sha256_file
from uhr.cli import main
from uhr.manifests.export.base import ExportOptions
from uhr.manifests.export.folders import ImageFolder
from uhr.manifests.export.job import ExportRequest, export
from uhr.manifests.manifest import Manifest
from uhr.manifests.report import write_report
from uhr.manifests.schema import sample_id
from uhr.manifests.selection.options import SliceOptions
from uhr.manifests.selection.slicing import slice_manifest
from uhr.manifests.stats import compute
from uhr.manifests.verify.verification import verify

Make = Callable[..., Manifest]
Row = Callable[..., dict[str, Any]]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


steps = st.fixed_dictionaries(
    {},
    optional={
        "status": st.sampled_from(["kept", "rejected", "any"]),
        "where": st.sampled_from(["height > 3040", "license = 'CC1'", "entropy IS NULL OR entropy < 6"]),
        "sample": st.integers(1, 5),
        "seed": st.integers(0, 3),
        "split": st.sampled_from([{"a": 0.5, "b": 0.5}]),
    },
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=8)
@given(first=steps, second=steps)
def test_every_reader_sees_what_it_sees_of_the_slice_with_rows(
    first: dict[str, Any], second: dict[str, Any], manifest: Manifest, tmp_path_factory: Any
) -> None:
    folder = tmp_path_factory.mktemp("slices")
    try:
        rows = _slices(manifest, folder / "rows", "rows", first, second)
    except UserError as error:  # a step that leaves nothing
        with pytest.raises(UserError, match=re.escape(error.what.split("(")[0][:20])):
            _slices(manifest, folder / "none", "none", first, second)
        return
    none = _slices(manifest, folder / "none", "none", first, second)
    assert none.schema.equals(rows.schema, check_metadata=True)
    assert none.table().equals(rows.table())
    assert none.info.counts == rows.info.counts
    ids = rows.table(["sample_id"])["sample_id"].to_pylist()
    assert none.previews(ids) == rows.previews(ids)
    whole = slice_manifest(none, folder / "whole", SliceOptions(status="any"))
    assert [part.sha256 for part in whole.info.parts] == [part.sha256 for part in rows.info.parts]
    assert [part.sha256 for part in whole.info.previews] == [part.sha256 for part in rows.info.previews]
    assert verify(none.path).faults == verify(rows.path).faults == []
    assert len(pq.read_table(folder / "none/second/samples").column_names) <= 3


def _slices(manifest: Manifest, folder: Path, what: str, *steps: dict[str, Any]) -> Manifest:
    for name, given_ in zip(("first", "second"), steps, strict=True):
        options = SliceOptions.model_validate({"status": "any", **given_, "materialise": what})
        manifest = slice_manifest(manifest, folder / name, options)
    return manifest


@pytest.fixture
def images(make: Make, forge: Any, tmp_path: Path) -> Manifest:
    """Four images on disk and their manifest."""
    rows = []
    for number in range(4):
        file = tmp_path / "source" / f"{number}.jpg"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(forge.encode(forge.image(48, 32, seed=number), "JPEG"))
        facts = {"format": "JPEG", "width": 48, "height": 32, "content_hash": sha256_file(file)}
        facts |= {"uri": file.name, "sample_id": sample_id(file.name), "status": "kept", "caption": "a lake"}
        rows.append(facts)
    return make(tmp_path / "set", rows)


def test_exports_and_reports_are_equal_too(images: Manifest, tmp_path: Path) -> None:
    found = {}
    for what in ("rows", "none", "pixels"):
        made = slice_manifest(images, tmp_path / what, SliceOptions(where="uri > '1'", materialise=what))
        out = tmp_path / f"{what}-export"
        export(ExportRequest(made, out, ImageFolder(made), ExportOptions()))
        files = {
            str(file.relative_to(out)): file.read_bytes()
            for file in sorted(out.rglob("*"))
            if file.is_file() and file.name != "export.json"
        }
        stats = asdict(compute(made))
        assert stats.pop("id") == made.id
        page = write_report(made, tmp_path / f"{what}.html").read_text()
        shown = re.findall(r"data:image/[a-z+]+;base64,[^\"]+", page)
        found[what] = (files, stats, shown)
    assert len(found["rows"][0]) == 4
    assert found["none"] == found["rows"] == found["pixels"]


def test_pixels_of_a_slice_are_its_own(images: Manifest, tmp_path: Path) -> None:
    made = slice_manifest(images, tmp_path / "p", SliceOptions(where="uri > '1'", materialise="pixels"))
    before = {row["uri"]: (tmp_path / "source" / row["uri"]).read_bytes() for row in made.table().to_pylist()}
    for file in (tmp_path / "source").iterdir():
        file.unlink()
    opened = Manifest.open(made.path)
    rows = opened.table().to_pylist()
    assert {row["uri"]: opened.source.open(row).read() for row in rows} == before
    assert verify(made.path, pixels=True).faults == []
    with pytest.raises(UserError, match="1 images cannot be read"):
        slice_manifest(images, tmp_path / "q", SliceOptions(where="uri < '1'", materialise="pixels"))
    assert not (tmp_path / "q").exists()


def test_a_lost_or_changed_parent_is_named_in_one_line(
    manifest: Manifest, tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "s"
    arguments = ["manifest", "slice", str(manifest.path), "--sample", "5", "--materialise", "none"]
    assert main([*arguments, "--out", str(out)]) == 0
    moved = tmp_path / "moved" / "set"
    moved.parent.mkdir()
    assert not cache.exists(), "rows are read from the parent, not from a copy"
    manifest.path.rename(moved)
    capsys.readouterr()
    assert main(["manifest", "show", str(out)]) == 1
    line = capsys.readouterr().err
    assert "is by reference, and its parent" in line
    assert line.count("\n") == 1
    assert [fault.check for fault in verify(out).faults] == ["parent"]
    out.rename(moved.parent / "s")
    assert main(["manifest", "show", str(moved.parent / "s")]) == 0
    part = moved / "samples/part-00000.parquet"
    data = bytearray(part.read_bytes())
    data[100] ^= 1
    part.write_bytes(data)
    faults = verify(moved.parent / "s").faults
    assert [fault.check for fault in faults] == ["parent"]
    assert "part-00000.parquet" in faults[0].where
    capsys.readouterr()
    assert main(["manifest", "verify", str(moved.parent / "s"), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["faults"][0]["check"] == "parent"


def test_an_unknown_way_to_materialise_is_named(
    manifest: Manifest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(
        ["manifest", "slice", str(manifest.path), "--materialise", "row", "--out", str(tmp_path / "x")]
    )
    assert (code, "did you mean rows" in capsys.readouterr().err) == (1, True)
