"""One pass over the rows of a manifest, by row groups on every core: what the checks of rows count."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from uhr.manifests import sql
from uhr.manifests.manifest import Manifest, RowGroup

_MOST_THREADS = 16
"""Each holds the checked columns of a row group: some 20 MB."""

_VERDICT = ("status", "reason", "error")


class Scan(NamedTuple):
    """What a pass found: for each condition the number of rows for which it is true; the distinct verdicts,
    with the number `n` of their rows, where each `error` that there is is true; the position of the first row
    whose uri is less than that of the row before, or None; and whether each uri is greater than the one
    before.
    """

    counts: list[int]
    verdicts: pa.Table
    falls_at: int | None
    rising: bool


class _Group(NamedTuple):
    """The same of one row group, with its first and last uri."""

    counts: tuple[int, ...]
    verdicts: pa.Table
    falls_at: int | None
    rising: bool
    first: str | None
    last: str | None


def scan(manifest: Manifest, conditions: Sequence[str], columns: Sequence[str]) -> Scan:
    """Read the rows once. `conditions` are SQL over these columns, which include those of the verdicts."""
    sums = ", ".join(f"count(*) FILTER ({condition})" for condition in conditions)
    query = f"SELECT {sums} FROM samples"

    def group(place: RowGroup) -> _Group:
        return _scan_group(manifest.row_group(place, columns), place.start, query)

    places = [place for place in manifest.row_groups() if place.rows]
    with ThreadPoolExecutor(min(_MOST_THREADS, pa.cpu_count())) as pool:
        found = list(pool.map(group, places))
    counts = [sum(counted) for counted in zip(*(one.counts for one in found), strict=True)]
    falls = [one.falls_at for one in found if one.falls_at is not None]
    rising = all(one.rising for one in found)
    for before, place, after in zip(found, places[1:], found[1:], strict=False):
        if before.last is not None and after.first is not None:
            rising = rising and before.last < after.first
            falls += [place.start] if before.last > after.first else []
    return Scan(counts or [0] * len(conditions), _summed(found), min(falls, default=None), rising)


def _scan_group(rows: pa.Table, start: int, query: str) -> _Group:
    uris = rows["uri"].combine_chunks()
    rising, falls = _first(uris, "less_equal") is None, None
    if not rising and (place := _first(uris, "less")) is not None:
        falls = start + place + 1
    failed = rows["error"].is_valid()
    # no scalar of None, for which pyarrow imports pandas
    failed = pc.call_function("if_else", [failed, failed, pa.nulls(rows.num_rows, pa.bool_())])
    verdicts = rows.select(_VERDICT).set_column(2, "error", failed)
    # one thread: the other cores have row groups of their own
    verdicts = verdicts.group_by(_VERDICT, use_threads=False).aggregate([([], "count_all")])
    with sql.connect(samples=rows) as connection:
        (counts,) = connection.sql(query).fetchall()
    return _Group(
        counts, verdicts.rename_columns([*_VERDICT, "n"]), falls, rising, uris[0].as_py(), uris[-1].as_py()
    )


def _summed(groups: Sequence[_Group]) -> pa.Table:
    kinds = (pa.string(), pa.string(), pa.bool_(), pa.int64())
    empty = pa.schema(list(zip((*_VERDICT, "n"), kinds, strict=True))).empty_table()
    verdicts = pa.concat_tables([empty, *(group.verdicts for group in groups)])
    return verdicts.group_by(_VERDICT).aggregate([("n", "sum")]).rename_columns([*_VERDICT, "n"])


def _first(uris: pa.Array, compare: str) -> int | None:
    """Return the first place where the next uri compares so with the one there; None if there is none."""
    found = pc.call_function(compare, [uris[1:], uris[:-1]])
    place = pc.call_function("index", [found], pc.IndexOptions(pa.scalar(True))).as_py()
    return None if place < 0 else place
