"""Read a manifest: an immutable set of Parquet parts, complete when its `manifest.json` exists."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Generator, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import duckdb
import numpy as np
import pyarrow as pa

from uhr.base import parquet
from uhr.base.console import Advance
from uhr.base.errors import UserError, unknown
from uhr.base.files import sha256_file
from uhr.base.paths import text_path
from uhr.manifests import places, sql
from uhr.manifests.info import FILE, ManifestInfo, Part, read_info
from uhr.manifests.parts import PIXELS
from uhr.manifests.schema import BASE, Column
from uhr.manifests.selection import reference

if TYPE_CHECKING:
    import pyarrow.dataset as ds

    from uhr.manifests.sources.base import Source


class RowGroup(NamedTuple):
    """A row group: its part's path, its number in the part, its first row's position, and its rows."""

    part: str
    number: int
    start: int
    rows: int


class Manifest:
    """A committed manifest, read only. Made by `open` and by `writer.write_manifest`.

    `path` is its folder. `parent` is that of a manifest by reference, which has rows of the parent, and
    columns of its own: its parts have these, and all others are read from the parent.
    """

    def __init__(self, path: Path, info: ManifestInfo, parent: Manifest | None = None) -> None:
        self.path = path
        self.info = info
        self.parent = parent

    @classmethod
    def open(cls, path: Path | str) -> Manifest:
        """Open the manifest in the folder `path`, which may also be the path of its `manifest.json`, or at an
        address in an object store (`places.local`).

        Raises UserError if there is none, if it is unfinished, if a part is missing or has changed, if its
        schema version is newer than this version can read, or if the parent of a manifest by reference is
        missing or has other rows now.
        """
        path = places.local(path)
        path = path.parent if path.name == FILE and path.is_file() else path
        info = read_info(path)
        for part in (*info.parts, *info.previews):
            file = path / part.path
            if not file.is_file() or file.stat().st_size != part.bytes:
                state = "has changed" if file.exists() else "is missing"
                name = places.shown(path)
                raise UserError(
                    f"{name}/{part.path} {state}", f"see 'uhr manifest verify {name}', or make it anew"
                )
        opened = cls(path, info, reference.parent_of(path, info, cls.open) if info.by_reference else None)
        opened._check_base()
        return opened

    def _check_base(self) -> None:
        """Raise UserError if a column that every manifest has is missing, or has another type."""
        keys = () if self.parent is None else reference.KEYS
        expected = [*((self.stored_schema, key) for key in keys), *((self.schema, each) for each in BASE)]
        for schema, column in expected:
            place = schema.get_field_index(column.name)
            found = schema.field(place).type if place >= 0 else None
            if found is None or not found.equals(column.type):
                state = "is missing" if found is None else f"is {found}, not {column.type}"
                raise UserError(
                    f"{self.name}: the column {column.name} {state}",
                    f"see 'uhr manifest verify {self.name}', or make it anew",
                )

    @property
    def name(self) -> str:
        """Its path or address, for messages."""
        return places.shown(self.path)

    @property
    def id(self) -> str:
        """Hash of the content (64 hex digits)."""
        return self.info.id

    @property
    def root(self) -> Path:
        """The folder that every `uri` is relative to, if the source is a folder."""
        return text_path(self.info.root)

    @cached_property
    def source(self) -> Source:
        """The source of the rows: it opens their bytes."""
        from uhr.manifests import sources
        from uhr.manifests.sources.folder import Folder
        from uhr.manifests.sources.stored import Stored

        if self.info.origin is None:
            source: Source = Folder.at(self.root)
        else:
            source = sources.build(self.info.origin, str(self.path / FILE))
        if not self._pixels:
            return source
        return Stored(path=places.place_of(self.path), parts=self._pixels, source=source)

    @property
    def _pixels(self) -> tuple[str, ...]:
        """The parts of the stored images."""
        return tuple(part.path for part in self.info.attachments if part.path.startswith(f"{PIXELS}/"))

    @property
    def origin(self) -> dict[str, Any] | None:
        """The description of `source` for the `manifest.json` of a manifest that is made from this one; None
        for a folder, as in `ManifestInfo`: no source is built to say so.
        """
        return self.source.origin if self.info.origin is not None or self._pixels else None

    @cached_property
    def stored_schema(self) -> pa.Schema:
        """The Arrow schema of every part, with the field metadata."""
        with self._damage_named():
            return parquet.schema_of(self.path / self.info.parts[0].path).remove_metadata()

    @cached_property
    def own_fields(self) -> list[pa.Field]:
        """The columns that the parts have the values of: all, or by reference those that are added."""
        return list(self.stored_schema) if self.parent is None else reference.own_fields(self.stored_schema)

    @cached_property
    def schema(self) -> pa.Schema:
        """The Arrow schema of the rows, with the field metadata."""
        if self.parent is None:
            return self.stored_schema
        return reference.with_columns(self.parent.schema, self.own_fields)

    @property
    def columns(self) -> list[Column]:
        """The columns, described by the field metadata."""
        return [Column.from_field(field) for field in self.schema]

    @contextlib.contextmanager
    def connect(self, threads: int | None = None) -> Generator[duckdb.DuckDBPyConnection]:
        """Open a DuckDB connection whose only relation is `samples`, and which cannot access files.

        Raises UserError with the name of the part if reading inside the block fails on a damaged part.
        """
        with self.dataset() as samples, sql.connect(threads, samples=samples) as connection:
            yield connection

    @contextlib.contextmanager
    def dataset(self) -> Generator[ds.Dataset]:
        """Open the rows as an Arrow dataset while the block runs; errors are those of `connect`."""
        with self._damage_named():
            if self.parent is not None:
                yield parquet.streamed(self.schema, self.rows)
                return
            files = [self.path / part.path for part in self.info.parts]
            with parquet.dataset(files, self.schema) as samples:
                yield samples

    @contextlib.contextmanager
    def _damage_named(self) -> Generator[None]:
        """Turn a failed read into a UserError if a part is damaged; other errors are not changed."""
        try:
            yield
        except (pa.ArrowException, duckdb.Error, OSError):
            # the error rarely names the file, and may be about a condition: compare the hashes
            for file, part in self._all_files():
                if not file.is_file() or sha256_file(file) != part.sha256:
                    raise UserError(
                        f"{file} is damaged", f"see 'uhr manifest verify {self.name}', or make it anew"
                    ) from None
            raise

    def _all_files(self) -> Iterator[tuple[Path, Part]]:
        """Yield the files that rows and previews are read from, with what is recorded of them."""
        manifest: Manifest | None = self
        while manifest is not None:
            yield from (
                (manifest.path / part.path, part) for part in (*manifest.info.parts, *manifest.info.previews)
            )
            manifest = manifest.parent

    def table(
        self, columns: Sequence[str] | None = None, where: str | None = None, limit: int | None = None
    ) -> pa.Table:
        """Return the rows for which the SQL boolean `where` is true, in order; at most `limit`.

        Raises UserError if a column is unknown or the condition is invalid.
        """
        columns = self.schema.names if columns is None else list(columns)
        for name in columns:
            if name not in self.schema.names:
                raise unknown("column", name, self.schema.names, self.name)
        query = f"SELECT {', '.join(map(sql.quoted, columns))} FROM samples"
        condition = None
        if where is not None:
            condition = sql.SqlCondition.parse(where, "where")
            condition.check(self.schema)
        try:
            with self.connect() as connection:
                query += f" WHERE {condition.sql_for(connection)}" if condition is not None else ""
                query += f" LIMIT {limit:d}" if limit is not None else ""
                rows = connection.sql(query).to_arrow_table()
        except duckdb.Error as error:
            if condition is None:
                raise
            raise condition.error_from(error) from None
        return rows.cast(pa.schema([self.schema.field(name) for name in columns]))

    def row(self, sample: str) -> dict[str, Any]:
        """Return the row of `sample`: a sample_id, the beginning of one, or a uri.

        Raises UserError if there is no such row, or more than one.
        """
        whole = "sample_id = $1 OR (uri = $1 AND parent_id IS NULL)"
        for condition in (whole, "starts_with(sample_id, $1)"):
            with self.connect() as connection:
                query = f"SELECT * FROM samples WHERE {condition} LIMIT 2"
                found = connection.sql(query, params=[sample]).to_arrow_table().to_pylist()
            if len(found) == 1:
                return found[0]
            if found:
                raise UserError(
                    f"'{sample}' begins several sample ids in {self.name}", "give more of its digits"
                )
        near = self._uris_like(sample)
        raise UserError(
            f"no sample '{sample}' in {self.name}",
            f"did you mean {' or '.join(near)}?"
            if near
            else "name a sample_id or a uri as the manifest has it",
        )

    def _uris_like(self, text: str, most: int = 3) -> list[str]:
        """The uris that end with `text` or resemble it, without regard to case; the most similar first."""
        query = (
            "SELECT uri, ends_with('/' || lower(uri), '/' || lower($1)) AS same, "
            "jaro_winkler_similarity(lower(uri), lower($1)) AS alike FROM samples "
            "WHERE parent_id IS NULL AND (same OR alike >= 0.95) "
            f"ORDER BY same DESC, alike DESC, uri LIMIT {most}"
        )
        with self.connect() as connection:
            found = connection.sql(query, params=[text]).fetchall()
        same = [uri for uri, same, _ in found if same]
        return same or [uri for uri, _, _ in found]

    def rows(self, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """Yield all rows in order, in batches. At most one row group is in memory."""
        for group in self.row_groups():
            yield from self.row_group(group, columns).to_batches()

    def take(
        self,
        positions: np.ndarray,
        advance: Advance = lambda n=1, note=None: None,
        columns: Sequence[str] | None = None,
    ) -> Iterator[pa.RecordBatch]:
        """Yield the rows at `positions` (int64 [n], rising, counted over all rows), in order; all columns by
        default.

        Only row groups with one of them are read, one at a time. `advance` is called with the rows passed.
        """
        for group in self.row_groups():
            low, high = np.searchsorted(positions, [group.start, group.start + group.rows])
            if low < high:
                rows, places_ = self.row_group(group, columns), positions[low:high] - group.start
                if places_[-1] - places_[0] == high - low - 1:  # a copy is saved
                    yield from rows.slice(places_[0], high - low).to_batches()
                else:
                    yield from rows.take(places_).combine_chunks().to_batches()
            advance(group.rows)

    def row_groups(self) -> list[RowGroup]:
        """Return the row groups of all parts, in order."""
        return self._row_groups

    @cached_property
    def _row_groups(self) -> list[RowGroup]:
        found: list[RowGroup] = []
        start = 0
        for part in self.info.parts:
            with self._damage_named(), parquet.opened(self.path / part.path) as file:
                for number in range(file.num_row_groups):
                    rows = file.metadata.row_group(number).num_rows
                    found.append(RowGroup(part.path, number, start, rows))
                    start += rows
        return found

    def row_group(self, group: RowGroup, columns: Sequence[str] | None = None) -> pa.Table:
        """Read the rows of one row group; all columns by default."""
        names = self.schema.names if columns is None else list(columns)
        if self.parent is None:
            return self.stored(group, names)
        own = {"sample_id", *(field.name for field in self.own_fields)}
        inherited = [name for name in names if name not in own]
        keys = [reference.POSITION.name] if inherited else []
        rows = self.stored(group, [*(name for name in names if name in own), *keys])
        if inherited:
            rows = reference.joined(rows, self.parent, inherited, self.name)
        return rows.select(names)

    def stored(self, group: RowGroup, columns: list[str]) -> pa.Table:
        """Read columns that the parts have themselves."""
        with self._damage_named(), parquet.opened(self.path / group.part) as file:
            return file.read_row_group(group.number, columns=columns)

    @property
    def with_previews(self) -> Manifest:
        """The manifest that has the previews of the rows: by reference it may be the parent."""
        return self if self.parent is None or self.info.previews else self.parent.with_previews

    def preview_batches(self, sample_ids: Collection[str]) -> Iterator[pa.RecordBatch]:
        """Yield the preview rows of these samples, in order. Only row groups with one of them are read."""
        chosen = frozenset(sample_ids)
        home = self.with_previews
        for part in home.info.previews:
            with self._damage_named(), parquet.opened(home.path / part.path) as file:
                for group in range(file.num_row_groups):
                    ids = file.read_row_group(group, columns=["sample_id"]).column(0).to_pylist()
                    mask = [one in chosen for one in ids]
                    if any(mask):
                        rows = file.read_row_group(group).filter(pa.array(mask))
                        yield from rows.combine_chunks().to_batches()

    def previews(self, sample_ids: Collection[str]) -> dict[str, bytes]:
        """Return the JPEG bytes of each of these samples that has a preview, by sample_id."""
        return {
            row["sample_id"]: row["jpeg"]
            for batch in self.preview_batches(sample_ids)
            for row in batch.select(["sample_id", "jpeg"]).to_pylist()
        }


@contextlib.contextmanager
def connect(**manifests: Manifest) -> Generator[duckdb.DuckDBPyConnection]:
    """Open a DuckDB connection with each manifest as the relation of its name, as `Manifest.connect`."""
    with contextlib.ExitStack() as opened:
        datasets = {name: opened.enter_context(one.dataset()) for name, one in manifests.items()}
        yield opened.enter_context(sql.connect(None, **datasets))
