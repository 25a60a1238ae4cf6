"""Verification: whether a manifest still is what it says, and whether what it says can be true."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from uhr.base.console import Advance
from uhr.base.errors import UserError
from uhr.base.files import sha256_file
from uhr.manifests import parts as parquet
from uhr.manifests.checks import Fault, check_rows
from uhr.manifests.info import ManifestInfo, Part, content_id, read_info
from uhr.manifests.lineage import find_parent
from uhr.manifests.manifest import Manifest
from uhr.manifests.schema import BASE, COLUMNS
from uhr.manifests.uris import path_of


@dataclass(frozen=True)
class Verdict:
    """`faults` make a manifest unfit; `notes` are worth knowing (a parent that has moved)."""

    path: str
    id: str
    rows: int
    checks: list[str]
    faults: list[Fault]
    notes: list[str]


def verify(path: Path, *, pixels: bool = False, advance: Advance = lambda n=1, note=None: None) -> Verdict:
    """Check the manifest in the folder `path`; all faults, not only the first.

    With `pixels`, the source files are read and hashed again, which `advance` counts.
    """
    info = read_info(path)
    faults = list(_parts(path, info))
    checks = ["parts"]
    broken = {fault.where for fault in faults}
    if not broken.intersection(part.path for part in (*info.parts, *info.previews)):
        manifest = Manifest(path, info)
        checks += ["id", "schema", "identity", "order", "verdicts", "counts", "ranges", "previews"]
        faults += _id(manifest)
        faults += _schema(manifest)
        if not any(fault.check == "schema" for fault in faults):
            faults += check_rows(manifest)
        if pixels:
            checks.append("pixels")
            faults += _pixels(manifest, advance)
    notes = [
        f"{parent.role} {parent.id[:16]}: not found at {parent.path}"
        for parent in info.parents
        if find_parent(path, parent) is None
    ]
    return Verdict(str(path), info.id, info.counts["rows"], checks, faults, notes)


def _parts(path: Path, info: ManifestInfo) -> Iterator[Fault]:
    for part in (*info.parts, *info.previews):
        what = _part(path / part.path, part)
        if what:
            yield Fault("parts", part.path, what)
    known = {part.path for part in (*info.parts, *info.previews)}
    for folder in (parquet.SAMPLES, parquet.PREVIEWS):
        for file in sorted((path / folder).glob("*.parquet")):
            if f"{folder}/{file.name}" not in known:
                yield Fault("parts", f"{folder}/{file.name}", "belongs to no part that manifest.json names")


def _part(file: Path, part: Part) -> str:
    if not file.is_file():
        return "is missing"
    if sha256_file(file) != part.sha256:
        return "has another SHA-256 than manifest.json says: its bytes have changed"
    try:
        rows = pq.read_metadata(file).num_rows
    except pa.ArrowException as error:
        return f"is no Parquet file ({error})"
    return "" if rows == part.rows else f"has {rows} rows, and manifest.json says {part.rows}"


def _id(manifest: Manifest) -> Iterator[Fault]:
    info = manifest.info
    found = content_id(manifest.schema, info.operation, info.parents, info.parts, info.previews)
    if found != info.id:
        yield Fault(
            "id", "manifest.json", f"the content has id {found[:16]}..., and it says {info.id[:16]}..."
        )


def _schema(manifest: Manifest) -> Iterator[Fault]:
    for part in manifest.info.parts[1:]:
        if not pq.read_schema(manifest.path / part.path).equals(manifest.schema):
            yield Fault("schema", part.path, "has another schema than the first part")
    for column in BASE:
        if column.name not in manifest.schema.names:
            yield Fault("schema", column.name, "is missing")
    for field in manifest.schema:
        known = COLUMNS.get(field.name)
        if known is not None and not field.type.equals(known.type):
            yield Fault("schema", field.name, f"has type {field.type} instead of {known.type}")


def _pixels(manifest: Manifest, advance: Advance) -> Iterator[Fault]:
    """Each source file that a row has a hash of is read again."""
    with ThreadPoolExecutor() as pool:  # hashing releases the interpreter lock
        for batch in manifest.rows(columns=["uri", "content_hash"]):
            rows = batch.filter(batch.column("content_hash").is_valid()).to_pylist()
            advance(batch.num_rows - len(rows))
            answers = pool.map(lambda row: _file(manifest.root, row["uri"], row["content_hash"]), rows)
            for row, what in zip(rows, answers, strict=True):
                advance()
                if what:
                    yield Fault("pixels", row["uri"], what)


def _file(root: Path, uri: str, expected: str) -> str:
    try:
        file = path_of(root, uri)
        if not file.is_file():
            return f"is missing below {root}"
        return "" if sha256_file(file) == expected else "has other bytes than when it was curated"
    except (UserError, OSError) as error:
        return f"cannot be read ({error})"
