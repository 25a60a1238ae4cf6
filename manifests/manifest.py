"""Manifest: an immutable set of Parquet parts, complete when its `manifest.json` exists."""

from __future__ import annotations

import contextlib
import datetime
import platform
from collections import Counter
from collections.abc import Collection, Generator, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

import uhr
from uhr.base import parquet
from uhr.base.errors import UserError, unknown
from uhr.base.files import sha256_file, write_json
from uhr.base.paths import path_text, text_path
from uhr.manifests import parts as part_files
from uhr.manifests import sql
from uhr.manifests.info import (
    FILE,
    ManifestInfo,
    Parent,
    Part,
    RuleInfo,
    StageInfo,
    content_id,
    is_manifest,
    read_info,
)
from uhr.manifests.schema import SCHEMA_VERSION, STATUSES, Column

__all__ = ["Manifest", "ManifestInfo", "Parent", "RuleInfo", "StageInfo", "is_manifest", "write_manifest"]


class Manifest:
    """A committed manifest, read only. Made by `open` and by `write_manifest`."""

    def __init__(self, path: Path, info: ManifestInfo) -> None:
        self.path = path
        self.info = info

    @classmethod
    def open(cls, path: Path | str) -> Manifest:
        """Open the manifest in the folder `path`, which may also be the path of its `manifest.json`.

        Raises UserError if there is none, if it is unfinished, if a part is missing or has changed, or if its
        schema version is newer than this version can read.
        """
        path = Path(path)
        path = path.parent if path.name == FILE and path.is_file() else path
        info = read_info(path)
        for part in (*info.parts, *info.previews):
            file = path / part.path
            if not file.is_file() or file.stat().st_size != part.bytes:
                state = "has changed" if file.exists() else "is missing"
                raise UserError(f"{file} {state}", f"see 'uhr manifest verify {path}', or make it anew")
        return cls(path, info)

    @property
    def id(self) -> str:
        """Hash of the content (64 hex digits)."""
        return self.info.id

    @property
    def root(self) -> Path:
        """The folder that every `uri` is relative to."""
        return text_path(self.info.root)

    @cached_property
    def schema(self) -> pa.Schema:
        """The Arrow schema of every part, with the field metadata."""
        with self._damage_named():
            return parquet.schema_of(self.path / self.info.parts[0].path).remove_metadata()

    @property
    def columns(self) -> list[Column]:
        """The columns, described by the field metadata of the parts."""
        return [Column.from_field(field) for field in self.schema]

    @contextlib.contextmanager
    def connect(self, threads: int | None = None) -> Generator[duckdb.DuckDBPyConnection]:
        """Open a DuckDB connection whose only relation is `samples`, and which cannot access files.

        Raises UserError with the name of the part if reading inside the block fails on a damaged part.
        """
        files = [self.path / part.path for part in self.info.parts]
        with (
            self._damage_named(),
            parquet.dataset(files, self.schema) as samples,
            sql.connect(threads, samples=samples) as connection,
        ):
            yield connection

    @contextlib.contextmanager
    def _damage_named(self) -> Generator[None]:
        """Turn a failed read into a UserError if a part is damaged; other errors are not changed."""
        try:
            yield
        except (pa.ArrowException, duckdb.Error, OSError):
            # the error rarely names the file, and may be about a condition: compare the hashes
            for part in (*self.info.parts, *self.info.previews):
                file = self.path / part.path
                if not file.is_file() or sha256_file(file) != part.sha256:
                    raise UserError(
                        f"{file} is damaged", f"see 'uhr manifest verify {self.path}', or make it anew"
                    ) from None
            raise

    def table(
        self, columns: Sequence[str] | None = None, where: str | None = None, limit: int | None = None
    ) -> pa.Table:
        """Return the rows for which the SQL boolean `where` is true, in order; at most `limit`.

        Raises UserError if a column is unknown or the condition is invalid.
        """
        columns = self.schema.names if columns is None else list(columns)
        for name in columns:
            if name not in self.schema.names:
                raise unknown("column", name, self.schema.names, str(self.path))
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
                    f"'{sample}' begins several sample ids in {self.path}", "give more of its digits"
                )
        raise UserError(
            f"no sample '{sample}' in {self.path}", "name a sample_id or a uri as the manifest has it"
        )

    def rows(self, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """Yield all rows in order, in batches. At most one row group is in memory."""
        for part in self.info.parts:
            with self._damage_named(), parquet.opened(self.path / part.path) as file:
                yield from file.iter_batches(part_files.GROUP_ROWS, columns=columns)

    def preview_batches(self, sample_ids: Collection[str]) -> Iterator[pa.RecordBatch]:
        """Yield the preview rows of these samples, in order. Only row groups with one of them are read."""
        chosen = frozenset(sample_ids)
        for part in self.info.previews:
            with self._damage_named(), parquet.opened(self.path / part.path) as file:
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


def write_manifest(
    out: Path,
    *,
    schema: pa.Schema,
    batches: Iterable[pa.RecordBatch],
    previews: Iterable[pa.RecordBatch] | None = None,
    root: Path | str,
    operation: dict[str, Any],
    parents: Sequence[Parent] = (),
    stages: Sequence[StageInfo] = (),
    rules: Sequence[RuleInfo] = (),
    source: Mapping[str, int] | None = None,
    weights: Mapping[str, str] | None = None,
    versions: Mapping[str, str] | None = None,
) -> Manifest:
    """Write and commit a manifest to the folder `out`. It becomes visible in the last step.

    The same content gives the same bytes and the same id. Leftovers of a commit that was killed are removed
    first.

    Args:
        schema: the columns of the rows.
        batches: the rows, sorted by uri. They are streamed, as are the previews.
        previews: rows of `parts.PREVIEW_SCHEMA` in the same order.
        root: the folder that uris are relative to.
        operation: what was done. Part of the id, so it must not contain paths or times.

    Raises UserError if `out` already contains a manifest.
    """
    out = Path(out)
    if is_manifest(out):
        raise UserError(f"{out} already contains a manifest", "name another folder with --out")
    for stage in stages:
        missing = set(stage.adds).difference(schema.names) if stage.state == "ran" else set()
        assert not missing, f"stage {stage.name} says it adds {sorted(missing)}, which the schema lacks"
    part_files.clear_leftovers(out)
    tally = _Tally()
    parts = _write(
        out / part_files.SAMPLES, schema, tally.watch(batches), part_files.GROUP_ROWS, part_files.PART_ROWS
    )
    shown = (
        _write(
            out / part_files.PREVIEWS,
            part_files.PREVIEW_SCHEMA,
            previews,
            part_files.PREVIEW_GROUP_ROWS,
            part_files.PREVIEW_PART_ROWS,
        )
        if previews is not None
        else []
    )
    info = ManifestInfo(
        schema_version=SCHEMA_VERSION,
        # the schema as it is read back: Parquet renames the fields inside lists
        id=content_id(parquet.schema_of(out / parts[0].path), operation, parents, parts, shown),
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        uhr=uhr.__version__,
        root=path_text(root),
        parents=list(parents),
        operation=operation,
        stages=list(stages),
        rules=list(rules),
        counts=tally.counts(),
        source=dict(source or {}),
        weights=dict(weights or {}),
        versions={**_versions(), **(versions or {})},
        parts=parts,
        previews=shown,
    )
    write_json(out / FILE, info.model_dump(mode="json"))
    return Manifest(out, info)


def _write(
    folder: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch], group_rows: int, part_rows: int
) -> list[Part]:
    return list(part_files.write_parts(folder, schema, batches, group_rows=group_rows, part_rows=part_rows))


class _Tally:
    """Counts the verdicts of the rows that pass through `watch`."""

    def __init__(self) -> None:
        self.statuses: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()

    def watch(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        last = ""
        for batch in batches:
            if batch.num_rows:
                uris = batch.column("uri")
                assert uris[0].as_py() >= last, f"rows out of order: {uris[0]} after {last}"
                last = uris[-1].as_py()
            for name, counter in (("status", self.statuses), ("reason", self.reasons)):
                for entry in batch.column(name).value_counts().to_pylist():
                    counter[entry["values"]] += entry["counts"]
            yield batch

    def counts(self) -> dict[str, Any]:
        strange = set(self.statuses).difference(STATUSES)
        assert not strange, f"status {strange}"
        reasons = {name: n for name, n in self.reasons.items() if name is not None}
        ordered = dict(sorted(reasons.items(), key=lambda entry: (-entry[1], entry[0])))
        by_status = {status: self.statuses[status] for status in STATUSES}
        return {"rows": self.statuses.total(), **by_status, "reasons": ordered}


def _versions() -> dict[str, str]:
    versions = {"pyarrow": pa.__version__, "duckdb": duckdb.__version__}
    return {"python": platform.python_version(), **{name: str(version) for name, version in versions.items()}}
