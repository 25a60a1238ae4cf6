"""Tombstones: hashes by which samples that were forgotten are recognised, so that they do not come back."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pyarrow as pa

from uhr.manifests.info import Redaction

COLUMNS = ("sample_id", "parent_id", "uri", "source_name", "content_hash", "source_url", "final_url")
"""The columns that a tombstone is made of, and compared with."""

FORGOTTEN = "forgotten"
"""The name of the count of a source's items that were left out because of tombstones."""


def tombstones_of(row: Mapping[str, Any]) -> Iterator[str]:
    """Yield what a tombstone remembers of a row: hashes (32 hex digits) of its id, its place in its source,
    the hash of its file, and its URLs.
    """
    uri = row.get("uri")
    where = (
        None if uri is None or row.get("parent_id") is not None else f"{row.get('source_name') or ''}:{uri}"
    )
    facts = (
        ("sample_id", row.get("sample_id")),
        ("uri", where),
        ("content_hash", row.get("content_hash")),
        ("url", row.get("source_url")),
        ("url", row.get("final_url")),
    )
    for kind, value in facts:
        if value:
            yield hashlib.sha256(f"{kind}:{value}".encode()).hexdigest()[:32]


def merged(redactions: Iterable[Iterable[Redaction]]) -> list[Redaction]:
    """Return the redactions of several manifests, each once, oldest first: those of what is made of them."""
    found = {(each.before, each.time): each for one in redactions for each in one}
    return sorted(found.values(), key=lambda each: each.time)


def all_tombstones(redactions: Iterable[Iterable[Redaction]]) -> frozenset[str]:
    """Return the tombstones of all redactions of several manifests."""
    return frozenset(each for one in redactions for redaction in one for each in redaction.tombstones)


def living(rows: pa.Table, tombstones: frozenset[str]) -> pa.BooleanArray:
    """Return whether each row, or item of a source, is not one that was forgotten; bool [rows]."""
    known = rows.select([name for name in COLUMNS if name in rows.schema.names])
    found = [tombstones.isdisjoint(tombstones_of(row)) for row in known.to_pylist()]
    return pa.array(found, pa.bool_())
