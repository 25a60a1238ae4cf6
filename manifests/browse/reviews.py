"""Reviews by hand: a journal beside the manifest, and the manifest that has them as columns.

A manifest never changes. While people review, each decision is a line of JSON in a journal, which is stored
before the page shows it; later lines of a sample replace earlier ones. `write` makes the manifest with the
columns of `schema.REVIEW`. No status changes: a slice chooses by `review`.
"""

from __future__ import annotations

import datetime
import json
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, model_validator

from uhr.base import parquet
from uhr.base.config import Config, Text, build
from uhr.base.console import Advance
from uhr.base.errors import UserError
from uhr.manifests import places
from uhr.manifests.browse.journal_file import FIX, journal_file
from uhr.manifests.info import Parent
from uhr.manifests.manifest import Manifest
from uhr.manifests.parts import PREVIEW_GROUP_ROWS
from uhr.manifests.schema import REVIEW
from uhr.manifests.selection.reference import with_added
from uhr.manifests.writer import Provenance, advancing, write_manifest

Short = Annotated[Text, Field(max_length=200)]


class Review(Config):
    """What a person decided of one sample. A review without verdict and tags takes an earlier one back.

    A verdict needs a name and a reason, tags need a name.
    """

    sample_id: Text
    verdict: Literal["accepted", "rejected"] | None = None
    tags: tuple[Short, ...] = ()
    name: Short
    reason: Annotated[Text, Field(max_length=2000)] = ""
    time: Text

    @model_validator(mode="after")
    def _whole(self) -> Review:
        if not self.name.strip():
            raise ValueError("a review needs the name of the reviewer")
        if self.verdict is not None and not self.reason.strip():
            raise ValueError("a verdict needs a reason")
        if any(not tag.strip() for tag in self.tags):
            raise ValueError("a tag is empty")
        return self

    @property
    def is_empty(self) -> bool:
        """Whether this takes an earlier review back."""
        return self.verdict is None and not self.tags


def now() -> str:
    """The time of a review: ISO 8601 in UTC, in seconds."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


class Journal:
    """The reviews of a manifest in a file, at a path or an address, which is made with the first of them. For
    several threads.

    The file may be of the manifest before samples were forgotten: the reviews of these are left out. One
    process writes to it at a time. `version` grows with each addition, and is 0 without reviews. Raises
    UserError if the file is of another manifest, or is no journal.
    """

    def __init__(self, place: Path | str, manifest: Manifest) -> None:
        self._file, self._manifest = journal_file(place), manifest
        self._lock = threading.Lock()
        self.reviews: dict[str, Review] = {}
        self.version = 0
        self._load()

    @property
    def place(self) -> str:
        """The path or address of the file."""
        return self._file.text

    def _load(self) -> None:
        for number, line in enumerate(self._file.lines.splitlines(), 1):
            where = f"--reviews {self.place}, line {number}"
            try:
                tree = json.loads(line)
            except (ValueError, RecursionError):
                tree = None
            if not isinstance(tree, dict):
                raise UserError(f"{where}: this is no review", FIX)
            if number == 1:
                before = {each.before for each in self._manifest.info.redactions}
                if tree.get("reviews_of") not in {self._manifest.id, *before}:
                    raise UserError(f"{where}: the file is not of the manifest {self._manifest.id[:16]}", FIX)
                continue
            review = build(Review, tree, where)
            self.reviews[review.sample_id] = review
        if self._manifest.info.redactions:
            present = _present(self._manifest, self.reviews)
            self.reviews = {name: self.reviews[name] for name in self.reviews if name in present}
        self.version = 1 if self.reviews else 0

    def add(self, reviews: Sequence[Review]) -> None:
        """Add reviews; they are stored when this returns. Raises UserError if they cannot be written."""
        with self._lock:
            lines = [review.model_dump_json(exclude_defaults=True) for review in reviews]
            if self._file.is_empty:
                lines.insert(0, json.dumps({"reviews_of": self._manifest.id}))
            self._file.append("".join(f"{line}\n" for line in lines).encode())
            # another object: threads that read the one before see no change
            self.reviews = self.reviews | {review.sample_id: review for review in reviews}
            self.version += 1

    def close(self) -> None:
        """Let another process write."""
        with self._lock:
            self._file.close()


def _present(manifest: Manifest, ids: Iterable[str]) -> frozenset[str]:
    """Return those of the sample ids that the manifest has."""
    lookup = pc.SetLookupOptions(value_set=pa.array(list(ids), pa.string()))
    found: set[str] = set()
    for batch in manifest.rows(["sample_id"]):
        column = batch.column("sample_id")
        found.update(column.filter(pc.call_function("is_in", [column], lookup)).to_pylist())
    return frozenset(found)


def write(
    manifest: Manifest,
    reviews: Sequence[Review],
    out: Path | str,
    advance: Advance,
    *,
    by_reference: bool = False,
) -> Manifest:
    """Write a manifest of all rows of `manifest` with the columns of these reviews to `out`, a folder or an
    address.

    by_reference: whether it has these columns alone, and reads all others from `manifest`.

    Reviews that `manifest` has already are kept where none of `reviews` is of the same sample. Raises
    UserError if `out` is not empty or is inside a manifest.
    """
    added = [column.field() for column in REVIEW]
    schema, batches = with_added(manifest, added, _Values(reviews), by_reference=by_reference)
    counts = Counter(review.verdict for review in reviews)
    operation = {
        "kind": "review",
        "accepted": counts["accepted"],
        "rejected": counts["rejected"],
        "tagged": sum(bool(review.tags) for review in reviews),
    }
    parents = [Parent(id=manifest.id, path=places.place_of(manifest.path), role="reviews of")]
    provenance = Provenance.derived(manifest, operation, parents)
    with places.output(out) as folder:
        shown = manifest.with_previews
        previews = _previews(shown) if shown.info.previews and not by_reference else None
        parent = manifest if by_reference else None
        write_manifest(folder, schema, advancing(batches, advance), provenance, previews, parent)
    return Manifest.open(out)


def _previews(manifest: Manifest) -> Iterator[pa.RecordBatch]:
    for part in manifest.info.previews:
        yield from parquet.row_batches(manifest.path / part.path, PREVIEW_GROUP_ROWS)


def columns_of(reviews: Sequence[Review]) -> pa.Table:
    """Return the columns of `schema.REVIEW` of these reviews, and `sample_id`; a row for each."""
    values: dict[str, list[object]] = {
        "sample_id": [review.sample_id for review in reviews],
        "review": [review.verdict for review in reviews],
        "review_tags": [sorted(set(review.tags)) or None for review in reviews],
        "review_by": [None if review.is_empty else review.name for review in reviews],
        "review_time": [None if review.is_empty else review.time for review in reviews],
        "review_reason": [None if review.is_empty else review.reason or None for review in reviews],
    }
    types = {"sample_id": pa.string()} | {column.name: column.type for column in REVIEW}
    return pa.table({name: pa.array(values[name], kind) for name, kind in types.items()})


class _Values:
    """The columns of reviews of rows: new reviews, and those that the rows have where there is no new one."""

    def __init__(self, reviews: Sequence[Review]) -> None:
        table = columns_of(reviews)
        self._new = [table[column.name].combine_chunks() for column in REVIEW]
        self._ids = pc.SetLookupOptions(value_set=table["sample_id"].combine_chunks())
        self._count = table.num_rows

    def __call__(self, rows: pa.RecordBatch) -> list[pa.Array]:
        place = pc.call_function("index_in", [rows.column("sample_id")], self._ids).fill_null(-1).to_numpy()
        # rows of the reviews, then those that the batch has already
        numbers = pa.array(np.where(place >= 0, place, self._count + np.arange(rows.num_rows)))
        found = []
        for column, new in zip(REVIEW, self._new, strict=True):
            has = column.name in rows.schema.names
            old = rows.column(column.name) if has else pa.nulls(rows.num_rows, column.type)
            found.append(pa.concat_arrays([new, old.cast(column.type)]).take(numbers))
        return found
