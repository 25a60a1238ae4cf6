"""Joins finished units to the files that training reads: parts by bucket, captions, then `encoded.json`."""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

import uhr
from uhr.base.config import fingerprint
from uhr.base.console import Advance, progress
from uhr.base.errors import UserError
from uhr.base.files import atomic, sha256_file, write_json
from uhr.base.parquet import read as read_parquet
from uhr.base.parquet import write as write_parquet
from uhr.base.paths import path_text
from uhr.base.run_folder import RunFolder, all_or_nothing
from uhr.manifests.info import Part
from uhr.manifests.manifest import Manifest
from uhr.models.zoo import Model
from uhr.runtime.units import UnitPlan
from uhr.train.encode.buckets import Bucket
from uhr.train.encode.config import EncodeConfig
from uhr.train.encode.encoded import (
    FILE,
    LATENTS,
    LAYOUT,
    LEFT_OUT,
    NOT_STATED,
    SCHEMA_VERSION,
    TEXTS,
    UNITS,
    BucketInfo,
    EncodedInfo,
    Geometry,
    LeftOut,
    LeftOutExample,
    LeftOutReason,
    ManifestRef,
    ModelInfo,
    TextInfo,
    normalisation_fields,
)
from uhr.train.encode.parts import group_rows, write_parts
from uhr.train.encode.tensors import BYTES, size_of

ENCODED = pc.field("reason").is_null()
EXAMPLES = 3
"""How many left-out rows per reason `encoded.json` lists."""

STORED = ("sample_id", "uri", "text_key", "latent_key", "mean", "std")


@dataclass(frozen=True)
class EncodeRequest:
    """What to encode, with which model and configuration.

    config: without None values. rows: the selected rows of the manifest.
    """

    out: Path
    manifest: Manifest
    model: Model
    identity: ModelInfo
    config: EncodeConfig
    buckets: tuple[Bucket, ...]
    rows: pa.Table


def commit(request: EncodeRequest, texts: UnitPlan, images: UnitPlan) -> EncodedInfo:
    """Merge finished units into parts. Raises UserError if no image could be encoded."""
    out, folder = request.out, RunFolder(request.out, LAYOUT)
    rows = finished_rows(images)
    without_latents = left_out(rows)
    if without_latents.num_rows == rows.num_rows:
        folder.clear(UNITS)
        raise _nothing_encoded(without_latents)
    # leftovers of a commit that was killed
    folder.clear(LATENTS, TEXTS)
    with all_or_nothing(out):
        info = _write(request, texts, images, rows, without_latents)
    folder.clear(UNITS)
    return info


def _write(
    request: EncodeRequest, texts: UnitPlan, images: UnitPlan, rows: pa.Table, without_latents: pa.Table
) -> EncodedInfo:
    out, config = request.out, request.config
    geometry, text_info = commit_texts(request, texts)
    buckets = commit_images(request, geometry, images, rows)
    encoded = rows.filter(ENCODED)["sample_id"]
    sources = request.rows.filter(pc.field("sample_id").isin(encoded.combine_chunks()))
    without_caption = sources.filter(pc.field(config.caption).is_null() | (pc.field(config.caption) == ""))
    parts = [part for bucket in buckets for part in bucket.parts] + text_info.parts
    info = EncodedInfo(
        schema_version=SCHEMA_VERSION,
        id=fingerprint(
            {
                "schema_version": SCHEMA_VERSION,
                "manifest": request.manifest.id,
                "model": request.identity.hashes,
                "config": config.model_dump(mode="json"),
                "parts": [[part.rows, part.sha256] for part in parts],
            }
        ),
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        uhr=uhr.__version__,
        manifest=ManifestRef(
            id=request.manifest.id, path=path_text(request.manifest.path), counts=request.manifest.info.counts
        ),
        model=request.identity,
        config=config,
        geometry=geometry,
        buckets=buckets,
        texts=text_info,
        counts={
            "selected": request.rows.num_rows,
            "encoded": len(encoded),
            "left_out": without_latents.num_rows,
            "without_caption": without_caption.num_rows,
        },
        licences=_count_licences(sources["license"]),
        left_out=write_left_out(out, without_latents),
    )
    write_json(out / FILE, info.model_dump(mode="json"))
    return info


def _count_licences(stated: pa.ChunkedArray) -> dict[str, int]:
    """Count the rows per licence, the most frequent one first."""
    counts: Counter[str] = Counter()
    for entry in stated.value_counts().to_pylist():
        counts[entry["values"] or NOT_STATED] += entry["counts"]
    return dict(sorted(counts.items(), key=lambda entry: (-entry[1], entry[0])))


def _nothing_encoded(without_latents: pa.Table) -> UserError:
    reasons = _reasons(without_latents)
    counts = ", ".join(f"{each.rows} {each.reason}" for each in reasons)
    first = without_latents.slice(0, 1).to_pylist()[0]
    what = f"none of the {without_latents.num_rows} images can be encoded ({counts})"
    return UserError(
        f"{what}; {first['uri']}: {first['error']}",
        "lower the resolution (--set resolution=N), or make a larger slice",
    )


def finished_rows(plan: UnitPlan) -> pa.Table:
    """The result of every image without its tensors, in the plan's order; `unit` is the unit that has
    them.
    """
    columns = ["sample_id", "uri", "height", "width", "reason", "error"]
    tables = []
    for unit in range(plan.count):
        table = read_parquet(plan.part(unit), columns)
        tables.append(table.append_column("unit", pa.repeat(pa.scalar(unit, pa.int32()), table.num_rows)))
    return pa.concat_tables(tables)


def left_out(rows: pa.Table) -> pa.Table:
    """The rows without latents, sorted by uri."""
    without_latents = rows.filter(~ENCODED).sort_by([("uri", "ascending"), ("sample_id", "ascending")])
    return without_latents.select(["sample_id", "uri", "reason", "error"])


def write_left_out(out: Path, without_latents: pa.Table) -> LeftOut:
    """Write the rows without latents to a file of their own, so that `encoded.json` stays small."""
    with atomic(out / LEFT_OUT) as temporary:
        write_parquet(temporary, without_latents, compression="zstd")
        part = Part(
            path=LEFT_OUT,
            rows=without_latents.num_rows,
            bytes=temporary.stat().st_size,
            sha256=sha256_file(temporary),
        )
    return LeftOut(part=part, reasons=_reasons(without_latents))


def _reasons(without_latents: pa.Table) -> list[LeftOutReason]:
    """Count the reasons, the most frequent one first."""
    found = []
    for entry in without_latents["reason"].value_counts().to_pylist():
        some = without_latents.filter(pc.field("reason") == entry["values"]).slice(0, EXAMPLES)
        examples = [LeftOutExample(**row) for row in some.select(["uri", "error"]).to_pylist()]
        found.append(LeftOutReason(reason=entry["values"], rows=entry["counts"], examples=examples))
    return sorted(found, key=lambda left: (-left.rows, left.reason))


def commit_texts(request: EncodeRequest, plan: UnitPlan) -> tuple[Geometry, TextInfo]:
    """Write the embeddings of every caption. The first row gives the shapes of all."""
    from uhr.models.families.registry import FAMILIES

    names = FAMILIES[request.model.spec.family].text_tensors
    lengths, dtype = request.identity.text_lengths, request.config.text_dtype
    first = read_parquet(plan.part(0)).slice(0, 1).to_pylist()[0]
    sizes = {name: len(first[name]) for name in names}
    truncated = Counter(dict.fromkeys(lengths, 0))

    def tables(advance: Advance) -> Iterator[pa.Table]:
        for unit in range(plan.count):
            table = read_parquet(plan.part(unit))
            for name, length in lengths.items():
                truncated[name] += sum(n > length for n in table[f"{name}_tokens"].to_pylist())
            yield table
            advance(table.num_rows)

    with progress("write captions", plan.rows, "captions") as advance:
        group, facts = group_rows(sum(sizes.values())), {", ".join(names): dtype}
        parts = write_parts(request.out / TEXTS, "texts", tables(advance), group, facts)
    info = TextInfo(rows=plan.rows, truncated=dict(truncated), empty_key=first["text_key"], parts=parts)
    return _geometry(request, {name: size // BYTES[dtype] for name, size in sizes.items()}), info


def _geometry(request: EncodeRequest, numbers: Mapping[str, int]) -> Geometry:
    """`numbers`: the size of each text tensor of a caption, the sequence first."""
    from uhr.models.loading.model import load_normalisation

    spec, (sequence, *others) = request.model.spec, numbers
    length = request.identity.text_lengths[sequence]
    shapes = {sequence: (length, numbers[sequence] // length)} | {name: (numbers[name],) for name in others}
    return Geometry(
        latent_channels=spec.latent_channels,
        vae_factor=spec.vae_factor,
        **normalisation_fields(load_normalisation(request.model)),
        **shapes,
    )


def commit_images(
    request: EncodeRequest, geometry: Geometry, plan: UnitPlan, rows: pa.Table
) -> list[BucketInfo]:
    """Write the latents of every bucket that has images, one bucket after the other."""
    encoded = rows.filter(ENCODED)
    factor = geometry.vae_factor
    infos = []
    with progress("write latents", encoded.num_rows, "images") as advance:
        for bucket in request.buckets:
            inside = encoded.filter(_in(bucket))
            if not inside.num_rows:
                continue
            shape = (geometry.latent_channels, bucket.height // factor, bucket.width // factor)
            group = group_rows(2 * size_of(shape, request.config.dtype))
            tables = _bucket_rows(plan, sorted(set(inside["unit"].to_pylist())), bucket, advance)
            facts = {
                "mean, std": f"raw latents {list(shape)} (channel, row, column), {request.config.dtype}",
                "model latents": geometry.formula,
            }
            parts = write_parts(request.out / LATENTS, str(bucket), tables, group, facts)
            sizes = {"height": bucket.height, "width": bucket.width, "rows": inside.num_rows}
            infos.append(BucketInfo(**sizes, group_rows=group, parts=parts))
    return infos


def _bucket_rows(plan: UnitPlan, units: list[int], bucket: Bucket, advance: Advance) -> Iterator[pa.Table]:
    for unit in units:
        table = read_parquet(plan.part(unit))
        table = table.filter(_in(bucket) & ENCODED)
        yield table.select(list(STORED))
        advance(table.num_rows)


def _in(bucket: Bucket) -> pc.Expression:
    return (pc.field("height") == bucket.height) & (pc.field("width") == bucket.width)
