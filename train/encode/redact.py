"""Take samples out of encoded data: their latents or pixels, and the embeddings that only they use."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from uhr.base import parquet
from uhr.base.config import parse_versioned, read_versioned
from uhr.base.files import json_bytes, write_json
from uhr.base.paths import in_store
from uhr.base.store import ObjectStore
from uhr.manifests.info import Part, read_info
from uhr.manifests.manifest import Manifest
from uhr.manifests.schema import FAILED
from uhr.train.encode.stored.encoded import (
    FILE,
    LATENTS,
    NOT_STATED,
    PIXELS,
    SCHEMA_VERSION,
    TEXTS,
    BucketInfo,
    EncodedInfo,
    LeftOut,
    LeftOutExample,
    LeftOutReason,
    ManifestRef,
)
from uhr.train.encode.stored.parts import write_parts

_EXAMPLES = 3


def redact(folder: Path, staged: Path, ids: frozenset[str]) -> list[Part]:
    """Write the tensors of the encoded data in `folder` without these samples into `staged`.

    Returns all files, in the order that `encode` gives them.
    """
    info = _read(folder)
    data = PIXELS if info.config.pixels else LATENTS
    used = {info.texts.empty_key}
    latents: list[Part] = []
    for bucket in info.buckets:

        def kept(bucket: BucketInfo = bucket) -> Iterator[pa.Table]:
            for table in _without(folder, bucket.parts, "sample_id", ids):
                used.update(key for keys in table["text_keys"].to_pylist() for key in keys or () if key)
                yield table

        facts = _facts(folder / bucket.parts[0].path)
        name = f"{bucket.width}x{bucket.height}"
        latents += write_parts(staged / data, name, kept(), bucket.group_rows, facts)
    texts: list[Part] = []
    if info.texts.parts:
        first = folder / info.texts.parts[0].path
        with parquet.opened(first) as file:
            group = file.metadata.row_group(0).num_rows
        rows = _without(folder, info.texts.parts, "text_key", used, keep=True)
        texts = write_parts(staged / TEXTS, "texts", rows, group, _facts(first))
    return [*texts, *latents]


def seal(place: Path | str) -> None:
    """Make `encoded.json` agree with the redacted manifest beside it; nothing if it does. In an object store
    no rows have been taken out: only what it names has changed.
    """
    if in_store(place):
        _seal_in_store(place)
    else:
        _seal_folder(Path(place))


def _seal_in_store(address: str) -> None:
    store, manifest = ObjectStore(address), Manifest.open(address)
    # not `read_encoded`: the parts of samples that it names have been replaced
    fix = "encode again into another prefix"
    info = parse_versioned(EncodedInfo, store.read(FILE) or b"", store.place(FILE), SCHEMA_VERSION, fix)
    new = {
        "id": manifest.id,
        "manifest": info.manifest.model_copy(update={"id": manifest.info.parents[0].id}),
        "samples": manifest.info.parts,
    }
    store.write(FILE, json_bytes(info.model_copy(update=new).model_dump(mode="json")))


def _seal_folder(folder: Path) -> None:
    info, manifest = _read(folder), Manifest.open(folder)
    if info.id == manifest.id:
        return
    by_name: dict[str, list[Part]] = {}
    for part in read_info(folder).attachments:
        by_name.setdefault(Path(part.path).name.partition("-")[0], []).append(part)
    buckets = []
    for bucket in info.buckets:
        parts = by_name.get(f"{bucket.width}x{bucket.height}", [])
        if parts:
            rows = sum(part.rows for part in parts)
            buckets.append(bucket.model_copy(update={"rows": rows, "parts": parts}))
    texts = by_name.get(TEXTS, [])
    rows = manifest.table(["license", "bucket"])
    encoded = rows.filter(pc.call_function("is_valid", [rows["bucket"]]))
    bare = 0
    for bucket in buckets:
        for part in bucket.parts:
            keys = parquet.read(folder / part.path, ["text_keys"])["text_keys"].to_pylist()
            bare += sum(bool(each) and not any(each) for each in keys)
    counts = {
        **info.counts,
        "selected": rows.num_rows,
        "encoded": encoded.num_rows,
        "left_out": rows.num_rows - encoded.num_rows,
        "without_caption": bare,
    }
    licences = Counter(each or NOT_STATED for each in encoded["license"].to_pylist())
    parent = manifest.info.parents[0]
    new = info.model_copy(
        update={
            "id": manifest.id,
            "manifest": ManifestRef(id=parent.id, path=info.manifest.path, counts=info.manifest.counts),
            "buckets": buckets,
            "texts": info.texts.model_copy(update={"rows": sum(p.rows for p in texts), "parts": texts}),
            "counts": counts,
            "licences": dict(sorted(licences.items(), key=lambda entry: (-entry[1], entry[0]))),
            "left_out": LeftOut(reasons=_reasons(manifest)),
            "samples": read_info(folder).parts,
        }
    )
    write_json(folder / FILE, new.model_dump(mode="json"))


def _read(folder: Path) -> EncodedInfo:
    return read_versioned(EncodedInfo, folder / FILE, SCHEMA_VERSION, "encode again into another folder")


def _facts(file: Path) -> dict[str, str]:
    metadata = parquet.schema_of(file).metadata or {}
    return {key.decode(): value.decode() for key, value in metadata.items() if not key.startswith(b"ARROW")}


def _without(
    folder: Path, parts: Sequence[Part], column: str, values: Collection[str], keep: bool = False
) -> Iterator[pa.Table]:
    """Yield the rows of which `column` is not among the values, or with `keep` is."""
    known = pc.SetLookupOptions(pa.array(sorted(values), pa.string()))
    for part in parts:
        with parquet.opened(folder / part.path) as file:
            for number in range(file.num_row_groups):
                rows = file.read_row_group(number)
                inside = pc.call_function("is_in", [rows[column]], known)
                yield rows.filter(inside if keep else pc.call_function("invert", [inside]))


def _reasons(manifest: Manifest) -> list[LeftOutReason]:
    failed = manifest.table(["uri", "reason", "error"], where=f"status = '{FAILED}'").to_pylist()
    by_reason: dict[str, list[LeftOutExample]] = {}
    for row in failed:
        by_reason.setdefault(row["reason"], []).append(LeftOutExample(uri=row["uri"], error=row["error"]))
    ordered = sorted(by_reason.items(), key=lambda entry: (-len(entry[1]), entry[0]))
    return [
        LeftOutReason(reason=reason, rows=len(found), examples=found[:_EXAMPLES]) for reason, found in ordered
    ]
