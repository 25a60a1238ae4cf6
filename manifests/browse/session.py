"""What the page shows: each method takes and returns plain data, and knows nothing of HTTP."""

from __future__ import annotations

import getpass
import re
import threading
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from uhr.base.config import Config, Text, build
from uhr.base.console import command, progress
from uhr.base.errors import UserError
from uhr.base.files import finite
from uhr.base.formatting import first_words
from uhr.base.paths import in_store, is_url
from uhr.manifests import places
from uhr.manifests.browse.filters import Filter
from uhr.manifests.browse.ranges import Ranges
from uhr.manifests.browse.reviewed import NAMES as REVIEW_NAMES
from uhr.manifests.browse.reviewed import ReviewedRows
from uhr.manifests.browse.reviews import Journal, Review, columns_of, now, write
from uhr.manifests.browse.rows import Rows, is_vector
from uhr.manifests.browse.thumbnails import Thumbnails
from uhr.manifests.browse.views import Order, Views
from uhr.manifests.lineage import summary
from uhr.manifests.manifest import Manifest
from uhr.manifests.schema import REVIEW
from uhr.manifests.selection.slicing import slice_manifest

Explain = Callable[[Manifest, dict[str, Any]], dict[str, Any]]

SHOWN = (
    "sample_id",
    "uri",
    "caption",
    "status",
    "reason",
    "error",
    "width",
    "height",
    "review",
    "review_tags",
)
"""Columns of a row of a page."""

_OF_VERDICT = {"name": "by", "time": "time", "reason": "reason"}
"""The fields of a review that belong to its verdict, and the ends of their columns."""

_NAME = re.compile(r"[^\s./\\\0-\x1f][^/\\\0-\x1f]{0,199}")


class Page(Config):
    """Which rows a page shows: `count` of a filter in an order, from number `start` on. `reviews` is the
    version of the reviews when the filter was chosen.
    """

    filter: Filter = Filter()
    order: Order = Order()
    reviews: int | None = None
    start: int = Field(0, ge=0)
    count: int = Field(60, ge=1, le=240)


class Decision(Config):
    """A review of the rows at `positions`. Tags are added to those that each has, and taken from them."""

    positions: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1, max_length=1000)]
    verdict: Literal["accepted", "rejected", "keep", "none"] = "keep"
    add_tags: tuple[Text, ...] = ()
    remove_tags: tuple[Text, ...] = ()
    name: Text
    reason: Text = ""


class Distributions(Config):
    """Columns whose values are counted among the rows of a filter."""

    filter: Filter = Filter()
    columns: Annotated[tuple[Text, ...], Field(max_length=20)] = ()


class Saving(Config):
    """A new manifest: its name, and for a slice its filter."""

    name: Text
    filter: Filter = Filter()


class Stopped(Exception):
    """The browser is ending: what is being written is removed."""


class Session:
    """One manifest that is browsed. For several threads.

    Args:
        manifest: what is shown.
        into: the folder or prefix for new manifests.
        journal: the reviews.
        explain: a function of a manifest and a row that returns its verdict, columns and rules.
        materialise: what is written of a new manifest; with none it is by reference to this one.
    """

    def __init__(
        self,
        manifest: Manifest,
        into: Path | str,
        journal: Journal,
        explain: Explain,
        materialise: Literal["rows", "none"] = "rows",
    ) -> None:
        self.manifest, self.into, self.journal = manifest, into, journal
        self._materialise = materialise
        self._explain = explain
        self._reviewed_rows = ReviewedRows(manifest, journal)
        self._views, self._ranges = Views(self._reviewed_rows), Ranges(self._reviewed_rows)
        self._rows = Rows(manifest)
        self._thumbnails = Thumbnails(manifest)
        self._writing = threading.Lock()
        self._stopping = threading.Event()

    def facts(self) -> dict[str, Any]:
        """Return what does not change: the manifest, its columns, and where new ones go."""
        info = self.manifest.info
        return {
            "name": short_name(self.manifest),
            "path": places.place_of(self.manifest.path),
            "id": info.id,
            "operation": summary(info.operation),
            "counts": info.counts,
            "columns": [
                {"name": c.name, "type": str(c.type), "unit": c.unit, "meaning": c.meaning}
                for c in (*self.manifest.columns, *self._reviewed_rows.added)
            ],
            "sortable": self._views.sortable,
            "numeric": self._ranges.columns,
            "ranges": self._ranges.suggested,
            "into": place_text(self.into),
            "user": _user(),
            "reviews": self.review_facts(),
        }

    def review_facts(self) -> dict[str, Any]:
        """Return the number of reviews, their version, the tags in use, and where they are kept."""
        reviews = self._current()
        tags = sorted({tag for review in reviews for tag in review.tags})
        place = self.journal.place
        return {"count": len(reviews), "version": self.journal.version, "tags": tags, "file": place}

    def _current(self) -> list[Review]:
        return list(self.journal.reviews.values())

    def page(self, page: Page) -> dict[str, Any]:
        """Return the rows of a page, their total number, and the condition and command of the slice; the
        command is None where the filter needs reviews that are not saved.
        """
        positions = self._views.positions(page.filter, page.order, page.reviews)
        chosen = positions[page.start : page.start + page.count].tolist()
        by = page.order.by
        names = [name for name in SHOWN if name in self._names]
        names += [by] if by is not None and by not in names and by in self._names else []
        rows = [
            self._shown(position, row, by)
            for position, row in zip(chosen, self._rows.at(chosen, names), strict=True)
        ]
        options = page.filter.options(self._reviewed_rows.schema)
        arguments = ["--status", options.status]
        arguments += [] if options.where is None else ["--where", options.where]
        if self._materialise == "none":
            arguments = [*arguments, "--materialise", "none"]
        line: str | None = command("manifest", "slice", self.manifest.name, *arguments, "--out", "NAME")
        line = None if self._is_unsaved(page.filter) else line
        return {"total": len(positions), "rows": rows, "where": options.where, "command": line}

    def _is_unsaved(self, filter_: Filter) -> bool:
        """Whether a filter needs reviews that the manifest does not have."""
        condition = filter_.condition(self._reviewed_rows.schema)
        return condition is not None and self._reviewed_rows.are_unsaved(condition.columns)

    @cached_property
    def _names(self) -> frozenset[str]:
        return frozenset(self.manifest.schema.names)

    def _shown(self, position: int, row: Mapping[str, Any], by: str | None) -> dict[str, Any]:
        shown = {name: row.get(name) for name in SHOWN} | {"position": position}
        shown["caption"] = first_words(row.get("caption")) or None
        shown["value"] = None if by is None else finite(self._value(row, by))
        return shown | self._reviewed(row)

    def _reviewed(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Return the review of a row: of the journal, or else of the manifest."""
        found = self.journal.reviews.get(row["sample_id"])
        if found is not None:
            return {"review": found.verdict, "review_tags": list(found.tags), "pending": True}
        return {"review": row.get("review"), "review_tags": row.get("review_tags") or [], "pending": False}

    def _value(self, row: Mapping[str, Any], name: str) -> Any:
        """Return the value of a column of a row, with the review of the journal."""
        found = self.journal.reviews.get(row["sample_id"])
        if name not in REVIEW_NAMES or found is None:
            return row.get(name)
        return columns_of([found])[name][0].as_py()

    def facets(self, filter_: Filter) -> list[dict[str, Any]]:
        """Return the values of columns, with the number of rows of the filter that have them."""
        return [asdict(facet) for facet in self._views.facets(filter_)]

    def distributions(self, wanted: Distributions) -> list[dict[str, Any]]:
        """Return how the values of columns are distributed among the rows of a filter."""
        return [asdict(found) for found in self._ranges.distributions(wanted.filter, wanted.columns)]

    def sample(self, position: int) -> dict[str, Any]:
        """Return all of one row: verdict, rules, columns, review. Raises IndexError if there is none."""
        row = self._rows.whole(position)
        vectors = [field.name for field in self.manifest.schema if is_vector(field.type)]
        found = self._explain(self.manifest, row)
        for column in found["columns"]:
            column["vector"] = column["column"] in vectors
        journal = self.journal.reviews.get(row["sample_id"])
        if journal is not None:
            review = journal.model_dump(mode="json")
        else:
            review = {name: row.get(f"review_{name}") for name in ("time", "reason")}
            review |= {"name": row.get("review_by")}
        return finite(found | {"position": position, "review": review | self._reviewed(row)})

    def image(self, position: int, large: bool) -> bytes:
        """Return the image of a row as JPEG. Raises `thumbnails.Fault` and IndexError if there is none."""
        names = [name for name in Thumbnails.needs if name in self._names]
        (row,) = self._rows.at([position], names)
        return self._thumbnails.large(row) if large else self._thumbnails.thumbnail(row)

    def review(self, decision: Decision) -> dict[str, Any]:
        """Keep a review of each of these rows, and return the reviews that they have now, by sample_id.

        Raises IndexError if there is no such row.
        """
        names = ["sample_id", *(column.name for column in REVIEW if column.name in self._names)]
        rows = self._rows.at(sorted(set(decision.positions)), names)
        reviews = [self._decided(row, decision) for row in rows]
        self.journal.add(reviews)
        return {
            "samples": {row["sample_id"]: self._reviewed(row) for row in rows},
            "reviews": self.review_facts(),
        }

    def _decided(self, row: Mapping[str, Any], decision: Decision) -> Review:
        before = self._reviewed(row)
        verdict = decision.verdict
        kept = self.journal.reviews.get(row["sample_id"])
        tags = {*before["review_tags"], *(tag.strip() for tag in decision.add_tags)}
        tree = {
            "sample_id": row["sample_id"],
            "verdict": before["review"] if verdict == "keep" else None if verdict == "none" else verdict,
            "tags": sorted(tags.difference(decision.remove_tags)),
            "name": decision.name.strip(),
            "reason": decision.reason.strip(),
            "time": now(),
        }
        if verdict == "keep" and before["review"] is not None:
            # tags do not change whose verdict it is, when and why
            own = {name: row.get(f"review_{key}") for name, key in _OF_VERDICT.items()}
            own = own if kept is None else {name: getattr(kept, name) for name in _OF_VERDICT}
            tree |= {name: value for name, value in own.items() if value}
        return build(Review, tree, "review")

    def save_slice(self, saving: Saving) -> dict[str, Any]:
        """Write the rows of a filter as a slice, and return its path, id and counts."""
        if self._is_unsaved(saving.filter):
            raise UserError(
                "the filter uses reviews that are not saved",
                "save the reviews as a manifest, and slice that one",
            )
        options = saving.filter.options(self.manifest.schema)
        options = options.model_copy(update={"materialise": self._materialise})
        with self._new(saving.name) as (out, advance):
            made = slice_manifest(self.manifest, out, options, advance)
        return _made(made)

    def save_reviews(self, saving: Saving) -> dict[str, Any]:
        """Write a manifest with all reviews as columns, and return its path, id and counts."""
        reviews = self._current()
        if not reviews:
            raise UserError("there are no reviews to save", "accept, reject or tag an image first")
        with self._new(saving.name) as (out, advance):
            by_reference = self._materialise == "none"
            made = write(self.manifest, reviews, out, advance, by_reference=by_reference)
        return _made(made)

    @contextmanager
    def _new(self, name: str) -> Any:
        """Yield the place of a new manifest, and what its writer calls. One is written at a time."""
        if _NAME.fullmatch(name.strip()) is None:
            raise UserError(f"'{name}' is no name of a folder", "use letters, digits, - and _")
        if not self._writing.acquire(blocking=False):
            raise UserError("another manifest is being written", "wait until it is complete")
        try:
            with progress(f"write {name.strip()}", self.manifest.info.counts["rows"], "rows") as advance:

                def step(n: int = 1, note: str | None = None) -> None:
                    if self._stopping.is_set():
                        raise Stopped
                    advance(n, note)

                into, name = self.into, name.strip()
                yield f"{into}/{name}" if in_store(into) else Path(into) / name, step
        finally:
            self._writing.release()

    def close(self) -> None:
        """Stop what is being written, which leaves nothing behind, and end the process that decodes."""
        self._stopping.set()
        self._thumbnails.close()
        with self._writing:
            self.journal.close()


def short_name(manifest: Manifest) -> str:
    """The last part of the path or address of a manifest, from which the names of new ones are made."""
    return places.place_of(manifest.path).rstrip("/").rpartition("/")[2]


def _user() -> str:
    """The name of the user of this process, if it has one."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return ""


def beside(manifest: Manifest, *names: str) -> Path | str:
    """The place of a file or folder beside a manifest; the working folder if that is a whole bucket."""
    home = places.place_of(manifest.path)
    if in_store(home):
        prefix = home.rpartition("/")[0]
        return "/".join([prefix, *names]) if is_url(prefix) else Path.cwd().joinpath(*names)
    return manifest.path.resolve().parent.joinpath(*names)


def place_text(place: Path | str) -> str:
    """A place of new manifests, for people: an absolute path, or an address."""
    return place if in_store(place) else str(Path(place).resolve())


def _made(manifest: Manifest) -> dict[str, Any]:
    path = place_text(places.shown(manifest.path))
    return {"path": path, "id": manifest.id, "counts": manifest.info.counts}
