"""Which rows of a manifest are in which shard of an export, after all checks of its rows."""

from __future__ import annotations

import collections
import re
from collections.abc import Iterator
from dataclasses import dataclass

import duckdb
import numpy as np
import pyarrow as pa

from uhr.base.errors import UserError
from uhr.manifests.export.base import ExportOptions, Format, Shard
from uhr.manifests.manifest import Manifest
from uhr.manifests.schema import KEPT
from uhr.manifests.sql import quoted

SPLIT = "train"
"""The split of rows that have none."""

_GUESSED_BYTES = 4_000_000
"""Size of an image whose manifest has no `file_size`."""


@dataclass(frozen=True)
class PlannedShard:
    """A shard, and the positions of its rows in the manifest: int64 [rows], rising."""

    shard: Shard
    positions: np.ndarray


def plan_shards(parent: Manifest, format: Format, options: ExportOptions) -> list[PlannedShard]:
    """Divide the kept rows into shards, in order: by split, by extension if the format needs it, and by
    bytes. The shards are sorted by their first row.

    Raises UserError if the manifest has no kept rows or lacks a column of captions, if a sample id is
    repeated or cannot be the name of a file, or if the format cannot have a split of this name or needs a
    value that a row lacks.
    """
    _check_columns(parent, format, options)
    names = parent.schema.names
    split = f"coalesce(split, '{SPLIT}')" if "split" in names else f"'{SPLIT}'"
    kind = "format" if format.one_extension and "format" in names else "''"
    if format.one_extension and "parent_id" in names:
        kind = f"CASE WHEN parent_id IS NULL THEN {kind} ELSE 'PNG' END"
    size = f"coalesce(file_size, {_GUESSED_BYTES})" if "file_size" in names else str(_GUESSED_BYTES)
    with parent.connect() as connection:
        _check_ids(connection, parent)
        _check_values(connection, parent, format)
        rows = connection.sql(
            f"""SELECT position, split, split || '/' || kind AS kind, size FROM
                (SELECT row_number() OVER () - 1 AS position, status, {split} AS split,
                        coalesce({kind}, '') AS kind, {size} AS size FROM samples)
                WHERE status = '{KEPT}' ORDER BY position"""
        ).to_arrow_table()
    codes = rows["kind"].combine_chunks().dictionary_encode().indices.to_numpy()
    positions, sizes = rows["position"].to_numpy(), rows["size"].to_numpy()
    splits = rows["split"].combine_chunks().dictionary_encode()
    names_of, split_codes = splits.dictionary.to_pylist(), splits.indices.to_numpy()
    for name in names_of:
        if re.fullmatch(format.split_names, name) is None:
            raise UserError(
                f"{parent.name} has a split {name!r}, which --to {format.name} cannot write",
                "slice it with --split, and name the splits such as train and val",
            )
    cuts: list[tuple[int, str, np.ndarray]] = []
    for code in np.unique(codes):
        (here,) = np.nonzero(codes == code)
        for part in _cut(sizes[here], options):
            chosen = here[part]
            cuts.append((int(positions[chosen[0]]), names_of[split_codes[chosen[0]]], positions[chosen]))
    cuts.sort(key=lambda cut: cut[0])
    counts = collections.Counter(name for _, name, _ in cuts)
    numbers: collections.Counter[str] = collections.Counter()
    plan: list[PlannedShard] = []
    for _, name, chosen in cuts:
        plan.append(PlannedShard(Shard(numbers[name], counts[name], name), chosen))
        numbers[name] += 1
    return plan


def _check_columns(parent: Manifest, format: Format, options: ExportOptions) -> None:
    if parent.info.counts[KEPT] == 0:
        raise UserError(f"{parent.name} has no kept rows", "export a manifest that has some")
    types = {field.name: field.type for field in parent.schema}
    texts = [name for name, kind in types.items() if _is_text(kind) and "caption" in name]
    for name in options.captions:
        if name not in types or not _is_text(types[name]):
            what = f"has no column {name}" if name not in types else f"has {types[name]}, not texts, there"
            raise UserError(
                f"--captions {name}: {parent.name} {what}",
                f"name one of {', '.join(texts)}" if texts else "name a column of texts",
            )
    if not _is_text(types.get("split", pa.string())):
        raise UserError(
            f"{parent.name}: split is {types['split']}, not a text", "slice it with --split train=0.9,val=0.1"
        )
    for name in format.needs:
        if name not in types:
            raise UserError(f"--to {format.name} needs the column {name}, which {parent.name} lacks")


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _check_ids(connection: duckdb.DuckDBPyConnection, parent: Manifest) -> None:
    """Raise UserError unless the sample ids of the kept rows are different names of files."""
    faulty = connection.sql(
        f"""SELECT sample_id FROM samples WHERE status = '{KEPT}' GROUP BY sample_id
            HAVING count(*) > 1 OR NOT coalesce(regexp_full_match(sample_id, '[0-9A-Za-z_-]{{1,100}}'), false)
            LIMIT 1"""
    ).fetchall()
    if faulty:
        raise UserError(
            f"{parent.name} has the sample id {faulty[0][0]!r}, which is repeated or no name of a file",
            f"see 'uhr manifest verify {parent.name}'",
        )


def _check_values(connection: duckdb.DuckDBPyConnection, parent: Manifest, format: Format) -> None:
    """Raise UserError if a kept row lacks a value that the format needs."""
    for name in format.needs:
        ((uri, missing),) = connection.sql(
            f"""SELECT min(uri), count(*) FROM samples WHERE status = '{KEPT}' AND {quoted(name)} IS NULL"""
        ).fetchall()
        if missing:
            raise UserError(
                f"--to {format.name} needs {name}, which is null on {missing:,} kept rows, such as {uri}",
                f"slice the manifest with --where '{name} IS NOT NULL'",
            )


def _cut(sizes: np.ndarray, options: ExportOptions) -> Iterator[slice]:
    """Yield consecutive runs of at most `shard_rows` images and `shard_bytes`, each of at least one image."""
    start = 0
    ends = np.cumsum(sizes)
    while start < len(sizes):
        before = ends[start - 1] if start else 0
        stop = int(np.searchsorted(ends, before + options.shard_bytes, side="right"))
        stop = max(start + 1, min(stop, start + options.shard_rows))
        yield slice(start, stop)
        start = stop
