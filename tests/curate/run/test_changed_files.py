"""A file that changes during the run never gives a row of two files: it fails, and says why."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from uhr.manifests.manifest import Manifest
from uhr.manifests.sources.folder import Folder

STAGES = """
import pyarrow as pa
from uhr.curate.stage import FrameStage
from uhr.manifests.schema import Column

change = None


class _Change(FrameStage):
    adds = (Column("nothing", pa.int32(), "no value"),)

    def annotate(self, frame):
        change(frame.path)
        return {}


class InHeaders(_Change):
    name, reads = "in_headers", "header"


class InPixels(_Change):
    name = "in_pixels"


class BeforeDecode(_Change):
    name, needs = "before_decode", ("width",)


class OpensThePathItself(FrameStage):
    name = "opens_the_path"
    adds = (Column("first_byte", pa.int32(), "of whatever is there"),)

    def annotate(self, frame):
        change(frame.path)
        with open(frame.path, "rb") as file:
            return {"first_byte": file.read(1)[0]}
"""


PIPELINE = "preset: quickstart\nrules: {flatness: null}\n"


def another_file(path: Path) -> None:
    shutil.copy(path.parents[1] / "new.jpg", path.with_name(".new"))
    os.replace(path.with_name(".new"), path)


def in_place(path: Path) -> None:
    path.write_bytes((path.parents[1] / "new.jpg").read_bytes())


def appended(path: Path) -> None:
    with open(path, "ab") as file:
        file.write(b"\0" * 100)


def removed(path: Path) -> None:
    path.unlink()


def a_link(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.parents[1] / "new.jpg")


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def under_the_old_size_and_time(path: Path) -> None:
    status, new = path.stat(), (path.parents[1] / "new.jpg").read_bytes()
    # cut or padded to the old size: only its header differs from that of the listed file
    path.write_bytes(new[: status.st_size].ljust(status.st_size, b"\0"))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


CHANGES = (another_file, in_place, appended, removed, a_link, a_folder)


@pytest.fixture
def source(tmp_path, forge) -> Path:
    """An image of 480x320 px with a caption for each of `CHANGES`, and `sea.jpg`, which stays as it is;
    outside of the source, `new.jpg` is 600x400.
    """
    folder = tmp_path / "in"
    folder.mkdir()
    names = [f"{change.__name__}.jpg" for change in CHANGES]
    for seed, name in enumerate(("sea.jpg", *names)):
        (folder / name).write_bytes(forge.encode(forge.image(480, 320, seed=seed), "JPEG", quality=90))
        (folder / name).with_suffix(".txt").write_text(f"a {name}")
    (tmp_path / "new.jpg").write_bytes(forge.encode(forge.image(600, 400, seed=99), "JPEG", quality=90))
    return folder


def by_name(path: Path) -> None:
    """The change that the file is called after."""
    for change in CHANGES:
        if path.stem == change.__name__:
            change(path)


@pytest.fixture
def rows_after(source, tmp_path, uhr, monkeypatch):
    """Curate while the stage `when` calls `change(path)` on every image; "listing": after the listing."""
    package = tmp_path / "changing_stages.py"
    package.write_text(STAGES)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(__import__("sys").modules, "changing_stages", raising=False)
    import changing_stages

    def call(when: str, change) -> dict[str, dict]:
        changing_stages.change = lambda path: change(Path(path))
        pipeline = tmp_path / "p.yaml"
        if when == "listing":
            listed = Folder.list

            def then_change(*given):
                found = listed(*given)
                for path in sorted(source.glob("*.jpg")):
                    change(path)
                return found

            monkeypatch.setattr(Folder, "list", then_change)
            pipeline.write_text(PIPELINE)
        else:
            pipeline.write_text(f"{PIPELINE}stages: {{'changing_stages:{when}': {{}}}}\n")
        arguments = ("curate", "run", pipeline, "--source", source, "--out", tmp_path / "out")
        code, _, errors = uhr(*arguments, "--engine", "local", "--workers", 0)
        assert code == 0, errors
        return {row["uri"]: row for row in Manifest.open(tmp_path / "out").table().to_pylist()}

    return call


@pytest.mark.parametrize("when", ["listing", "InHeaders", "BeforeDecode", "InPixels", "OpensThePathItself"])
def test_rows_of_changed_files_fail_as_changed_and_hold_nothing_that_was_measured(when, rows_after, tmp_path):
    rows = rows_after(when, by_name)
    assert rows.pop("sea.jpg")["status"] == "kept"
    measured = ("width", "format", "file_size", "content_hash", "entropy", "megapixels")
    for uri, row in rows.items():
        assert (row["status"], row["reason"]) == ("failed", "changed"), row
        assert "the file changed during the run" in row["error"]
        assert [row[name] for name in measured] == [None] * len(measured), uri
        assert row["caption"] == f"a {uri}", "its sidecar is the one that was listed"
    assert len(rows) == len(CHANGES)
    ids = [row["sample_id"] for row in rows.values()]
    assert Manifest.open(tmp_path / "out").previews(ids) == {}


def test_a_replacement_of_the_same_size_and_time_is_found_by_its_header(rows_after):
    def at(path: Path) -> None:
        if path.stem == "in_place":
            under_the_old_size_and_time(path)

    row = rows_after("InHeaders", at)["in_place.jpg"]
    assert (row["status"], row["reason"]) == ("failed", "changed")
    assert "480x320" in row["error"]
    assert "600x400" in row["error"]


def test_a_caption_that_changes_after_the_listing_fails_its_row_too(rows_after):
    def at(path: Path) -> None:
        caption = path.with_suffix(".txt")
        if path.stem == "removed":
            caption.unlink()
        elif path.stem == "in_place":
            caption.write_text("another caption")
        elif path.stem == "appended":
            appended(caption)

    rows = rows_after("listing", at)
    for stem in ("removed", "in_place", "appended"):
        row = rows[f"{stem}.jpg"]
        assert (row["status"], row["reason"], row["caption"]) == ("failed", "changed", None)
        assert row["error"].startswith(f"sidecars: {stem}.txt: the file changed during the run")
    assert rows["sea.jpg"]["caption"] == "a sea.jpg"


def test_files_that_do_not_change_are_kept_and_verified(rows_after, uhr, tmp_path):
    rows = rows_after("InHeaders", lambda path: None)
    assert {row["status"] for row in rows.values()} == {"kept"}
    code, printed, _ = uhr("manifest", "verify", tmp_path / "out", "--pixels")
    assert (code, "sound" in printed) == (0, True)
