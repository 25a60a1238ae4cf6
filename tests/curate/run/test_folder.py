"""OUT is new, empty or a run's own: no file of the user's is mixed with, overwritten or removed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def tree(folder: Path) -> dict[str, tuple[int, int, int]]:
    paths = [folder, *folder.rglob("*")]
    return {str(p): (p.stat().st_ino, p.stat().st_mtime_ns, p.stat().st_size) for p in paths}


def _curate_into(out, images):
    return "curate", "run", "quickstart", "--source", images, "--workers", 0, "--out", out


def test_out_must_be_new_or_a_run_s_own(uhr, images, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").touch()
    code, _, errors = uhr(*_curate_into(out, images))
    assert (code, errors) == (
        1,
        f"uhr: --out {out} already contains something else (thesis.tex): name a new folder\n",
    )
    code, _, errors = uhr(*_curate_into(out / "thesis.tex", images))
    assert (code, errors) == (1, f"uhr: --out {out}/thesis.tex is a file: name a folder for the manifest\n")
    code, _, errors = uhr(*_curate_into(images / "out", images))
    assert code == 1
    assert "is inside the source" in errors
    assert not (images / "out").exists()


@pytest.mark.parametrize(
    "names",
    [["units/thesis.tex"], ["units/lock", "thesis.tex"], ["units/lock", "samples/tea.parquet"]],
    ids=["in units", "beside units", "in samples"],
)
def test_a_folder_called_units_does_not_make_the_users_files_ours(uhr, images, tmp_path, names):
    out = tmp_path / "out"
    for name in names:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("years of work")
    before = tree(out)
    code, _, errors = uhr(*_curate_into(out, images))
    assert code == 1
    assert f"--out {out} already contains something else ({names[-1]}): name a new folder" in errors
    assert tree(out) == before


def test_what_came_into_units_during_a_run_stays_there(uhr, images, tmp_path, monkeypatch):
    from uhr.curate.run import job as engine

    out = tmp_path / "out"
    real = engine._finish

    def finish(manifest, folder):
        (out / "units" / "thesis.tex").write_text("years of work")
        return real(manifest, folder)

    monkeypatch.setattr(engine, "_finish", finish)
    code, _, errors = uhr(*_curate_into(out, images))
    assert code == 0
    assert "'thesis.tex', which no run wrote" in errors
    assert [path.name for path in (out / "units").iterdir()] == ["thesis.tex"]
    (out / "units" / "thesis.tex").unlink()
    monkeypatch.setattr(engine, "_finish", real)
    assert uhr(*_curate_into(out, images))[0] == 0
    assert not (out / "units").exists()


def test_an_out_that_cannot_be_written_to_is_one_line(uhr, images, tmp_path, monkeypatch):
    out = tmp_path / "file" / "out"
    out.parent.touch()
    code, _, errors = uhr(*_curate_into(out, images))
    assert code == 1
    assert errors.startswith(f"uhr: --out {out} cannot be written to (Not a directory)")
    real = os.mkdir

    def closed(path, *arguments, **options):
        if str(path).startswith(str(tmp_path / "closed")):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *arguments, **options)

    monkeypatch.setattr(os, "mkdir", closed)
    code, _, errors = uhr(*_curate_into(tmp_path / "closed", images))
    assert (code, errors) == (
        1,
        f"uhr: --out {tmp_path}/closed cannot be written to (Permission denied): name another folder\n",
    )
