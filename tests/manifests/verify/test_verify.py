import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from uhr.base.files import sha256_file
from uhr.cli import main
from uhr.manifests import parts
from uhr.manifests.info import ManifestInfo, Parent, StageInfo, content_id
from uhr.manifests.manifest import Manifest
from uhr.manifests.parts import PREVIEW_SCHEMA
from uhr.manifests.schema import Column, patch_id, sample_id, schema_of
from uhr.manifests.selection import sets
from uhr.manifests.selection.slicing import SliceOptions, slice_manifest
from uhr.manifests.uris import uri_of
from uhr.manifests.verify.checks import VerifyFault
from uhr.manifests.verify.verification import verify

from ..conftest import COLUMNS

Make = Callable[..., Manifest]
Row = Callable[..., dict[str, Any]]


def test_a_good_manifest_and_its_slices_are_sound(manifest: Manifest, tmp_path: Path) -> None:
    made = slice_manifest(
        manifest, tmp_path / "s", SliceOptions(where="entropy > 5", split={"a": 0.5, "b": 0.5})
    )
    again = slice_manifest(made, tmp_path / "t", SliceOptions(sample=3))
    for one in (manifest, made, again):
        verdict = verify(one.path)
        assert verdict.faults == []
        assert verdict.notes == []


def test_patches_are_sound_too(make: Make, make_row: Row, tmp_path: Path) -> None:
    whole = make_row(50)
    box = (10, 20, 512, 512)
    patch = whole | {
        "sample_id": patch_id(whole["sample_id"], box),
        "parent_id": whole["sample_id"],
        "box": list(box),
    }
    assert verify(make(tmp_path / "set", [whole, patch]).path).faults == []
    moved = patch | {"box": [11, 20, 512, 512]}
    faults = verify(make(tmp_path / "moved", [whole, moved]).path).faults
    assert _kinds(faults) == {("identity", "sample_id")}
    assert "parent and box" in faults[0].what


PLANTED: dict[str, tuple[dict[str, Any], tuple[str, str]]] = {
    "strange id": ({"sample_id": "0" * 32}, ("identity", "sample_id")),
    "no id": ({"sample_id": None}, ("identity", "sample_id")),
    "kept with a reason": ({"reason": "entropy"}, ("verdicts", "reason")),
    "kept with an error": ({"error": "oh"}, ("verdicts", "error")),
    "rejected by no rule": ({"status": "rejected", "reason": "mood"}, ("verdicts", "reason")),
    "rejected without reason": ({"status": "rejected"}, ("verdicts", "reason")),
    "failed without error": ({"status": "failed", "reason": "crash"}, ("verdicts", "error")),
    "failed without reason": ({"status": "failed", "error": "oh"}, ("verdicts", "error")),
    "above its range": ({"entropy": 8.5}, ("ranges", "entropy")),
    "below its range": ({"flat_fraction": -0.1}, ("ranges", "flat_fraction")),
    "not positive": ({"width": 0}, ("ranges", "width")),
    "not a number": ({"entropy": float("nan")}, ("ranges", "entropy")),
    "not a number, half-open": ({"laplacian_var": float("nan")}, ("ranges", "laplacian_var")),
    "out of an integer range": ({"orientation": 9}, ("ranges", "orientation")),
}


@pytest.mark.parametrize("name", PLANTED)
def test_each_planted_fault_of_a_row_is_found_and_nothing_else(
    name: str, make: Make, make_row: Row, tmp_path: Path
) -> None:
    changes, expected = PLANTED[name]
    rows = [make_row(number) for number in range(50, 59)]
    rows[4] |= changes
    previews = [pa.RecordBatch.from_pylist([], schema=PREVIEW_SCHEMA)]
    faults = verify(make(tmp_path / "set", rows, previews=previews).path).faults
    assert _kinds(faults) == {expected}
    assert faults[0].count == 1
    if changes.get("sample_id", "") is not None:
        assert rows[4]["uri"] in faults[0].what


def test_ids_that_occur_twice_are_counted_and_named(make: Make, make_row: Row, tmp_path: Path) -> None:
    rows = [make_row(50), make_row(51), make_row(51), make_row(52), make_row(52)]
    faults = verify(make(tmp_path / "set", rows, previews=None).path).faults
    assert _kinds(faults) == {("identity", "sample_id")}
    assert faults[0].count == 2
    assert make_row(51)["sample_id"] in faults[0].what


def test_rows_out_of_order_are_found(make: Make, make_row: Row, tmp_path: Path) -> None:
    rows = [make_row(number) for number in (50, 53, 51, 54)]
    assert _kinds(verify(make(tmp_path / "set", rows).path).faults) == {("order", "uri")}


@pytest.mark.parametrize("seed", range(6))
def test_faults_do_not_depend_on_row_groups(
    seed: int, make: Make, make_row: Row, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = random.Random(seed)
    rows = [make_row(number) for number in range(50, 62)]
    if seed:
        for changes, _ in drawn.sample(list(PLANTED.values()), 3):
            rows[drawn.randrange(12)] |= changes
        places = drawn.sample(range(12), 2)
        rows[places[0]], rows[places[1]] = rows[places[1]], rows[places[0] if seed % 2 else places[1]]
    whole = verify(make(tmp_path / "whole", rows).path).faults
    assert bool(whole) == bool(seed)
    monkeypatch.setattr(parts, "GROUP_ROWS", drawn.randrange(1, 5))
    assert verify(make(tmp_path / "cut", rows).path).faults == whole


def test_a_manifest_without_rows_is_sound(make: Make, tmp_path: Path) -> None:
    assert verify(make(tmp_path / "set", []).path).faults == []


def test_previews_of_nothing_and_repeated_previews_are_found(
    make: Make, make_row: Row, tmp_path: Path
) -> None:
    def preview(sample: str) -> dict[str, Any]:
        return {"sample_id": sample, "jpeg": b"x", "width": 1, "height": 1}

    rows = [make_row(50), make_row(51)]
    shown = [preview(rows[0]["sample_id"])] * 2 + [preview("f" * 32)]
    batch = pa.RecordBatch.from_pylist(shown, schema=PREVIEW_SCHEMA)
    faults = verify(make(tmp_path / "set", rows, previews=[batch]).path).faults
    assert [(fault.check, fault.count) for fault in faults] == [("previews", 1), ("previews", 1)]
    assert any("f" * 32 in fault.what for fault in faults)


@pytest.mark.parametrize("folder", ["samples", "previews"])
def test_changed_and_missing_and_foreign_parts_are_found(folder: str, manifest: Manifest) -> None:
    file = manifest.path / folder / "part-00000.parquet"
    before = file.read_bytes()
    file.write_bytes(before[:100] + bytes([before[100] ^ 1]) + before[101:])
    assert _kinds(verify(manifest.path).faults) == {("parts", f"{folder}/{file.name}")}
    file.unlink()
    faults = verify(manifest.path).faults
    assert [(fault.where, fault.what) for fault in faults] == [(f"{folder}/{file.name}", "is missing")]
    file.write_bytes(before)
    (manifest.path / folder / "part-00007.parquet").write_bytes(before)
    assert _kinds(verify(manifest.path).faults) == {("parts", f"{folder}/part-00007.parquet")}


@pytest.mark.parametrize(
    ("edit", "found"),
    [
        (lambda tree: tree.update(id="0" * 64), ("id", "manifest.json")),
        (lambda tree: tree["operation"].update(kind="other"), ("id", "manifest.json")),
        (lambda tree: tree["counts"].update(kept=1), ("counts", "kept")),
        (lambda tree: tree["counts"]["reasons"].update(entropy=1), ("counts", "reasons")),
        (lambda tree: tree["counts"].update(rows=1), ("counts", "rows")),
    ],
)
def test_a_manifest_json_that_does_not_fit_its_parts_is_found(
    edit: Callable[[dict], Any], found: tuple[str, str], manifest: Manifest
) -> None:
    _edit(manifest.path, edit)
    assert _kinds(verify(manifest.path).faults) == {found}


def test_only_the_reasons_that_differ_are_named(make: Make, make_row: Row, tmp_path: Path) -> None:
    made = make(tmp_path / "set", [make_row(number) for number in range(60)])
    reasons = made.info.counts["reasons"]
    assert len(reasons) > 1
    same, *_, other = sorted(reasons)
    _edit(made.path, lambda tree: tree["counts"]["reasons"].update({other: 1000, "none": 2}))
    found = {fault.what for fault in verify(made.path).faults}
    assert found == {
        f"'{other}' is that of {reasons[other]} in the parts and 1000 in manifest.json",
        "'none' is that of 0 in the parts and 2 in manifest.json",
    }
    assert same not in (other, "none")


def test_rules_that_were_edited_by_hand_are_found(make: Make, make_row: Row, tmp_path: Path) -> None:
    """An audit and a report would print them as what was decided."""
    rules = {"entropy": "entropy  >= 4", "aesthetic": {"where": "artimuse >= 50", "required": True}}
    operation = {"kind": "curate", "pipeline": {"name": "test", "rules": rules}}
    made = make(tmp_path / "set", [make_row(number) for number in range(50, 60)], operation=operation)
    part = slice_manifest(made, tmp_path / "slice", SliceOptions(sample=3))
    for one, of in ((made, "the pipeline"), (part, "its parent")):
        assert verify(one.path).faults == []
        for changes, says in (
            ({"where": "entropy >= 1"}, "entropy >= 1"),
            ({"null": "keep"}, "(null: keep)"),
        ):
            file = one.path / "manifest.json"
            whole = file.read_text()
            tree = json.loads(whole)
            tree["rules"][0] |= changes
            file.write_text(json.dumps(tree))
            (fault,) = verify(one.path).faults
            file.write_text(whole)
            assert (fault.check, fault.where) == ("verdicts", "rule entropy")
            assert says in fault.what
            assert fault.what.endswith(f" 4 in {of}")


def test_values_of_a_skipped_stage_are_a_fault_unless_a_parent_has_them(
    make: Make, make_row: Row, tmp_path: Path
) -> None:
    rows = [make_row(50), make_row(51)]
    skipped = [StageInfo(name="entropy", version=1, fingerprint="f" * 64, adds=["entropy"], state="skipped")]
    (fault,) = verify(make(tmp_path / "alone", rows, stages=skipped).path).faults
    assert (fault.check, fault.where, fault.count) == ("coverage", "entropy", 2)
    assert "its stage entropy was skipped: folder/00050.jpg (samples/part-00000.parquet row 0)" in fault.what
    parent = make(tmp_path / "parent", rows)
    parents = [Parent(id=parent.id, path=str(parent.path), role="columns added to")]
    again = make(tmp_path / "again", rows, stages=skipped, parents=parents)
    assert verify(again.path).faults == []
    assert verify(slice_manifest(again, tmp_path / "part", SliceOptions(sample=1)).path).faults == []


def test_wrong_row_counts_are_found(manifest: Manifest) -> None:
    _edit(manifest.path, lambda tree: tree["parts"][0].update(rows=99))
    faults = verify(manifest.path).faults
    assert [fault.what for fault in faults] == ["has 100 rows, and manifest.json says 99"]


@pytest.mark.parametrize("name", ["uri", "parent_id"])
def test_missing_and_mistyped_columns_are_found(name: str, manifest: Manifest) -> None:
    file = manifest.path / "samples" / "part-00000.parquet"
    table = pq.read_table(file)
    place = table.schema.get_field_index(name)
    if name == "uri":
        table = table.drop_columns(["uri"])
    else:
        table = table.set_column(place, name, table[name].cast(pa.float32()))
    pq.write_table(table, file)
    _seal(manifest)
    assert _kinds(verify(manifest.path).faults) == {("schema", name)}


def test_ranges_of_a_users_own_columns_are_checked(make: Make, make_row: Row, tmp_path: Path) -> None:
    schema = schema_of([*COLUMNS.values(), Column("mood", pa.float32(), "", range="[-1.5, 1]")])
    rows = [make_row(50) | {"mood": -1.5}, make_row(51) | {"mood": 1.01}]
    faults = verify(make(tmp_path / "set", rows, schema=schema).path).faults
    assert _kinds(faults) == {("ranges", "mood")}
    assert faults[0].count == 1


def test_a_lost_parent_is_a_note_and_a_moved_pair_is_not(manifest: Manifest, tmp_path: Path) -> None:
    made = slice_manifest(manifest, tmp_path / "slice", SliceOptions(sample=3))
    moved = tmp_path / "moved"
    moved.mkdir()
    manifest.path.rename(moved / "set")
    verdict = verify(made.path)
    assert verdict.faults == []
    assert len(verdict.notes) == 1
    assert manifest.id[:16] in verdict.notes[0]
    made.path.rename(moved / "slice")
    assert verify(moved / "slice").notes == []


def test_pixels_reads_the_source_again(make: Make, tmp_path: Path) -> None:
    names = ["a.jpg", "b 100%.jpg", "c.jpg", "d.jpg"]
    rows: list[dict[str, Any]] = []
    for name in names:
        file = tmp_path / "source" / name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(name.encode())
        uri = uri_of(name)
        row = {"uri": uri, "sample_id": sample_id(uri), "status": "kept", "content_hash": sha256_file(file)}
        rows.append(row)
    rows[3]["content_hash"] = None  # only its header was read
    made = make(tmp_path / "set", rows)
    seen: list[int] = []
    verdict = verify(made.path, pixels=True, advance=lambda n=1, note=None: seen.append(n))
    assert verdict.faults == []
    assert "pixels" in verdict.checks
    assert sum(seen) == 4
    (tmp_path / "source" / "b 100%.jpg").write_bytes(b"changed")
    (tmp_path / "source" / "c.jpg").unlink()
    (tmp_path / "source" / "d.jpg").unlink()
    assert verify(made.path).faults == []
    faults = verify(made.path, pixels=True).faults
    assert _kinds(faults) == {("pixels", "b 100%25.jpg"), ("pixels", "c.jpg")}


def test_pixels_finds_rows_that_were_made_of_two_files(make: Make, forge: Any, tmp_path: Path) -> None:
    """Hash of one file, header of another; or a header of a file that is another one by now."""
    (tmp_path / "source").mkdir()
    rows: list[dict[str, Any]] = []
    for seed, name in enumerate(("a.jpg", "b.jpg", "c.jpg", "d.jpg", "e.jpg")):
        file = tmp_path / "source" / name
        file.write_bytes(forge.encode(forge.image(48, 32, seed=seed), "JPEG"))
        row = {"uri": name, "sample_id": sample_id(name), "status": "kept", "format": "JPEG"}
        row |= {"width": 48, "height": 32, "file_size": file.stat().st_size}
        rows.append(row | {"content_hash": sha256_file(file)})
    rows[1] |= {"width": 96, "height": 64}  # as a run that met two versions of b.jpg left it
    rows[2] |= {"content_hash": None, "width": 47}
    rows[3] |= {"content_hash": None, "status": "rejected", "reason": "entropy"}
    (tmp_path / "source" / "d.jpg").unlink()  # rejected by its header, and removed since
    rows[4] |= {"content_hash": None, "file_size": 7}
    faults = verify(make(tmp_path / "set", rows).path, pixels=True).faults
    assert {fault.where: fault.what.partition(":")[0] for fault in faults} == {
        "b.jpg": "has width 48 instead of 96, height 32 instead of 64",
        "c.jpg": "has width 48 instead of 47",
        "e.jpg": f"has file_size {(tmp_path / 'source/e.jpg').stat().st_size} instead of 7",
    }
    (tmp_path / "source" / "c.jpg").write_bytes(b"no image")
    assert (
        "has no header that can be read"
        in {fault.where: fault.what for fault in verify(tmp_path / "set", pixels=True).faults}["c.jpg"]
    )


def _kinds(faults: list[VerifyFault]) -> set[tuple[str, str]]:
    return {(fault.check, fault.where) for fault in faults}


def _edit(path: Path, edit: Callable[[dict], Any]) -> None:
    tree = json.loads((path / "manifest.json").read_text())
    edit(tree)
    (path / "manifest.json").write_text(json.dumps(tree))


def _seal(manifest: Manifest) -> None:
    """Make manifest.json agree with a part that was changed by hand."""
    file = manifest.path / "samples" / "part-00000.parquet"

    def edit(tree: dict) -> None:
        tree["parts"][0] |= {"sha256": sha256_file(file), "bytes": file.stat().st_size}
        info = ManifestInfo.model_validate(tree)
        tree["id"] = content_id(pq.read_schema(file), info.operation, info.parents, info.parts, info.previews)

    _edit(manifest.path, edit)


def test_verdicts_that_the_rules_do_not_give_are_found(
    make: Make, make_row: Row, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All that the manifest says of them agrees; only the values of the columns do not."""
    rows = [
        make_row(10, status="kept", reason=None),
        make_row(11),
        make_row(50, status="rejected", reason="entropy"),
        make_row(51),
        make_row(52, entropy=None),
        make_row(59),
    ]
    made = make(tmp_path / "set", rows)
    assert verify(made.path).faults == []
    assert main(["manifest", "verify", str(made.path), "--rules", "--json"]) == 1
    faults = json.loads(capsys.readouterr().out)["faults"]
    part = "samples/part-00000.parquet"
    assert [(fault["check"], fault["what"]) for fault in faults] == [
        ("rules", f"is kept, and the rules give failed (no value): folder/00052.jpg ({part} row 4)"),
        ("rules", f"is kept, and the rules give rejected (entropy): folder/00010.jpg ({part} row 0)"),
        ("rules", f"is rejected (entropy), and the rules give kept: folder/00050.jpg ({part} row 2)"),
    ]
    right = make(tmp_path / "right", [make_row(number) for number in (10, 50, 59)])
    assert main(["manifest", "verify", str(right.path), "--rules"]) == 0
    both = sets.union([made, right], tmp_path / "both", prefer="first")
    assert main(["manifest", "verify", str(both.path), "--rules"]) == 1
    assert "has rows of a union, which had the rules of several pipelines" in capsys.readouterr().err


def test_differing_verdicts_below_a_parent_that_is_gone_are_said_to_be_unsure(
    make: Make, make_row: Row, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = make(tmp_path / "set", [make_row(10, status="kept", reason=None), make_row(59)])
    part = slice_manifest(made, tmp_path / "slice", SliceOptions(status="any"))
    for gone in (False, True):
        if gone:
            made.path.rename(tmp_path / "elsewhere")
        assert main(["manifest", "verify", str(part.path), "--rules", "--json"]) == 1
        (fault,) = json.loads(capsys.readouterr().out)["faults"]
        assert fault["what"].endswith("; a parent that is not found may be a union") == gone
