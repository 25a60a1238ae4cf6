"""The rows of a manifest as the page shows them: with the reviews of the journal, which are not saved yet."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from functools import cached_property

import duckdb
import pyarrow as pa

from uhr.manifests import sql
from uhr.manifests.browse.reviews import Journal, columns_of
from uhr.manifests.manifest import Manifest
from uhr.manifests.schema import REVIEW, Column
from uhr.manifests.sql import quoted

NAMES = frozenset(column.name for column in REVIEW)
"""The columns of reviews."""

POSITION = "position of the row"
"""A column of `samples`: the row's number in the manifest, from 0."""


class ReviewedRows:
    """The rows of a manifest; those of the samples in the journal have its reviews. For several threads."""

    def __init__(self, manifest: Manifest, journal: Journal) -> None:
        self.manifest, self._journal = manifest, journal

    @property
    def version(self) -> int:
        """A number that changes with the journal; 0 while it has no reviews."""
        return self._journal.version

    @cached_property
    def schema(self) -> pa.Schema:
        """The columns of the manifest, and those of reviews where it has none."""
        return pa.schema([*self.manifest.schema, *(column.field() for column in self.added)])

    @cached_property
    def added(self) -> list[Column]:
        """The columns of reviews that the manifest does not have."""
        return [column for column in REVIEW if column.name not in self.manifest.schema.names]

    @property
    def has_reviews(self) -> bool:
        """Whether any row may have a review."""
        return self.version > 0 or len(self.added) < len(REVIEW)

    def are_unsaved(self, columns: frozenset[str]) -> bool:
        """Whether one of the columns has values in the journal that the manifest does not have."""
        missing = {column.name for column in self.added}
        return bool(columns & (NAMES if self.version else missing))

    @contextlib.contextmanager
    def connect(self) -> Generator[duckdb.DuckDBPyConnection]:
        """Open a connection with the relation `samples`: `schema`, and `POSITION`. Errors are those of
        `Manifest.connect`.
        """
        with self.manifest.dataset() as stored, sql.connect(stored=stored) as connection:
            # a join does not keep the order of rows: their numbers are taken before
            rows = f"(SELECT row_number() OVER () - 1 AS {quoted(POSITION)}, * FROM stored)"
            reviews = columns_of(list(self._journal.reviews.values()))
            if reviews.num_rows:
                connection.register("journal", reviews)
                own = ", ".join(self._shown(column.name) for column in REVIEW)
                others = ", ".join(
                    f"rows.{quoted(name)}"
                    for name in (*self.manifest.schema.names, POSITION)
                    if name not in NAMES
                )
                rows = (
                    f"(SELECT {others}, {own} FROM {rows} rows "
                    "LEFT JOIN journal ON rows.sample_id = journal.sample_id)"
                )
            else:
                nulls = "".join(f", NULL::{_TYPES[column.name]} AS {column.name}" for column in self.added)
                rows = f"(SELECT *{nulls} FROM {rows})"
            connection.execute(f"CREATE TEMP VIEW samples AS FROM {rows}")
            yield connection

    def _shown(self, name: str) -> str:
        """Return SQL for a column of reviews: a sample of the journal has what the journal says."""
        if name not in self.manifest.schema.names:
            return f"journal.{name} AS {name}"
        return f"CASE WHEN journal.sample_id IS NULL THEN rows.{name} ELSE journal.{name} END AS {name}"


_TYPES = {column.name: "VARCHAR[]" if pa.types.is_list(column.type) else "VARCHAR" for column in REVIEW}
