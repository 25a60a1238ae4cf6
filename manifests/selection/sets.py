"""Unions and differences of manifests, by sample id."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from uhr.base.console import Advance, counted
from uhr.base.errors import UserError
from uhr.base.paths import text_place
from uhr.manifests import places
from uhr.manifests.info import Parent, RuleInfo, StageInfo
from uhr.manifests.manifest import Manifest, connect
from uhr.manifests.parts import GROUP_ROWS, PREVIEW_GROUP_ROWS, PREVIEW_SCHEMA
from uhr.manifests.selection.tombstones import COLUMNS, all_tombstones, living, merged
from uhr.manifests.sql import quoted
from uhr.manifests.writer import Provenance, write_manifest

_KEY = "sample_id"
_NAMED = 3
"""The largest number of rows that an error names."""


@dataclass(frozen=True)
class _Order:
    """The rows of a union, in order.

    ids: their sample ids. positions: the position of each in every manifest, int64 [manifests, rows]; -1
    where the manifest does not have it.
    """

    ids: pa.ChunkedArray
    positions: np.ndarray

    @property
    def rows(self) -> int:
        return int(self.positions.shape[1])


DIFFERENCE = {"kind": "difference"}
"""The operation of a difference, as `manifest.json` records it."""


def union_operation(prefer: str | None) -> dict[str, Any]:
    """Return the operation of a union."""
    return {"kind": "union", **({"prefer": prefer} if prefer else {})}


def union(
    manifests: Sequence[Manifest],
    out: Path | str,
    prefer: str | None = None,
    advance: Advance = lambda n=1, note=None, total=None: None,
) -> Manifest:
    """Write the rows of all manifests to `out`, each sample id once, with the columns of all.

    A row of several manifests has in each column the value of the first manifest that has the column.

    Args:
        prefer: "first" takes what the first manifest says where manifests disagree about a row or a rule.
        advance: `advance(n, total=rows)` is called for n rows that are written; first with 0, when their
            number is known.

    Raises UserError if the type of a column differs between manifests, or a value or a rule without `prefer`;
    if their rows are of different sources; and as `places.output` does.
    """
    first, origin = manifests[0], _origin(manifests)
    schema = _schema(manifests)
    rules, stages = _rules(manifests, prefer), _stages(manifests)
    names = [f"m{number}" for number in range(len(manifests))]
    with connect(**dict(zip(names, manifests, strict=True))) as connection:
        for name, manifest in zip(names, manifests, strict=True):
            check_unique(connection, name, manifest)
        if prefer is None:
            for a, b in itertools.combinations(range(len(manifests)), 2):
                _check_agreement(connection, (names[a], manifests[a]), (names[b], manifests[b]))
        order = _living(_order(connection, names), manifests, _tombstones(manifests))
    advance(0, total=order.rows)
    with places.output(out) as folder:
        provenance = Provenance.derived(
            first,
            union_operation(prefer),
            [Parent(id=each.id, path=places.place_of(each.path), role="union of") for each in manifests],
            origin=origin,
            stages=stages,
            rules=rules,
            weights=_merged([each.info.weights for each in manifests]),
            files=_merged([each.info.files for each in manifests]),
            redactions=merged(each.info.redactions for each in manifests),
        )
        previews = (
            _previews(manifests, order)
            if any(each.with_previews.info.previews for each in manifests)
            else None
        )
        write_manifest(folder, schema, _rows(manifests, schema, order, advance), provenance, previews)
    return Manifest.open(out)


def difference(
    a: Manifest, b: Manifest, out: Path | str, advance: Advance = lambda n=1, note=None: None
) -> Manifest:
    """Write the rows of `a` whose sample ids `b` does not have to `out`, without those that one of them was
    made to forget.

    Raises UserError if no row is left, if their rows are of different sources, and as `places.output` does.
    """
    _origin((a, b))
    with connect(a=a, b=b) as connection:
        found = connection.sql(
            f"""SELECT position, {_KEY} FROM (SELECT row_number() OVER () - 1 AS position, {_KEY} FROM a)
                ANTI JOIN b USING ({_KEY}) ORDER BY position"""
        ).to_arrow_table()
    order = _Order(found[_KEY], found["position"].to_numpy()[None])
    order = _living(order, [a], _tombstones((a, b)))
    if not order.rows:
        raise UserError(f"nothing is left: {b.name} has every row of {a.name}", "name another manifest")
    with places.output(out) as folder:
        provenance = Provenance.derived(
            a,
            DIFFERENCE,
            [
                Parent(id=a.id, path=places.place_of(a.path), role="rows of"),
                Parent(id=b.id, path=places.place_of(b.path), role="without the rows of"),
            ],
            redactions=merged((a.info.redactions, b.info.redactions)),
        )
        previews = a.preview_batches(order.ids.to_pylist()) if a.with_previews.info.previews else None
        rows = a.take(order.positions[0], advance)
        write_manifest(folder, a.schema, rows, provenance, previews)
    return Manifest.open(out)


def check_unique(connection: duckdb.DuckDBPyConnection, relation: str, manifest: Manifest) -> None:
    """Raise UserError if the manifest, which `relation` is, has a sample id twice."""
    query = f"SELECT count(DISTINCT {_KEY}), count(*) FROM {relation}"
    ((ids, rows),) = connection.execute(query).fetchall()
    if ids != rows:
        raise UserError(
            f"{manifest.name} has {rows - ids} rows with a sample id that another row has",
            f"see 'uhr manifest verify {manifest.name}'",
        )


def _origin(manifests: Sequence[Manifest]) -> dict[str, Any] | None:
    """Return the description of a source that has the images of all: that of the first, in front of it the
    pixels that manifests have stored. Raises UserError if their sources differ.
    """
    first, layers = manifests[0], {}
    base = None
    for manifest in manifests:
        tree = manifest.source.described()
        while tree["kind"] in ("stored", "manifest"):
            if tree["kind"] == "manifest":  # it has its images from where those of that manifest are
                tree = Manifest.open(text_place(tree["path"])).source.described()
            else:
                layers[tree["path"]] = tree
                tree = tree["source"]
        base = tree if base is None else base
        if tree != base:
            raise UserError(
                f"{first.name} and {manifest.name} have their images from different sources",
                "curate both in one run, with a name for each source",
            )
    if not layers:
        return first.origin
    for layer in reversed(layers.values()):
        base = {**layer, "source": base}
    return base


def _schema(manifests: Sequence[Manifest]) -> pa.Schema:
    """Return the columns of the first manifest, then those that each next one adds."""
    fields: dict[str, pa.Field] = {}
    for manifest in manifests:
        for field in manifest.schema:
            known = fields.setdefault(field.name, field)
            if not known.type.equals(field.type):
                raise UserError(
                    f"the column {field.name} is {known.type} in {manifests[0].name} and {field.type} in "
                    f"{manifest.name}",
                    "make one of them again",
                )
    return pa.schema(fields.values())


def _rules(manifests: Sequence[Manifest], prefer: str | None) -> list[RuleInfo]:
    found: dict[str, tuple[RuleInfo, Manifest]] = {}
    for manifest in manifests:
        for rule in manifest.info.rules:
            known, where = found.setdefault(rule.name, (rule, manifest))
            if prefer is None and (known.where, known.null) != (rule.where, rule.null):
                raise UserError(
                    f"the rule {rule.name} is '{known.where}' in {where.name} and '{rule.where}' in "
                    f"{manifest.name}",
                    "to keep the verdicts and rules of the first, add --prefer first",
                )
    return [rule for rule, _ in found.values()]


def _stages(manifests: Sequence[Manifest]) -> list[StageInfo]:
    """Return every stage once; one that ran somewhere has run."""
    found: dict[str, StageInfo] = {}
    for manifest in manifests:
        for stage in manifest.info.stages:
            if found.setdefault(stage.name, stage).state == "skipped" and stage.state == "ran":
                found[stage.name] = stage
    return list(found.values())


def _merged(trees: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Return all entries; of one key the first."""
    return {key: value for tree in reversed(trees) for key, value in tree.items()}


def _check_agreement(
    connection: duckdb.DuckDBPyConnection, a: tuple[str, Manifest], b: tuple[str, Manifest]
) -> None:
    """Raise UserError, which names rows and columns, if both have a row with different values."""
    common = [name for name in a[1].schema.names if name in b[1].schema.names and name != _KEY]
    differs = [f"a.{quoted(name)} IS DISTINCT FROM b.{quoted(name)}" for name in common]
    joined = f"FROM {a[0]} AS a JOIN {b[0]} AS b USING ({_KEY}) WHERE {' OR '.join(differs)}"
    flags = ", ".join(differs)
    rows = connection.sql(f"SELECT a.uri, {_KEY}, {flags} {joined} ORDER BY a.uri, {_KEY} LIMIT {_NAMED}")
    found = rows.fetchall()
    if not found:
        return
    ((count,),) = connection.sql(f"SELECT count(*) {joined}").fetchall()
    named = ", ".join(
        f"{uri} ({sample[:8]}: {', '.join(itertools.compress(common, flags))})"
        for uri, sample, *flags in found
    )
    raise UserError(
        f"{a[1].name} and {b[1].name} disagree about {counted(count, 'row')}: {named}"
        + (", ..." if count > _NAMED else ""),
        "to keep the values of the first, add --prefer first",
    )


def _order(connection: duckdb.DuckDBPyConnection, names: Sequence[str]) -> _Order:
    """Order the rows by uri, then by their place in the first manifest that has them."""
    placed = [
        f"SELECT {number} AS side, row_number() OVER () - 1 AS position, {_KEY}, uri FROM {name}"
        for number, name in enumerate(names)
    ]
    at = [f"coalesce(max(position) FILTER (side = {n}), -1)" for n in range(len(names))]
    rows = connection.sql(
        f"""SELECT {_KEY}, {", ".join(f"{column} AS p{n}" for n, column in enumerate(at))}
            FROM ({" UNION ALL ".join(placed)}) GROUP BY {_KEY}
            ORDER BY arg_min(uri, side), min(side), arg_min(position, side)"""
    ).to_arrow_table()
    return _Order(rows[_KEY], np.stack([rows[f"p{n}"].to_numpy() for n in range(len(names))]))


def _tombstones(manifests: Sequence[Manifest]) -> frozenset[str]:
    return all_tombstones(manifest.info.redactions for manifest in manifests)


def _living(order: _Order, manifests: Sequence[Manifest], tombstones: frozenset[str]) -> _Order:
    """Leave out the rows that have one of these tombstones."""
    if not tombstones:
        return order
    alive = np.ones(order.rows, bool)
    for manifest, at in zip(manifests, order.positions, strict=True):
        names = [name for name in COLUMNS if name in manifest.schema.names]
        for start in range(0, order.rows, GROUP_ROWS):
            here = slice(start, start + GROUP_ROWS)
            mine = np.nonzero(at[here] >= 0)[0] + start
            alive[mine] &= living(_taken(manifest, at[mine], names), tombstones).to_numpy(
                zero_copy_only=False
            )
    return _Order(order.ids.filter(pa.array(alive)), order.positions[:, alive])


def _rows(
    manifests: Sequence[Manifest], schema: pa.Schema, order: _Order, advance: Advance
) -> Iterator[pa.RecordBatch]:
    """Yield the rows in order. Of each manifest a few row groups are in memory."""
    for start in range(0, order.rows, GROUP_ROWS):
        places_ = order.positions[:, start : start + GROUP_ROWS]
        tables = [_taken(each, at) for each, at in zip(manifests, places_, strict=True)]
        columns = [_first_known(field, tables, places_) for field in schema]
        yield pa.RecordBatch.from_arrays(columns, schema=schema)
        advance(places_.shape[1])


def _taken(manifest: Manifest, positions: np.ndarray, names: Sequence[str] | None = None) -> pa.Table:
    """Return a row per position of at least 0, in the order of the positions; all columns by default."""
    wanted = positions[positions >= 0]
    rising, back = np.unique(wanted, return_inverse=True)
    schema = manifest.schema if names is None else pa.schema([manifest.schema.field(n) for n in names])
    rows = pa.Table.from_batches(manifest.take(rising, columns=names), schema=schema)
    return rows.take(pa.array(back))


def _first_known(field: pa.Field, tables: Sequence[pa.Table], positions: np.ndarray) -> pa.Array:
    """Return a column of the union: of each row the value of the first manifest with row and column."""
    sources: list[pa.Array] = []
    place = np.full(positions.shape[1], -1, np.int64)
    start = 0
    for table, at in zip(tables, positions, strict=True):
        if field.name not in table.schema.names:
            continue
        here = at >= 0
        numbers = np.cumsum(here) - 1 + start
        place = np.where((place < 0) & here, numbers, place)
        sources += table[field.name].chunks
        start += table.num_rows
    if not sources:
        return pa.nulls(positions.shape[1], field.type)
    values = sources[0] if len(sources) == 1 else pa.concat_arrays(sources)
    return values.take(pa.array(place, mask=place < 0))


def _previews(manifests: Sequence[Manifest], order: _Order) -> Iterator[pa.RecordBatch]:
    """Yield the preview of each row, of the first manifest that has the row."""
    side = np.argmax(order.positions >= 0, axis=0)
    ids = order.ids.combine_chunks()
    # the rows that are taken of one manifest are in its own order, as are its previews
    streams = [
        _stream(manifest, ids.filter(pa.array(side == number)).to_pylist())
        for number, manifest in enumerate(manifests)
    ]
    heads = [next(stream, None) for stream in streams]
    held: list[dict[str, Any]] = []
    for name, number in zip(ids.to_pylist(), side.tolist(), strict=True):
        head = heads[number]
        if head is not None and head[_KEY] == name:
            held.append(head)
            heads[number] = next(streams[number], None)
        if len(held) == PREVIEW_GROUP_ROWS:
            yield pa.RecordBatch.from_pylist(held, schema=PREVIEW_SCHEMA)
            held = []
    if held:
        yield pa.RecordBatch.from_pylist(held, schema=PREVIEW_SCHEMA)


def _stream(manifest: Manifest, ids: Sequence[str]) -> Iterator[dict[str, Any]]:
    for batch in manifest.preview_batches(ids):
        yield from batch.to_pylist()
