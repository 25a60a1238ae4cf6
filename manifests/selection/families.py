"""Families of rows that a split keeps on one side: copies, near-duplicates, and patches of one image."""

from __future__ import annotations

from collections.abc import Collection

import duckdb
import pyarrow as pa

from uhr.manifests.sql import quoted

GROUPS = ("dup_group", "near_group", "semantic_group")
"""Columns of groups of duplicates: those of equal bytes, of a like appearance, and of a like embedding."""

_KEY = "coalesce(content_hash, parent_id, sample_id)"
"""The name of a row by its bytes, which does not change when a copy is added."""


def make(connection: duckdb.DuckDBPyConnection, names: Collection[str], table: str) -> str:
    """Make the table `table` of (member, family), of those rows of `samples` that are linked to others by a
    group of duplicates, or as a patch to its image. Return SQL for the family of a row of `samples`.

    names: the columns of `samples`. A family is named by the smallest key (`_KEY`) of its members, over all
    rows of the manifest, so that it depends neither on their order nor on which of them are chosen.
    """
    links = [f"'{name}:' || {quoted(name)}" for name in GROUPS if name in names]
    links.append(
        """'image:' || CASE WHEN parent_id IS NOT NULL THEN parent_id
           WHEN sample_id IN (SELECT parent_id FROM images) THEN sample_id END"""
    )
    # each query reads the rows once: the files of a dataset are not for two readers at a time
    connection.execute(
        "CREATE TEMP TABLE images AS SELECT DISTINCT parent_id FROM samples WHERE parent_id IS NOT NULL"
    )
    pairs = connection.sql(
        f"""SELECT key, link FROM
            (SELECT DISTINCT {_KEY} AS key, unnest([{", ".join(links)}]) AS link FROM samples)
            WHERE link IS NOT NULL
            QUALIFY min(key) OVER (PARTITION BY link) < max(key) OVER (PARTITION BY link)"""
    ).to_arrow_table()
    known = _joined(pairs["key"].to_pylist(), pairs["link"].to_pylist())
    found = pa.table(
        {"member": pa.array(list(known), pa.string()), "family": pa.array(list(known.values()), pa.string())}
    )
    connection.register("found_families", found)
    connection.execute(f"CREATE TEMP TABLE {table} AS SELECT * FROM found_families")
    connection.unregister("found_families")
    return f"coalesce((SELECT family FROM {table} WHERE member = {_KEY}), {_KEY})"


def _joined(keys: list[str], links: list[str]) -> dict[str, str]:
    """Return the smallest key of the connected component of each key: keys with a link in common."""
    above = {key: key for key in keys}

    def root(key: str) -> str:
        while above[key] != key:
            above[key] = above[above[key]]
            key = above[key]
        return key

    first: dict[str, str] = {}
    for key, link in zip(keys, links, strict=True):
        one, two = root(key), root(first.setdefault(link, key))
        # the smaller one stays on top
        above[max(one, two)] = min(one, two)
    return {key: root(key) for key in above}
