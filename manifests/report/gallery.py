"""Choose the images of a report: kept and rejected, grouped by reason, within a budget of bytes."""

from __future__ import annotations

import base64
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

from uhr.base.formatting import first_words, with_unit
from uhr.manifests.manifest import Manifest
from uhr.manifests.report.scatter import scores_of
from uhr.manifests.report.thresholds import condition_of, thresholds
from uhr.manifests.schema import KEPT, REJECTED
from uhr.manifests.sql import finite_column, quoted

PER_GROUP = 60
BUDGET = 14_000_000
"""Bytes of a page that images take, as base64, with their texts."""

_TILE = 1200
"""Bytes of a tile without its image and names."""

KEPT_VALUES = 3
"""Number of columns that are shown for a kept image: the first that rules compare."""

SHOWN_ALWAYS = ("width", "height", "format")


@dataclass(frozen=True)
class Image:
    """One tile. `source` is a data URI, or None if the image was rejected before it was decoded; `scores` is
    the JSON of `scatter.scores_of`.
    """

    uri: str
    alt: str
    source: str | None
    size: str
    copies: int
    values: list[tuple[str, str]]
    caption: str
    scores: str = "[]"


@dataclass(frozen=True)
class Group:
    """The images of one verdict."""

    status: str
    reason: str
    condition: str
    total: int
    images: list[Image]


class Spent:
    """What is left of a number of bytes of the page."""

    def __init__(self, limit: int) -> None:
        self._left = float(limit)

    def fits(self, row: Mapping[str, Any], jpeg: bytes | None) -> bool:
        """Whether a tile still fits; its bytes are then taken. After the first that does not, none fits."""
        self._left -= 4 / 3 * len(jpeg or b"") + 6 * len(row["uri"]) + _TILE
        return self._left >= 0


def groups(manifest: Manifest, scores: Sequence[str] = (), limit: int | None = None) -> list[Group]:
    """Return the group of kept images, then those rejected by each rule, in the funnel's order.

    Each has at most PER_GROUP images, selected by sample_id (a hash, so independent of name and score), and
    sorted by the value that the rule tested. Files with the same bytes count as one. If the budget is
    exceeded, the last images of each group are left out. `scores` names the columns of `Image.scores`; the
    budget is `limit`, or BUDGET.
    """
    conditions = {rule.name: rule.where for rule in manifest.info.rules}
    columns = _columns(manifest)
    chosen = {key: _choose(manifest, *key, columns.get(key[1], []), scores) for key in _keys(manifest)}
    jpegs = _within_budget(manifest, list(chosen.values()), Spent(BUDGET if limit is None else limit))
    result = []
    for (status, reason), rows in chosen.items():
        deciding = columns.get(reason, [])
        shown = [row for row in rows if row["sample_id"] in jpegs]
        first = deciding[0] if status == REJECTED and deciding else "uri"
        shown.sort(key=lambda row: (_place(row[first]), row["uri"]))
        images = [
            replace(image_of(manifest, row, deciding, jpegs[row["sample_id"]]), scores=_scores(row, scores))
            for row in shown
        ]
        total = manifest.info.counts["kept"] if status == KEPT else manifest.info.counts["reasons"][reason]
        result.append(Group(status, reason, conditions.get(reason, ""), total, images))
    return result


def _place(value: Any) -> tuple[bool, Any]:
    """Return the sort key of a value; missing values and those that are not finite come last."""
    missing = value is None or (isinstance(value, float) and not math.isfinite(value))
    return missing, None if missing else value


def _keys(manifest: Manifest) -> list[tuple[str, str]]:
    """Return (status, reason) of every group with a row."""
    with manifest.connect() as connection:
        query = f"SELECT DISTINCT reason FROM samples WHERE status = '{REJECTED}' AND reason IS NOT NULL"
        reasons = [reason for (reason,) in connection.sql(query).fetchall()]
    order = {rule.name: place for place, rule in enumerate(manifest.info.rules)}
    reasons.sort(key=lambda reason: (order.get(reason, len(order)), reason))
    kept = [(KEPT, "")] if manifest.info.counts["kept"] else []
    return [*kept, *((REJECTED, reason) for reason in reasons)]


def _columns(manifest: Manifest) -> dict[str, list[str]]:
    """Return the columns of each rule, by reason, with simple thresholds first; those of kept images under
    "".
    """
    result: dict[str, list[str]] = {}
    shared: dict[str, None] = {}
    for rule in manifest.info.rules:
        condition = condition_of(rule)
        if condition is not None:
            plain = [threshold.column for threshold in thresholds(condition)]
            names = dict.fromkeys([*plain, *sorted(condition.columns)])
            result[rule.name] = [name for name in names if name in manifest.schema.names]
            if rule.state == "evaluated":
                shared |= dict.fromkeys(name for name in plain if name in manifest.schema.names)
    return {**result, "": list(shared)[:KEPT_VALUES]}


def _scores(row: Mapping[str, Any], names: Sequence[str]) -> str:
    return scores_of([row[f"score {number}"] for number in range(len(names))])


def _choose(
    manifest: Manifest, status: str, reason: str, deciding: Sequence[str], scores: Sequence[str]
) -> list[dict[str, Any]]:
    columns = ["sample_id", "uri", "caption", *SHOWN_ALWAYS, *deciding]
    names = ", ".join(quoted(n) for n in dict.fromkeys(columns) if n in manifest.schema.names)
    names += "".join(f', {finite_column(n)} AS "score {number}"' for number, n in enumerate(scores))
    where, values = "status = $1", [status]
    if reason:
        where, values = f"{where} AND reason = $2", [status, reason]
    # files with the same bytes once: in a set with many links a group could show one image repeatedly
    same = "PARTITION BY coalesce(content_hash, sample_id)"
    query = f"""
        SELECT {names}, count(*) OVER ({same}) AS copies FROM samples WHERE {where}
        QUALIFY row_number() OVER ({same} ORDER BY sample_id) = 1 ORDER BY sample_id LIMIT {PER_GROUP}"""
    with manifest.connect() as connection:
        return connection.sql(query, params=values).to_arrow_table().to_pylist()


def _within_budget(
    manifest: Manifest, rows: Sequence[Sequence[Mapping[str, Any]]], spent: Spent
) -> dict[str, bytes | None]:
    """Return the JPEGs that fit into the budget, by sample_id, from all groups in turn; None without JPEG."""
    found = manifest.previews([row["sample_id"] for group in rows for row in group])
    result: dict[str, bytes | None] = {}
    for row in itertools.chain.from_iterable(itertools.zip_longest(*rows)):
        if row is None:
            continue
        jpeg = found.get(row["sample_id"])
        if not spent.fits(row, jpeg):
            break
        result[row["sample_id"]] = jpeg
    return result


def image_of(
    manifest: Manifest, row: Mapping[str, Any], deciding: Sequence[str], jpeg: bytes | None
) -> Image:
    """Return the tile of a row with the values of the columns `deciding`."""
    units = {column.name: column.unit for column in manifest.columns}
    values = [(name, with_unit(row[name], units[name])) for name in deciding]
    size = f"{row['width']} × {row['height']}" if row.get("width") and row.get("height") else ""
    caption = first_words(row.get("caption"))
    return Image(
        uri=row["uri"],
        alt=caption or PurePosixPath(row["uri"]).name,
        source=f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}" if jpeg else None,
        size=size,
        copies=row["copies"],
        values=values,
        caption=caption,
    )
