"""Runs as a user starts them: every file is one row, both engines agree, a bad image fails only its row."""

from __future__ import annotations

import json
import shutil
from typing import Any

import pytest
from PIL import Image

from uhr.manifests.manifest import Manifest

pytestmark = pytest.mark.usefixtures("warm_curation_workers")


@pytest.fixture
def curate(uhr, images, tmp_path):
    """Run a pipeline over the images in this process: the manifest, and what was printed."""

    def call(pipeline: str, *arguments: object, workers: int = 0, name: str = "out") -> tuple[Manifest, str]:
        out = tmp_path / name
        arguments = (*arguments, "--engine", "local", "--workers", workers)
        code, printed, errors = uhr("curate", "run", pipeline, "--source", images, "--out", out, *arguments)
        assert code == 0, errors
        return Manifest.open(out), printed

    return call


def rows_of(manifest: Manifest) -> dict[str, dict[str, Any]]:
    return {row["uri"]: row for row in manifest.table().to_pylist()}


def reasons(manifest: Manifest) -> dict[str, str]:
    return {uri: row["reason"] or row["status"] for uri, row in rows_of(manifest).items()}


@pytest.fixture
def whole(curated) -> Manifest:
    """The manifest of `curated`."""
    return Manifest.open(curated[0])


def test_every_file_becomes_one_row_with_the_expected_verdict(curated, whole, expected):
    manifest, printed = whole, curated[1]
    assert reasons(manifest) == expected
    for row in rows_of(manifest).values():
        assert (row["error"] is None) == (row["status"] != "failed")
        assert row["source_version"] is not None or row["reason"] == "broken link"
    assert "17 files: 8 kept, 5 rejected, 4 failed" in printed
    assert (manifest.path / "report.html").stat().st_size > 1000
    assert not (manifest.path / "units").exists()


def test_an_image_that_is_rejected_by_its_header_is_never_decoded(whole):
    row = rows_of(whole)["small and truncated.png"]
    assert (row["status"], row["reason"]) == ("rejected", "resolution")
    assert row["width"] == 60
    assert row["content_hash"] is None, "nothing behind the header was read"


def test_stages_after_a_rule_skip_the_rejected_images(curate):
    sets = ("--set", "rules.exposure=luma_mean < 0")
    rows = rows_of(curate("quickstart", *sets)[0])
    assert {row["reason"] for row in rows.values() if row["luma_mean"] is not None} == {"exposure"}
    flat, small, kept = rows["flat.png"], rows["small.png"], rows["1.jpg"]
    assert flat["flat_fraction"] is not None
    assert flat["entropy"] is None, "the rule over flat_fraction fires before the next stage"
    assert small["megapixels"] is not None
    assert small["flat_fraction"] is None
    assert kept["laplacian_var"] is None
    assert kept["dup_rank"] is None


def test_captions_and_rights_of_sidecars_are_in_their_image_s_row(whole):
    row = rows_of(whole)["5.jpg"]
    assert row["caption"] == "a striped field"
    assert (row["author"], row["license"]) == ("Ada", "CC0")
    assert json.loads(row["source_meta"]) == {"camera": "X1"}


def test_a_broken_sidecar_is_a_warning_and_a_note(curate, images, uhr, tmp_path):
    (images / "1.json").write_text("{")
    code, _, errors = uhr(
        "curate", "run", "quickstart", "--source", images, "--out", tmp_path / "o", "--workers", 0
    )
    assert code == 0
    assert "warning: 1 with a broken sidecar" in errors
    row = Manifest.open(tmp_path / "o").row("1.jpg")
    assert row["status"] == "kept"
    assert "1.json: not JSON" in json.loads(row["source_meta"])["sidecar_fault"]


def test_all_that_was_decoded_has_a_preview_kept_or_not(whole, curate):
    rows = rows_of(whole)
    shown = whole.previews([row["sample_id"] for row in rows.values()])
    decoded = {row["sample_id"] for row in rows.values() if row["content_hash"] is not None}
    assert set(shown) == decoded
    assert {rows[uri]["sample_id"] for uri in ("flat.png", "trip/same as 1.jpg")} <= decoded
    without, _ = curate("quickstart", "--set", "preview=0", name="without")
    assert without.previews(decoded) == {}


def test_any_number_of_workers_and_any_cut_into_units_give_the_same_manifest(curate):
    cuts = {0: 17, 1: 9, 3: 3}
    ids = {
        curate("quickstart", "--set", f"unit={cut}", workers=n, name=f"{n}")[0].id for n, cut in cuts.items()
    }
    assert len(ids) == 1


def test_links_to_folders_sockets_and_pipes_are_named_in_the_summary_and_the_manifest(curate, images):
    import os

    os.mkfifo(images / "pipe.jpg")
    (images / "again").symlink_to(images / "trip")
    manifest, printed = curate("quickstart")
    assert manifest.info.source["pipes"] == manifest.info.source["linked_folders"] == 1
    assert "not opened: links to folders 1, pipes 1" in printed


def test_the_funnel_adds_up(whole):
    info = whole.info
    funnel = [(rule.name, rule.seen, rule.rejected) for rule in info.rules if rule.state == "evaluated"]
    assert funnel == [("resolution", 14, 2), ("flatness", 11, 2), ("entropy", 9, 0), ("duplicates", 9, 1)]
    assert info.counts == {
        "rows": 17,
        "kept": 8,
        "rejected": 5,
        "failed": 4,
        "reasons": {
            "flatness": 2,
            "resolution": 2,
            "broken link": 1,
            "duplicates": 1,
            "empty file": 1,
            "not an image": 1,
            "truncated": 1,
        },
    }


def test_a_rule_that_cannot_be_evaluated_is_named_on_the_terminal_and_in_the_manifest(
    curate, uhr, images, tmp_path
):
    unsafe = ("--set", "stages.safety=null", "--set", "rules.nsfw=null")
    manifest, printed = curate("multiaspect-4k", *unsafe)
    idle = {rule.name: rule.why for rule in manifest.info.rules if rule.state == "not evaluated"}
    assert {"quality", "aesthetics", "people", "quality_of_people"} <= set(idle)
    assert idle["people"].startswith("channel 'people' requires rule 'people': stage 'people' was skipped")
    for name in idle:
        assert f"not evaluated       {name}" in printed
    skipped = {stage.name for stage in manifest.info.stages if stage.state == "skipped"}
    assert {"q_align", "artimuse", "rank"} <= skipped
    arguments = (
        "curate",
        "run",
        "multiaspect-4k",
        *unsafe,
        "--source",
        images,
        "--out",
        tmp_path / "strict",
        "--strict",
    )
    code, _, errors = uhr(*arguments)
    assert code == 1
    assert "--strict: embedding would be skipped" in errors
    assert not (tmp_path / "strict").exists()


def test_a_set_stage_sees_the_kept_rows_and_later_rules_decide(curate, outside):
    stages = ["header", "decode", f"{outside}:Neighbours", "exact_duplicates"]
    rules = {"crowd": "neighbours = 12 AND uri <> '1.jpg'", "first": "dup_rank = 0"}
    sets = [f"{name}={json.dumps(value)}" for name, value in (("stages", stages), ("rules", rules))]
    manifest, _ = curate("quickstart", "--set", sets[0], "--set", sets[1])
    rows = rows_of(manifest)
    # 14 readable headers, two of them with a truncated image behind it
    assert {row["neighbours"] for row in rows.values()} == {12, None}
    assert {row["status"] for row in rows.values() if row["neighbours"] is None} == {"failed"}
    # "1.jpg" is out before duplicates are looked for, so its copy is the first
    found = reasons(manifest)
    assert [uri for uri, reason in found.items() if reason == "crowd"] == ["1.jpg"]
    assert [uri for uri, reason in found.items() if reason == "first"] == ["link.png"]
    assert found["trip/same as 1.jpg"] == "kept"
    assert [(rule.name, rule.seen, rule.rejected) for rule in manifest.info.rules] == [
        ("crowd", 12, 1),
        ("first", 11, 1),
    ]


MOODS = {
    "segfault": ("crash", "crashed (SIGSEGV)"),
    "sleep": ("time limit", "took longer than 10 s"),
    "eat": ("memory limit", "needed more than 629.1 MB of memory"),
    "raise": ("stage error", "KeyError: 'a key\\nwith two lines'"),
    "exit": ("stage error", "SystemExit: 3"),
    "nan": ("no value", "rule 'scored' (score >= 0): column score has no value"),
    "type": ("stage error", "ValueError: column 'score' cannot hold str 'high' ("),
    "none": ("stage error", "TypeError: annotate gives NoneType, not a mapping of its columns"),
    "list": ("stage error", "TypeError: annotate gives list, not a mapping of its columns"),
    "column": ("stage error", "ValueError: it gives column 'mod', which it does not declare"),
    "text": ("stage error", "surrogates not allowed"),
    "fine": ("kept", ""),
}


@pytest.mark.ray
def test_a_fault_of_a_user_s_stage_fails_only_its_image_on_both_engines(uhr, images, outside, tmp_path):
    source = tmp_path / "moody"
    source.mkdir()
    for mood in MOODS:
        # not the same bytes: results are reused by content too
        (source / f"{mood}.jpg").write_bytes((images / "1.jpg").read_bytes() + mood.encode())
    pipeline = tmp_path / "moody.yaml"
    pipeline.write_text(f"""
        stages: [header, decode, {{stage: "{outside}:Moody"}}, {{stage: "{outside}:Redness", scale: 0.5}}]
        rules: {{scored: score >= 0}}
        limits: {{seconds: 10, memory: 600MiB}}
        unit: 5
    """)
    tables = []
    # Ray takes over what the first run has measured, and calls the stages again that failed
    retried = sorted({reason for reason, _ in MOODS.values()} - {"kept"})
    reuse = ["--reuse", tmp_path / "local", *(each for kind in retried for each in ("--retry", kind))]
    for engine, more in (("local", []), ("ray", reuse)):
        out = tmp_path / engine
        arguments = ("--source", source, "--out", out, "--engine", engine, "--workers", 2, *more)
        code, _, errors = uhr("curate", "run", pipeline, *arguments)
        assert code == 0, errors
        noise = [line for line in errors.splitlines() if line.split(":")[0] not in PROGRESS]
        assert noise == []
        _check_moods(rows_of(Manifest.open(out)), f"{outside}:Moody")
        tables.append(Manifest.open(out).table())
    assert tables[0].equals(tables[1])
    reused = Manifest.open(tmp_path / "ray").info.operation["reused"]
    # two are measured and not to be retried: the one that is kept, and the one whose value is NaN
    own = {f"{outside}:Moody": 2, f"{outside}:Redness": 1}
    assert reused == {"header": len(MOODS), "decode": len(MOODS), **own}


PROGRESS = ("list", "reuse", "curate", "commit", "report")


def _check_moods(rows: dict[str, dict[str, Any]], stage: str) -> None:
    for mood, (reason, message) in MOODS.items():
        row = rows[f"{mood}.jpg"]
        assert (row["reason"] or row["status"]) == reason, row
        assert message in (row["error"] or ""), row
        assert "\n" not in (row["error"] or "")
        assert row["content_hash"] is not None, "what came before the fault is kept"
        assert (row["redness"] is not None) == (mood == "fine")
    assert 0 < rows["fine.jpg"]["redness"] < 127
    assert rows["segfault.jpg"]["error"].startswith(f"{stage}: ")


KILLS = """
import os
import signal

from uhr.curate import frame
from uhr.curate.stage import FrameStage
from uhr.curate.stages.frames import phash

decode, phash_of = frame.decode, phash.phash_of


def kills(function, mark, data, arguments):
    if data.endswith(mark):
        os.kill(os.getpid(), signal.SIGKILL)
    return function(*arguments)


frame.decode = lambda *arguments: kills(decode, b"in decode", arguments[0], arguments)
phash.phash_of = lambda frame: kills(phash_of, b"after", (frame.decoded, frame.data)[1], (frame,))


class Kills(FrameStage):
    name = "kills"

    def annotate(self, frame):
        return {}
"""


def test_a_crash_while_a_blocklist_has_an_image_decoded_is_one_of_decode(
    curate, images, tmp_path, monkeypatch
):
    (tmp_path / "own" / "kills_decoders").mkdir(parents=True)
    (tmp_path / "own" / "kills_decoders" / "__init__.py").write_text(KILLS)
    monkeypatch.syspath_prepend(str(tmp_path / "own"))
    for each in list(images.iterdir()):
        shutil.rmtree(each) if each.is_dir() else each.unlink()
    for name in ("in decode", "after", "fine"):
        Image.new("RGB", (64, 48), (len(name) * 9, 90, 200)).save(images / f"{name}.png")
        with open(images / f"{name}.png", "ab") as file:
            file.write(name.encode())
    (listed := tmp_path / "list.txt").write_text("5" * 16)
    (tmp_path / "p.yaml").write_text(f"""
        stages: [header, {{stage: blocklist, files: [{listed}]}}, decode, "kills_decoders:Kills"]
        rules: {{}}
    """)
    rows = rows_of(curate(str(tmp_path / "p.yaml"), workers=1)[0])
    errors = {uri: row["error"] and row["error"].partition(":")[0] for uri, row in rows.items()}
    assert errors == {"in decode.png": "decode", "after.png": "blocklist", "fine.png": None}
    assert {row["reason"] for row in rows.values() if row["error"]} == {"crash"}


def test_the_manifest_records_how_it_was_made(curate):
    info = curate("quickstart", "--set", "rules.entropy=entropy >= 5")[0].info
    assert info.operation["kind"] == "curate"
    assert info.operation["pipeline"]["rules"]["entropy"] == "entropy >= 5"
    assert {stage["stage"]: stage for stage in info.operation["pipeline"]["stages"]}["flatness"][
        "patch"
    ] == 240
    assert [stage.name for stage in info.stages][:2] == ["header", "geometry"]
    assert all(len(stage.fingerprint) == 64 for stage in info.stages)
    assert "pillow" in info.versions


def test_names_that_are_no_utf_8_and_percent_signs_are_read_under_their_own_name(curate, images):
    import os

    for name in (b"caf\xe9.jpg", b"100%.jpg", "Zoë %41.jpg".encode(), b"new\nline.jpg"):
        shutil.copy(images / "1.jpg", os.fsdecode(os.path.join(os.fsencode(images), name)))
    found = reasons(curate("quickstart", "--set", "rules.duplicates=null", workers=1)[0])
    for uri in ("caf%E9.jpg", "100%25.jpg", "Zoë %2541.jpg", "new\nline.jpg"):
        assert found[uri] == "kept"


def test_a_limit_takes_the_first_files_by_name(curate):
    assert list(rows_of(curate("quickstart", "--limit", 3)[0])) == ["1.jpg", "3.jpg", "5.jpg"]


def test_a_pixel_limit_fails_the_image_before_it_is_decoded(curate):
    found = reasons(curate("quickstart", "--set", "limits.pixels=100000")[0])
    assert found["1.jpg"] == "too large"
    assert found["small.png"] == "resolution"


def test_the_sidecar_keys_of_the_pipeline_are_the_ones_that_count(curate):
    row = rows_of(curate("quickstart", "--set", "sidecars.author=[camera]")[0])["5.jpg"]
    assert row["author"] == "X1"
    assert json.loads(row["source_meta"]) == {"photographer": "Ada"}


def test_images_of_every_orientation_and_mode_are_kept(curate, images):
    image = Image.open(images / "1.jpg")
    image.convert("CMYK").save(images / "cmyk.jpg")
    image.convert("L").save(images / "gray.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(images / "turned.jpg", exif=exif)
    rows = rows_of(curate("quickstart")[0])
    assert {rows[name]["status"] for name in ("cmyk.jpg", "gray.png", "turned.jpg")} == {"kept"}
    assert (rows["turned.jpg"]["width"], rows["turned.jpg"]["height"]) == (300, 400)
