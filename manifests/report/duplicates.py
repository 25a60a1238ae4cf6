"""Groups of images that look alike, side by side."""

from __future__ import annotations

from dataclasses import dataclass

import duckdb

from uhr.manifests.manifest import Manifest
from uhr.manifests.report.gallery import Image, Spent, image_of
from uhr.manifests.sql import quoted

GROUPS, PER_GROUP = 24, 6
"""The largest numbers of groups, and of images of one group."""

ALIKE = {"near_group": "Near-duplicates", "semantic_group": "Images of one subject"}
"""Columns that group images that look alike, and what their groups are called."""

EXACT = {"dup_group": "Files with the same bytes"}
"""Shown where there are no others: such images need no second look."""


@dataclass(frozen=True)
class Alike:
    """Images of one group, the best first, and how many the group has."""

    total: int
    images: list[Image]


@dataclass(frozen=True)
class Duplicates:
    """The largest groups of a column; there are `total` groups with `rows` images."""

    column: str
    title: str
    total: int
    rows: int
    groups: list[Alike]


def duplicates(connection: duckdb.DuckDBPyConnection, manifest: Manifest, spent: Spent) -> list[Duplicates]:
    """Return the largest groups of each column, as far as their previews fit into what is left."""
    for columns in (ALIKE, EXACT):
        present = [name for name in columns if name in manifest.schema.names]
        found = [_groups(connection, manifest, name, spent) for name in present]
        if some := [one for one in found if one is not None]:
            return some
    return []


def _groups(
    connection: duckdb.DuckDBPyConnection, manifest: Manifest, column: str, spent: Spent
) -> Duplicates | None:
    name = quoted(column)
    sizes = f"SELECT {name} AS g, count(*) AS n FROM samples WHERE {name} IS NOT NULL GROUP BY g HAVING n > 1"
    ((total, rows),) = connection.sql(f"SELECT count(*), sum(n) FROM ({sizes})").fetchall()
    if not total:
        return None
    wanted = ("sample_id", "uri", "caption", "width", "height", "format", "file_size", "status", "reason")
    names = ", ".join(f"s.{quoted(one)}" for one in wanted if one in manifest.schema.names)
    best = "s.sample_id = g DESC, s.status = 'kept' DESC, s.uri"
    query = f"""
        SELECT {names}, g, n FROM ({sizes} ORDER BY n DESC, g LIMIT {GROUPS})
        JOIN samples AS s ON s.{name} = g
        QUALIFY row_number() OVER (PARTITION BY g ORDER BY {best}) <= {PER_GROUP}
        ORDER BY n DESC, g, {best}"""
    found = connection.sql(query).to_arrow_table().to_pylist()
    values = [one for one in ("file_size", "status", "reason") if one in manifest.schema.names]
    jpegs = manifest.previews([row["sample_id"] for row in found])
    groups: dict[str, Alike] = {}
    for row in found:
        jpeg = jpegs.get(row["sample_id"])
        if not spent.fits(row, jpeg):
            break
        group = groups.setdefault(row["g"], Alike(row["n"], []))
        group.images.append(image_of(manifest, row | {"copies": 1}, values, jpeg))
    shown = [group for group in groups.values() if len(group.images) > 1]
    return Duplicates(column, (ALIKE | EXACT)[column], total, int(rows), shown)
