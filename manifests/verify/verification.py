"""Verify that a manifest is unchanged and consistent."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from uhr.base import parquet
from uhr.base.console import Advance, counted
from uhr.base.errors import UserError, one_line
from uhr.base.files import sha256_file
from uhr.manifests import parts as part_files
from uhr.manifests import places
from uhr.manifests.info import ManifestInfo, Part, content_id, read_info
from uhr.manifests.lineage import find_parent, look_for
from uhr.manifests.manifest import Manifest
from uhr.manifests.schema import BASE, COLUMNS, KEPT
from uhr.manifests.selection.reference import KEYS, POSITION, parent_of
from uhr.manifests.verify.checks import VerifyFault, check_rows, place_of_row
from uhr.pixels.types import PixelFault

if TYPE_CHECKING:
    from uhr.manifests.sources.base import Source


@dataclass(frozen=True)
class VerifyResult:
    """The result of a verification. `faults` make a manifest invalid; `notes` do not (a moved parent)."""

    path: str
    id: str
    rows: int
    checks: list[str]
    faults: list[VerifyFault]
    notes: list[str]


def verify(
    path: Path | str,
    *,
    pixels: bool = False,
    rules: Callable[[Manifest], Iterator[VerifyFault]] | None = None,
    advance: Advance = lambda n=1, note=None: None,
) -> VerifyResult:
    """Check the manifest in the folder `path`, or at an address, and return all faults.

    With `pixels`, the source files are hashed again, which `advance` counts, and the format and size of each
    image are compared with its row. `rules` compares the verdicts with the rules, and yields the faults
    (`uhr.curate.explain.check_verdicts`). Raises UserError if `manifest.json` cannot be read, or as `rules`
    does.
    """
    with places.as_stored(path) as folder:
        found = _verify(folder, pixels, rules, advance)
    if places.is_forgetting(path):
        found.notes.append("a 'forget' that began here is not finished: repeat its command")
    return found


def _verify(
    path: Path, pixels: bool, rules: Callable[[Manifest], Iterator[VerifyFault]] | None, advance: Advance
) -> VerifyResult:
    info = read_info(path)
    faults = list(_parts(path, info))
    checks = ["parts"]
    broken = {fault.where for fault in faults}
    if not broken.intersection(part.path for part in (*info.parts, *info.previews)):
        manifest = Manifest(path, info)
        checks += ["id", "schema"]
        faults += _id(manifest)
        if info.by_reference:
            checks.append("parent")
            found = list(_parent(path, info))
            faults += found
            if found:
                return _result(path, info, checks, faults)
            manifest = Manifest.open(path)
            found = list(_references(manifest))
            faults += found
            if found:
                return _result(path, info, checks, faults)
        faults += [*_schema(manifest), *_rules(path, info)]
        checks += ["identity", "order", "verdicts", "counts", "ranges", "coverage", "previews"]
        if not any(fault.check == "schema" for fault in faults):
            faults += check_rows(manifest)
            faults += () if rules is None else rules(manifest)
            checks += [] if rules is None else ["rules"]
        if pixels:
            checks.append("pixels")
            faults += _pixels(manifest, advance)
    return _result(path, info, checks, faults)


def _result(path: Path, info: ManifestInfo, checks: list[str], faults: list[VerifyFault]) -> VerifyResult:
    looked = [(parent, *look_for(path, parent)) for parent in info.parents]
    notes = [
        f"{parent.role} {parent.id[:16]}: not found at {parent.path}{f', which {why}' if why else ''}"
        for parent, place, why in looked
        if place is None
    ]
    notes += [
        f"redacted {each.time}: {counted(each.rows, 'row')} forgotten"
        + (f" ({each.reason})" if each.reason else "")
        for each in info.redactions
    ]
    return VerifyResult(places.shown(path), info.id, info.counts["rows"], checks, faults, notes)


def _parent(path: Path, info: ManifestInfo) -> Iterator[VerifyFault]:
    """Check that the parent of a manifest by reference has the bytes that its `manifest.json` names."""
    try:
        parent = parent_of(path, info, Manifest.open)
    except UserError as error:
        yield VerifyFault("parent", info.parents[0].path, one_line(error))
        return
    own = read_info(parent.path)
    for fault in _parts(parent.path, own):
        yield VerifyFault("parent", f"{parent.name}/{fault.where}", fault.what)
    if own.by_reference:
        yield from _parent(parent.path, own)


def _references(manifest: Manifest) -> Iterator[VerifyFault]:
    """Rows of a manifest by reference that are not those at their positions in the parent."""
    assert manifest.parent is not None
    last, rows = -1, manifest.parent.info.counts["rows"]
    count, named = 0, ""
    for group in manifest.row_groups():
        own = manifest.stored(group, [column.name for column in KEYS])
        positions = own[POSITION.name].to_numpy()
        before = np.concatenate([[last], positions[:-1]])
        wrong = (positions <= before) | (positions >= rows)
        if not wrong.any():
            theirs = list(manifest.parent.take(positions, columns=["sample_id"]))
            ids = pa.chunked_array([batch.column("sample_id") for batch in theirs], pa.string())
            wrong = ~np.asarray(pc.call_function("equal", [own["sample_id"], ids]).fill_null(False))
        if wrong.any():
            first = int(np.argmax(wrong))
            where = f"row {positions[first]} of the parent: {place_of_row(manifest, group.start + first)}"
            count, named = count + int(wrong.sum()), named or where
        last = positions[-1] if len(positions) else last
    if count:
        yield VerifyFault("identity", "sample_id", f"is not that of {named}", count)


def _parts(path: Path, info: ManifestInfo) -> Iterator[VerifyFault]:
    parts = places.all_parts(info)
    with ThreadPoolExecutor() as pool:  # hashing releases the interpreter lock
        for part, what in zip(
            parts, pool.map(lambda part: _part(path / part.path, part), parts), strict=True
        ):
            if what:
                yield VerifyFault("parts", part.path, what)
    known = {part.path for part in (*info.parts, *info.previews)}
    for folder in (part_files.SAMPLES, part_files.PREVIEWS):
        for file in sorted((path / folder).glob("*.parquet")):
            if f"{folder}/{file.name}" not in known:
                yield VerifyFault(
                    "parts", f"{folder}/{file.name}", "belongs to no part that manifest.json names"
                )


def _part(file: Path, part: Part) -> str:
    if not file.is_file():
        return "is missing"
    if sha256_file(file) != part.sha256:
        return "has another SHA-256 than manifest.json says: its bytes have changed"
    try:
        rows = parquet.row_count(file)
    except pa.ArrowException as error:
        return f"is not a Parquet file ({one_line(error)})"
    return "" if rows == part.rows else f"has {rows} rows, and manifest.json says {part.rows}"


def _id(manifest: Manifest) -> Iterator[VerifyFault]:
    info = manifest.info
    found = content_id(
        manifest.schema,
        info.operation,
        info.parents,
        info.parts,
        info.previews,
        info.attachments,
        info.schema_version,
    )
    if found != info.id:
        yield VerifyFault(
            "id", "manifest.json", f"the content has id {found[:16]}..., and it says {info.id[:16]}..."
        )


def _schema(manifest: Manifest) -> Iterator[VerifyFault]:
    for part in manifest.info.parts[1:]:
        if not parquet.schema_of(manifest.path / part.path).equals(manifest.stored_schema):
            yield VerifyFault("schema", part.path, "has another schema than the first part")
    for column in BASE:
        if column.name not in manifest.schema.names:
            yield VerifyFault("schema", column.name, "is missing")
    for field in manifest.schema:
        known = COLUMNS.get(field.name)
        if known is not None and not field.type.equals(known.type):
            yield VerifyFault("schema", field.name, f"has type {field.type} instead of {known.type}")


def _rules(path: Path, info: ManifestInfo) -> Iterator[VerifyFault]:
    """Rules that are not those of what was done, which the id covers: of the pipeline of a curation, or of
    the parent of a slice, where it is found.
    """
    then: dict[str, tuple[str, str]] = {}
    if info.operation.get("kind") == "slice":
        place = find_parent(path, info.parents[0]) if info.parents else None
        above = [] if place is None else places.info_at(place).rules
        then, of = {rule.name: (rule.where, rule.null or "fail") for rule in above}, "its parent"
    else:
        pipeline = info.operation.get("pipeline")
        named = pipeline.get("rules") if isinstance(pipeline, dict) else None
        for name, rule in named.items() if isinstance(named, dict) else ():
            known = rule if isinstance(rule, dict) else {"where": rule}
            then[name] = (str(known.get("where")), known.get("null") or "fail")
        of = "the pipeline"
    for rule in info.rules:
        where, null = then.get(rule.name, (rule.where, rule.null or "fail"))
        # a rule of patches or of a channel may have the name of another
        if rule.channel or rule.rows == "patches" or rule.state != "evaluated":
            continue
        if (where.split(), null) != (rule.where.split(), rule.null or "fail"):
            what = f"is {_condition(rule.where, rule.null)}, and {_condition(where, null)} in {of}"
            yield VerifyFault("verdicts", f"rule {rule.name}", what)


def _condition(where: str, null: str) -> str:
    return where if null in ("", "fail") else f"{where} (null: {null})"


def _pixels(manifest: Manifest, advance: Advance) -> Iterator[VerifyFault]:
    """Read again each source file whose content a row describes."""
    known = ("uri", "source_name", "status", "parent_id", "content_hash", *_OF_THE_FILE)
    names = [name for name in known if name in manifest.schema.names]
    with ThreadPoolExecutor() as pool:  # hashing releases the interpreter lock
        for batch in manifest.rows(columns=names):
            rows = [row for row in batch.to_pylist() if _describes_bytes(row)]
            advance(batch.num_rows - len(rows))
            results = pool.map(lambda row: _file(manifest.source, row), rows)
            for row, what in zip(rows, results, strict=True):
                advance()
                if what:
                    yield VerifyFault("pixels", row["uri"], what)


_OF_THE_FILE = ("format", "width", "height", "file_size")
"""Columns that follow from the bytes of a whole image, in any version of this software."""


def _describes_bytes(row: dict[str, Any]) -> bool:
    """Whether the row has a hash, or is kept by its header alone."""
    return row["content_hash"] is not None or (row["status"] == KEPT and bool(_of_the_file(row)))


def _of_the_file(row: dict[str, Any]) -> dict[str, Any]:
    """The facts of a file in its row. For a patch, the size is the size of its box."""
    if row["parent_id"] is not None:
        return {}
    return {name: row[name] for name in _OF_THE_FILE if row.get(name) is not None}


def _file(source: Source, row: dict[str, Any]) -> str:
    """Say how a row differs from its file; empty if it does not."""
    expected, stated = row["content_hash"], _of_the_file(row)
    try:
        names = ("uri", "source_name", "content_hash")
        blob = source.open({name: row.get(name) for name in names})
        if blob.path is not None and not os.path.isfile(blob.path):
            return f"is missing below {source.place}"
        if expected is not None and blob.sha256() != expected:
            return "has other bytes than when it was curated"
        if not stated:
            return ""
        header, size = blob.header(), blob.size
    except PixelFault as fault:
        return f"has no header that can be read ({fault.kind}: {fault.message})"
    except (UserError, OSError) as error:
        return f"cannot be read ({one_line(error)})"
    found = {"format": header.format, "width": header.width, "height": header.height}
    found["file_size"] = size
    wrong = [
        f"{name} {found[name]} instead of {value}" for name, value in stated.items() if found[name] != value
    ]
    return f"has {', '.join(wrong)}: its row was made from another file" if wrong else ""
