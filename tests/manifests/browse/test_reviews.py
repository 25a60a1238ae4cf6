"""Reviews are on disk at once, belong to one manifest, and become columns of a new one."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from uhr.base.errors import UserError
from uhr.base.store import ObjectStore
from uhr.curate.explain import explain_row
from uhr.manifests.browse.filters import Filter
from uhr.manifests.browse.reviews import Journal, Review, write
from uhr.manifests.browse.session import Decision, Saving, Session, beside, short_name
from uhr.manifests.forget import job
from uhr.manifests.forget.targets import ForgetRequest
from uhr.manifests.lineage import summary
from uhr.manifests.manifest import Manifest
from uhr.manifests.selection.options import SliceOptions
from uhr.manifests.selection.slicing import slice_manifest
from uhr.manifests.verify.verification import verify


def review(manifest: Manifest, number: int, **changes: Any) -> Review:
    row = manifest.table(["sample_id"])["sample_id"][number].as_py()
    tree = {
        "sample_id": row,
        "verdict": "accepted",
        "name": "Ada",
        "reason": "sharp",
        "time": "2026-01-01T00:00:00",
    }
    return Review(**{**tree, **changes})


def nothing(n: int = 1, note: str | None = None) -> None:
    """No progress."""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "reviews.jsonl"


def test_no_file_is_made_before_the_first_review(manifest: Manifest, file: Path) -> None:
    journal = Journal(file, manifest)
    assert not file.exists()
    journal.add([review(manifest, 3)])
    assert len(file.read_text().splitlines()) == 2


def test_the_last_review_of_a_sample_counts_and_another_process_reads_it(
    manifest: Manifest, file: Path
) -> None:
    journal = Journal(file, manifest)
    journal.add([review(manifest, 3), review(manifest, 4)])
    journal.add([review(manifest, 3, verdict="rejected", reason="blurred")])
    journal.close()
    found = Journal(file, manifest).reviews
    assert found == journal.reviews
    assert sorted(one.verdict or "" for one in found.values()) == ["accepted", "rejected"]


@pytest.mark.parametrize("left", range(1, 60, 7))
def test_a_line_that_was_cut_is_left_out_and_replaced(manifest: Manifest, file: Path, left: int) -> None:
    journal = Journal(file, manifest)
    journal.add([review(manifest, 3)])
    whole = file.read_bytes()
    journal.add([review(manifest, 4)])
    journal.close()
    file.write_bytes(file.read_bytes()[: len(whole) + left])
    again = Journal(file, manifest)
    assert len(again.reviews) == 1
    again.add([review(manifest, 5)])
    assert len(Journal(file, manifest).reviews) == 2
    assert all(json.loads(line) for line in file.read_text().splitlines())


def test_what_is_no_journal_of_this_manifest_is_refused(
    manifest: Manifest, file: Path, tmp_path: Path
) -> None:
    Journal(file, manifest).add([review(manifest, 3)])
    other = slice_manifest(manifest, tmp_path / "other", SliceOptions())
    with pytest.raises(
        UserError, match=f"line 1: the file is not of the manifest {other.id[:16]}.*--reviews"
    ):
        Journal(file, other)
    file.write_text("a note\n")
    with pytest.raises(UserError, match="line 1: this is no review"):
        Journal(file, manifest)
    file.write_text(json.dumps({"reviews_of": manifest.id}) + '\n{"sample_id": "x"}\n')
    with pytest.raises(UserError, match="line 2: 'name' is missing"):
        Journal(file, manifest)


def test_reviews_are_kept_when_samples_are_forgotten(manifest: Manifest, file: Path) -> None:
    journal = Journal(file, manifest)
    journal.add([review(manifest, 3), review(manifest, 4, verdict="rejected")])
    journal.close()
    gone, left = (one.sample_id for one in journal.reviews.values())
    job.forget(manifest.path, ForgetRequest(ids=(gone,)))
    redacted = Manifest.open(manifest.path)
    again = Journal(file, redacted)
    assert list(again.reviews) == [left]
    again.add([review(redacted, 5)])
    again.close()
    assert len(Journal(file, redacted).reviews) == 2


def test_two_browsers_do_not_write_one_journal(manifest: Manifest, file: Path) -> None:
    first, second = Journal(file, manifest), Journal(file, manifest)
    first.add([review(manifest, 3)])
    with pytest.raises(UserError, match="another browser"):
        second.add([review(manifest, 4)])
    first.close()
    with pytest.raises(UserError, match="has changed since it was read"):
        second.add([review(manifest, 4)])
    assert len(Journal(file, manifest).reviews) == 1


def test_a_folder_without_locks_is_one_line_and_no_file_stays_open(
    manifest: Manifest, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unlocked(*_: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    journal = Journal(file, manifest)
    monkeypatch.setattr("uhr.manifests.browse.journal_file.fcntl.flock", unlocked)
    before = os.listdir("/proc/self/fd")
    with pytest.raises(UserError, match=r"cannot be locked \(.*No locks available\): name another file with"):
        journal.add([review(manifest, 3)])
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": " "}, "needs the name"),
        ({"reason": ""}, "needs a reason"),
        ({"tags": ("",)}, "a tag is empty"),
        ({"verdict": "maybe"}, "verdict"),
    ],
)
def test_a_verdict_needs_a_name_and_a_reason(
    manifest: Manifest, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        review(manifest, 3, **changes)
    assert review(manifest, 3, verdict=None, tags=("a",), reason="").tags == ("a",), "tags need no reason"


def test_a_journal_that_cannot_be_written_is_one_line(manifest: Manifest, tmp_path: Path) -> None:
    journal = Journal(tmp_path / "gone" / "reviews.jsonl", manifest)
    with pytest.raises(UserError, match="cannot be written"):
        journal.add([review(manifest, 3)])
    assert journal.reviews == {}


@pytest.mark.parametrize("by_reference", [False, True])
def test_the_new_manifest_has_every_row_and_the_reviews(
    by_reference: bool, manifest: Manifest, tmp_path: Path
) -> None:
    reviews = [
        review(manifest, 3, tags=("night", "city")),
        review(manifest, 50, verdict="rejected", reason="watermark"),
        review(manifest, 51, verdict=None, tags=("b",), reason=""),
        review(manifest, 52, verdict=None, reason=""),
    ]
    write(manifest, reviews, tmp_path / "reviewed", nothing, by_reference=by_reference)
    made = Manifest.open(tmp_path / "reviewed")
    assert not verify(made.path).faults
    old = manifest.table()
    new = made.table()
    assert new.select(old.schema.names).equals(old)
    rows = new.to_pylist()
    assert [rows[3][f"review{name}"] for name in ("", "_tags", "_by", "_time", "_reason")] == [
        *("accepted", ["city", "night"], "Ada", "2026-01-01T00:00:00", "sharp"),
    ]
    assert (rows[50]["review"], rows[50]["status"]) == ("rejected", "kept"), "no status changes"
    assert (rows[51]["review"], rows[51]["review_tags"]) == (None, ["b"])
    assert {rows[n]["review_by"] for n in (0, 52)} == {None}
    assert made.info.operation == {"kind": "review", "accepted": 1, "rejected": 1, "tagged": 2}
    assert summary(made.info.operation) == "review: 1 accepted, 1 rejected, 2 tagged"
    assert made.info.parents[0].id == manifest.id
    assert made.previews([rows[3]["sample_id"]]) == manifest.previews([rows[3]["sample_id"]])
    kept = slice_manifest(
        made, tmp_path / "accepted", SliceOptions(where="review = 'accepted'", status="any")
    )
    assert kept.table(["sample_id"])["sample_id"].to_pylist() == [rows[3]["sample_id"]]


@pytest.mark.parametrize("by_reference", [False, True])
def test_reviews_of_a_reviewed_manifest_replace_only_their_own(
    by_reference: bool, manifest: Manifest, tmp_path: Path
) -> None:
    first = [review(manifest, 3), review(manifest, 4)]
    one = write(manifest, first, tmp_path / "one", nothing, by_reference=by_reference)
    later = [review(one, 4, verdict="rejected", reason="no"), review(one, 5)]
    made = write(one, later, tmp_path / "two", nothing, by_reference=by_reference)
    two = made.table(["review", "review_reason"]).to_pylist()
    assert [two[n]["review"] for n in (3, 4, 5, 6)] == ["accepted", "rejected", "accepted", None]
    assert two[4]["review_reason"] == "no"


def test_a_stopped_writer_leaves_nothing(manifest: Manifest, tmp_path: Path) -> None:
    def stop(n: int = 1, note: str | None = None) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(manifest, [review(manifest, 3)], tmp_path / "new", stop)
    assert not (tmp_path / "new").exists()


def test_the_columns_are_described(manifest: Manifest, tmp_path: Path) -> None:
    made = write(manifest, [review(manifest, 3)], tmp_path / "new", nothing)
    meanings: dict[str, Callable[[], str] | str] = {column.name: column.meaning for column in made.columns}
    assert all(meanings[f"review{name}"] for name in ("", "_tags", "_by", "_time", "_reason"))


def test_the_journal_in_a_bucket_is_one_browser_at_a_time(
    manifest: Manifest, s3: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = f"s3://{s3.bucket}/sets/set-reviews.jsonl"
    first, second = Journal(place, manifest), Journal(place, manifest)
    assert s3.puts("") == []
    first.add([review(manifest, 3)])
    with pytest.raises(UserError, match=f"{place} has changed since it was read: start the browser again"):
        second.add([review(manifest, 4)])
    assert second.reviews == {}
    first.add([review(manifest, 3, verdict="rejected", reason="blurred"), review(manifest, 5)])
    third = Journal(place, manifest)
    assert third.reviews == first.reviews
    assert [one.verdict for one in third.reviews.values()] == ["rejected", "accepted"]
    with pytest.raises(UserError, match="has changed since it was read"):
        second.add([review(manifest, 4)])
    third.add([review(manifest, 6)])
    with pytest.raises(UserError, match="has changed since it was read"):
        first.add([review(manifest, 7)])
    # an answer that is lost, and the request tried again: it is this browser's own
    put, lost = ObjectStore.replace, []

    def twice(self: ObjectStore, name: str, data: bytes, version: str) -> str | None:
        lost.append(put(self, name, data, version))
        return put(self, name, data, version)

    monkeypatch.setattr(ObjectStore, "replace", twice)
    third.add([review(manifest, 7)])
    assert lost != [None]
    assert len(Journal(place, manifest).reviews) == 4


@pytest.mark.parametrize(
    ("place", "says"),
    [
        ("s3://no-such-bucket-here/reviews.jsonl", "no such bucket"),
        ("s3://bucket", "--reviews s3://bucket names no file in a bucket: write it as s3://bucket/reviews"),
    ],
)
def test_an_address_that_takes_no_journal_is_one_line(
    manifest: Manifest, s3: Any, place: str, says: str
) -> None:
    with pytest.raises(UserError, match=says):
        Journal(place, manifest).add([review(manifest, 3)])


def test_what_browse_writes_on_a_manifest_in_a_bucket_is_beside_it(
    manifest: Manifest, s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = f"s3://{s3.bucket}/sets/a"
    slice_manifest(manifest, address, SliceOptions(status="any"))
    there = Manifest.open(address)
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    journal = Journal(beside(there, f"{short_name(there)}-reviews.jsonl"), there)
    session = Session(there, beside(there), journal, explain_row)
    assert (session.facts()["into"], session.review_facts()["file"]) == (
        *(f"s3://{s3.bucket}/sets", f"s3://{s3.bucket}/sets/a-reviews.jsonl"),
    )
    decision = {"positions": (3,), "verdict": "accepted", "name": "Ada", "reason": "sharp"}
    session.review(Decision.model_validate(decision))
    made = session.save_reviews(Saving(name="a-reviewed"))
    assert made["path"] == f"s3://{s3.bucket}/sets/a-reviewed"
    cut = session.save_slice(Saving(name="cut", filter=Filter(where="entropy >= 7")))
    assert cut["path"] == f"s3://{s3.bucket}/sets/cut"
    session.close()
    for name, rows in (("a-reviewed", 100), ("cut", cut["counts"]["rows"])):
        assert not verify(f"s3://{s3.bucket}/sets/{name}").faults
        assert Manifest.open(f"s3://{s3.bucket}/sets/{name}").info.counts["rows"] == rows
    reviewed = Manifest.open(f"s3://{s3.bucket}/sets/a-reviewed").table(
        ["review"], where="review is not null"
    )
    assert reviewed["review"].to_pylist() == ["accepted"]
    assert sorted(tmp_path.iterdir()) == before
    with pytest.raises(UserError, match="already contains a manifest"):
        session.save_reviews(Saving(name="cut"))
