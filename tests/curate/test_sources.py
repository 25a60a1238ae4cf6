"""The source of a run, and its place relative to OUT."""

from __future__ import annotations

import pytest

from uhr.base.errors import UserError
from uhr.curate.sources import check_no_overlap
from uhr.manifests.sources.folder import Folder


def test_out_and_source_may_not_be_inside_each_other(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "a")
    for source, out in (("a", "a"), ("a", "a/out"), ("a/b", "a"), ("a", "link/out"), ("link", "a/x")):
        with pytest.raises(UserError, match="is inside"):
            check_no_overlap(Folder.at(tmp_path / source), tmp_path / out)
    check_no_overlap(Folder.at(tmp_path / "a"), tmp_path / "ab")


def test_a_webdataset_is_curated_and_verified_through_its_source(tmp_path, forge, uhr):
    import io
    import json
    import tarfile

    from uhr.manifests.manifest import Manifest

    with tarfile.open(tmp_path / "s.tar", "w") as archive:
        for number in range(3):
            image = forge.encode(forge.image(480, 320, seed=number), "JPEG", quality=90)
            caption = json.dumps({"caption": f"image {number}", "license": "CC0"}).encode()
            for suffix, data in (("jpg", image), ("json", caption)):
                info = tarfile.TarInfo(f"{number}.{suffix}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    source = f"webdataset:{tmp_path / 's.tar'}"
    arguments = ("--source", source, "--out", tmp_path / "out", "--engine", "local", "--workers", 2)
    assert uhr("curate", "run", "quickstart", *arguments)[0] == 0
    rows = Manifest.open(tmp_path / "out").table().to_pylist()
    assert [(row["uri"], row["width"], row["caption"]) for row in rows] == [
        (f"s.tar/{number}.jpg", 480, f"image {number}") for number in range(3)
    ]
    assert all(row["status"] != "failed" and row["content_hash"] for row in rows)
    code, printed, _ = uhr("manifest", "verify", tmp_path / "out", "--pixels")
    assert code == 0, printed
    with open(tmp_path / "s.tar", "r+b") as file:
        file.seek(900)
        file.write(bytes(100))
    code, printed, _ = uhr("manifest", "verify", tmp_path / "out", "--pixels")
    assert code == 1
    assert "s.tar/0.jpg" in printed


def test_captions_under_an_unknown_key_are_named_and_broken_sidecars_too(tmp_path, forge, uhr):
    import json

    (tmp_path / "in").mkdir()
    for number in range(3):
        image = forge.encode(forge.image(480, 320, seed=number), "JPEG", quality=90)
        (tmp_path / "in" / f"{number}.jpg").write_bytes(image)
        content = json.dumps({"beschreibung": "ein See am Morgen", "id": "7"})
        (tmp_path / "in" / f"{number}.json").write_text(content if number else "{")
    run = ("curate", "run", "quickstart", "--source", tmp_path / "in", "--engine", "local", "--workers", 0)
    code, _, errors = uhr(*run, "--out", tmp_path / "out")
    assert code == 0
    assert "no image has a caption, and 2 have a text under 'beschreibung'" in " ".join(errors.split())
    assert "--set sidecars.caption=[beschreibung]" in " ".join(errors.split())
    assert "1 with a broken sidecar: see source_meta (0.json: no JSON" in " ".join(errors.split())
    code, _, errors = uhr(*run, "--out", tmp_path / "out2", "--set", "sidecars.caption=[beschreibung]")
    assert code == 0
    assert "no image has a caption" not in errors
