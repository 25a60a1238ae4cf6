"""The source of a run, and its place relative to OUT."""

from __future__ import annotations

import pytest

from uhr.base.errors import UserError
from uhr.manifests.sources import build
from uhr.manifests.sources.base import check_no_overlap
from uhr.manifests.sources.folder import Folder


def test_out_and_source_may_not_be_inside_each_other(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "a")
    for source, out in (("a", "a"), ("a", "a/out"), ("a/b", "a"), ("a", "link/out"), ("link", "a/x")):
        with pytest.raises(UserError, match="is inside"):
            check_no_overlap(Folder.at(tmp_path / source), tmp_path / out)
    check_no_overlap(Folder.at(tmp_path / "a"), tmp_path / "ab")


def test_out_may_not_overlap_with_any_prefix_of_named_sources(tmp_path):
    folder = {"kind": "folder", "path": str(tmp_path)}
    named = build({"kind": "named", "sources": {"here": folder, "there": "s3://bucket/images"}}, "pipeline")
    for source in (
        named,
        build({"kind": "stored", "path": "x", "parts": [], "source": named.described()}, "m"),
    ):
        for out in ("s3://bucket/images", "s3://bucket/images/out", "s3://bucket"):
            with pytest.raises(UserError, match=f"--out {out} and the source s3://bucket/images overlap"):
                check_no_overlap(source, out)
        check_no_overlap(source, "s3://bucket/images-2")
        with pytest.raises(UserError, match="is inside the source"):
            check_no_overlap(source, tmp_path / "out")


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
    assert "1 with a broken sidecar: see source_meta (0.json: not JSON" in " ".join(errors.split())
    code, _, errors = uhr(*run, "--out", tmp_path / "out2", "--set", "sidecars.caption=[beschreibung]")
    assert code == 0
    assert "no image has a caption" not in errors


@pytest.mark.parametrize("place", ["folder", "store"])
def test_a_manifest_as_source_gives_its_rows_more_columns(tmp_path, forge, uhr, s3, place):
    from uhr.manifests.lineage import lineage
    from uhr.manifests.manifest import Manifest

    (tmp_path / "in").mkdir()
    for number in range(3):
        image = forge.encode(forge.image(480 - number, 320, seed=number), "JPEG", quality=90)
        (tmp_path / "in" / f"{number}.jpg").write_bytes(image)
    (tmp_path / "in" / "0.txt").write_text("a lake")
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text("stages: [header, decode, entropy]\nrules: {wide: width >= 479}\n")
    second.write_text("stages: [header, exposure]\nrules: {textured: entropy > 0}\n")
    run = ("--engine", "local", "--workers", 0)
    a = tmp_path / "a" if place == "folder" else f"s3://{s3.bucket}/a"
    assert uhr("curate", "run", first, "--source", tmp_path / "in", "--out", a, *run)[0] == 0
    source = f"manifest:{a}"
    code, _, errors = uhr("curate", "run", second, "--source", source, "--out", f"{a}/b", *run)
    assert code == 1
    assert f"--out {a}/b" in errors
    code, _, errors = uhr("curate", "run", second, "--source", source, "--out", tmp_path / "b", *run)
    assert code == 0, errors
    old = {row["uri"]: row for row in Manifest.open(a).table().to_pylist()}
    made = Manifest.open(tmp_path / "b")
    rows = {row["uri"]: row for row in made.table().to_pylist()}
    assert rows.keys() == {"0.jpg", "1.jpg"}
    for uri, row in rows.items():
        for name in ("sample_id", "content_hash", "entropy", "caption", "width", "source_version"):
            assert row[name] == old[uri][name], name
        assert row["luma_mean"] is not None
    assert [each["role"] for each in lineage(tmp_path / "b")] == ["", "columns added to"]
    assert made.source.open(rows["0.jpg"]).path == str(tmp_path / "in" / "0.jpg")
    code, printed, _ = uhr("manifest", "verify", tmp_path / "b", "--pixels")
    assert code == 0, printed
    # the file changed since: nothing that was measured of the old one is left
    (tmp_path / "in" / "0.jpg").write_bytes(forge.encode(forge.image(500, 320, seed=9), "JPEG"))
    assert uhr("curate", "run", second, "--source", source, "--out", tmp_path / "c", *run)[0] == 0
    row = Manifest.open(tmp_path / "c").row("0.jpg")
    assert (row["status"], row["reason"], row["entropy"], row["content_hash"]) == (
        "failed",
        "changed",
        None,
        None,
    )


def test_a_run_over_a_manifest_writes_only_what_it_adds_by_reference(tmp_path, forge, uhr):
    from uhr.manifests.manifest import Manifest
    from uhr.manifests.verify.verification import verify

    (tmp_path / "in").mkdir()
    for number in range(4):
        image = forge.encode(forge.image(480 - number, 320, seed=number), "JPEG", quality=90)
        (tmp_path / "in" / f"{number}.jpg").write_bytes(image)
    (tmp_path / "in" / "0.txt").write_text("a lake")
    first, second, cut = tmp_path / "first.yaml", tmp_path / "second.yaml", tmp_path / "cut.yaml"
    first.write_text("stages: [header, decode, entropy]\nrules: {wide: width >= 478}\n")
    second.write_text("stages: [header, exposure]\nrules: {odd: width <> 479}\n")
    patches = "[header, decode, {stage: patches, size: 64}]"
    cut.write_text(f"stages: {patches}\n")
    run = ("--engine", "local", "--workers", 0)
    assert uhr("curate", "run", first, "--source", tmp_path / "in", "--out", tmp_path / "a", *run)[0] == 0
    before = {file: file.read_bytes() for file in (tmp_path / "a").rglob("*") if file.is_file()}
    over = ("curate", "run", second, "--source", f"manifest:{tmp_path / 'a'}", *run)
    assert uhr(*over, "--out", tmp_path / "whole")[0] == 0
    code, _, errors = uhr(*over, "--out", tmp_path / "none", "--materialise", "none")
    assert code == 0, errors
    assert "compare: 3 rows" in errors
    whole, none = Manifest.open(tmp_path / "whole"), Manifest.open(tmp_path / "none")
    assert none.info.by_reference
    assert none.table(whole.schema.names).equals(whole.table())
    assert sorted(none.schema.names) == sorted(whole.schema.names)
    assert (none.info.counts, none.info.stages) == (whole.info.counts, whole.info.stages)
    added = {name for stage in none.info.stages if stage.name == "exposure" for name in stage.adds}
    assert set(none.stored_schema.names) == {"sample_id", "position", "status", "reason"} | added
    assert {file: file.read_bytes() for file in (tmp_path / "a").rglob("*") if file.is_file()} == before
    assert verify(none.path).faults == []
    # again: it is finished, and in the other form it is another manifest
    assert uhr(*over, "--out", tmp_path / "none", "--materialise", "none")[0] == 0
    code, _, errors = uhr(*over, "--out", tmp_path / "none")
    assert (code, "was made by reference" in errors) == (1, True), errors
    for pipeline, source, message in (
        (second, tmp_path / "in", "the source is not one manifest"),
        (cut, f"manifest:{tmp_path / 'a'}", "cuts patches"),
    ):
        call = ("curate", "run", pipeline, "--source", source, "--out", tmp_path / "x", *run)
        code, _, errors = uhr(*call, "--materialise", "none")
        assert (code, message in errors) == (1, True), errors
        assert not (tmp_path / "x").exists()


def test_the_same_uri_in_two_named_sources_is_two_samples(tmp_path, forge, uhr):
    from uhr.manifests.manifest import Manifest

    for seed, name in enumerate(("a", "b")):
        (tmp_path / name).mkdir()
        image = forge.encode(forge.image(480, 320, seed=seed), "JPEG", quality=90)
        (tmp_path / name / "0.jpg").write_bytes(image)
    (tmp_path / "b" / "copy of a.jpg").write_bytes((tmp_path / "a" / "0.jpg").read_bytes())
    (tmp_path / "b" / "0.json").write_text('{"license": "MIT"}')
    pipeline = tmp_path / "p.yaml"
    pipeline.write_text(
        "preset: quickstart\nrules: {flatness: null}\nsources:\n"
        f"  one: {tmp_path / 'a'}\n"
        f"  two: {{path: {tmp_path / 'b'}, license: CC0, contract: C-7}}\n"
    )
    run = ("curate", "run", pipeline, "--out", tmp_path / "out", "--engine", "local", "--workers", 0)
    code, _, errors = uhr(*run)
    assert code == 0, errors
    manifest = Manifest.open(tmp_path / "out")
    rows = {(row["source_name"], row["uri"]): row for row in manifest.table().to_pylist()}
    assert {key: (row["license"], row["contract"], row["reason"]) for key, row in rows.items()} == {
        ("one", "0.jpg"): (None, None, None),
        ("two", "0.jpg"): ("MIT", "C-7", None),
        ("two", "copy of a.jpg"): ("CC0", "C-7", "duplicates"),
    }
    assert len({row["sample_id"] for row in rows.values()}) == 3
    code, printed, _ = uhr("manifest", "verify", tmp_path / "out", "--pixels")
    assert code == 0, printed
    path = manifest.source.open(rows["two", "0.jpg"]).path
    assert path == str(tmp_path / "b" / "0.jpg")
    assert "already finished" in uhr(*run)[1]
    pipeline.write_text(pipeline.read_text().replace("  one:", "  'o/ne':"))
    assert "use letters, digits" in uhr(*run)[2]
    assert uhr(*run, "--source", tmp_path / "a")[0] == 1
