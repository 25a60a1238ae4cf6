"""Joins finished units to the files that training reads.

First the tensors by bucket and the captions, then the manifest of the rows, and `encoded.json` last.
"""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

import uhr
from uhr.base.console import Advance, progress
from uhr.base.errors import UserError
from uhr.base.files import write_json
from uhr.base.parquet import read as read_parquet
from uhr.base.run_folder import RunFolder, all_or_nothing
from uhr.manifests.places import place_of
from uhr.runtime.units import UnitPlan
from uhr.train.encode.buckets import Bucket
from uhr.train.encode.request import EncodeRequest
from uhr.train.encode.stored.encoded import (
    FILE,
    LATENTS,
    LAYOUT,
    MANIFEST,
    NOT_STATED,
    PIXELS,
    SAMPLES,
    SCHEMA_VERSION,
    TEXTS,
    BucketInfo,
    EncodedInfo,
    Geometry,
    LeftOut,
    LeftOutExample,
    LeftOutReason,
    ManifestRef,
    TextInfo,
    normalisation_fields,
)
from uhr.train.encode.stored.parts import Put, group_rows, keep, write_parts
from uhr.train.encode.stored.samples import write_samples
from uhr.train.encode.stored.tensors import BYTES, size_of
from uhr.train.encode.work.images import PLACED

ENCODED = pc.field("reason").is_null()
EXAMPLES = 3
"""How many left-out rows per reason `encoded.json` lists."""


@dataclass(frozen=True)
class Plans:
    """The finished units of a request. texts: None for pixels."""

    texts: UnitPlan | None
    images: UnitPlan


class NothingEncoded(UserError):
    """No image could be encoded."""


def commit(request: EncodeRequest, plans: Plans, put: Put = keep) -> EncodedInfo:
    """Merge finished units into parts, and give each part of tensors to `put` when it is written. The units
    are left. Raises NothingEncoded if no image could be encoded.
    """
    out, folder = request.out, RunFolder(request.out, LAYOUT)
    rows = finished_rows(plans.images)
    failed = rows.filter(~ENCODED).sort_by([("uri", "ascending"), ("sample_id", "ascending")])
    if failed.num_rows == rows.num_rows:
        raise _nothing_encoded(failed)
    # leftovers of a commit that was killed
    folder.clear(LATENTS, PIXELS, TEXTS, SAMPLES, MANIFEST)
    with all_or_nothing(out):
        return _write(request, plans, rows, _reasons(failed), put)


def _write(
    request: EncodeRequest, plans: Plans, rows: pa.Table, reasons: list[LeftOutReason], put: Put
) -> EncodedInfo:
    encoded = rows.filter(ENCODED)
    geometry, texts, reused_captions = commit_texts(request, plans.texts, put)
    buckets = commit_images(request, geometry, plans.images, rows, put)
    parts = [*texts.parts, *(part for bucket in buckets for part in bucket.parts)]
    manifest = write_samples(request, _numbered(rows), parts)
    sources = request.rows.filter(pc.field("sample_id").isin(encoded["sample_id"].combine_chunks()))
    info = EncodedInfo(
        schema_version=SCHEMA_VERSION,
        id=manifest.id,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        uhr=uhr.__version__,
        manifest=ManifestRef(
            id=request.manifest.id,
            path=place_of(request.manifest.path),
            counts=request.manifest.info.counts,
        ),
        model=request.identity,
        config=request.config,
        geometry=geometry,
        buckets=buckets,
        texts=texts,
        counts={
            "selected": request.rows.num_rows,
            "encoded": encoded.num_rows,
            "left_out": rows.num_rows - encoded.num_rows,
            "without_caption": _without_caption(encoded),
            "reused": sum(encoded["reused"].to_pylist()),
            "reused_captions": reused_captions,
        },
        licences=_count_licences(sources["license"]),
        left_out=LeftOut(reasons=reasons),
        samples=manifest.info.parts,
    )
    write_json(request.out / FILE, info.model_dump(mode="json"))
    return info


def _without_caption(encoded: pa.Table) -> int:
    """Number of rows whose keys of captions are all null; 0 for pixels, which have none."""
    return sum(bool(keys) and not any(keys) for keys in encoded["text_keys"].to_pylist())


def _numbered(rows: pa.Table) -> pa.Table:
    """The rows by sample_id with the columns that `encode` adds to the manifest, null where one failed."""
    seen: Counter[str] = Counter()
    buckets: list[str | None] = []
    numbers: list[int | None] = []
    for height, width, reason in zip(
        *(rows[n].to_pylist() for n in ("height", "width", "reason")), strict=True
    ):
        bucket = str(Bucket(height, width)) if reason is None else None
        buckets.append(bucket)
        numbers.append(None if bucket is None else seen[bucket])
        if bucket is not None:
            seen[bucket] += 1
    kept = rows.select(["sample_id", "reason", "error", *PLACED])
    kept = kept.append_column("bucket", pa.array(buckets, pa.string()))
    return kept.append_column("bucket_row", pa.array(numbers, pa.int64()))


def _count_licences(stated: pa.ChunkedArray) -> dict[str, int]:
    """Count the rows per licence, the most frequent one first."""
    counts: Counter[str] = Counter()
    for entry in stated.value_counts().to_pylist():
        counts[entry["values"] or NOT_STATED] += entry["counts"]
    return dict(sorted(counts.items(), key=lambda entry: (-entry[1], entry[0])))


def _nothing_encoded(without_latents: pa.Table) -> NothingEncoded:
    reasons = _reasons(without_latents)
    counts = ", ".join(f"{each.rows} {each.reason}" for each in reasons)
    first = without_latents.slice(0, 1).to_pylist()[0]
    what = f"none of the {without_latents.num_rows} images can be encoded ({counts})"
    return NothingEncoded(
        f"{what}; {first['uri']}: {first['error']}",
        "lower the resolution (--set resolution=N), or make a larger slice",
    )


def finished_rows(plan: UnitPlan) -> pa.Table:
    """The result of every image without its tensors, in the plan's order; `unit` is the unit that has
    them.
    """
    columns = ["sample_id", "uri", "text_keys", "height", "width", *PLACED, "reused", "reason", "error"]
    tables = []
    for unit in range(plan.count):
        table = read_parquet(plan.part(unit), columns)
        tables.append(table.append_column("unit", pa.repeat(pa.scalar(unit, pa.int32()), table.num_rows)))
    return pa.concat_tables(tables)


def _reasons(without_latents: pa.Table) -> list[LeftOutReason]:
    """Count the reasons, the most frequent one first."""
    found = []
    for entry in without_latents["reason"].value_counts().to_pylist():
        some = without_latents.filter(pc.field("reason") == entry["values"]).slice(0, EXAMPLES)
        examples = [LeftOutExample(**row) for row in some.select(["uri", "error"]).to_pylist()]
        found.append(LeftOutReason(reason=entry["values"], rows=entry["counts"], examples=examples))
    return sorted(found, key=lambda left: (-left.rows, left.reason))


def commit_texts(
    request: EncodeRequest, plan: UnitPlan | None, put: Put = keep
) -> tuple[Geometry, TextInfo, int]:
    """Write the embeddings of every caption. The first row gives the shapes of all.

    Returns also how many captions were copied from other folders.
    """
    from uhr.models.families.registry import FAMILIES

    if plan is None:
        return _geometry(request, {}), TextInfo(rows=0, truncated={}, empty_key="", parts=[]), 0
    names = FAMILIES[request.model.spec.family].text_tensors
    lengths, dtype = request.identity.text_lengths, request.config.text_dtype
    first = read_parquet(plan.part(0)).slice(0, 1).to_pylist()[0]
    sizes = {name: len(first[name]) for name in names}
    truncated, reused = Counter(dict.fromkeys(lengths, 0)), 0

    def tables(advance: Advance) -> Iterator[pa.Table]:
        nonlocal reused
        for unit in range(plan.count):
            table = read_parquet(plan.part(unit))
            reused += sum(table["reused"].to_pylist())
            for name, length in lengths.items():
                truncated[name] += sum(n > length for n in table[f"{name}_tokens"].to_pylist())
            yield table.drop_columns("reused")
            advance(table.num_rows)

    with progress("write captions", plan.rows, "captions") as advance:
        group, facts = group_rows(sum(sizes.values())), {", ".join(names): dtype}
        parts = write_parts(request.out / TEXTS, "texts", tables(advance), group, facts, put)
    info = TextInfo(rows=plan.rows, truncated=dict(truncated), empty_key=first["text_key"], parts=parts)
    return _geometry(request, {name: size // BYTES[dtype] for name, size in sizes.items()}), info, reused


def _geometry(request: EncodeRequest, numbers: Mapping[str, int]) -> Geometry:
    """`numbers`: the size of each text tensor of a caption, the sequence first."""
    from uhr.models.loading.model import load_normalisation

    shapes: dict[str, tuple[int, ...]] = {name: (number,) for name, number in numbers.items()}
    if numbers:
        sequence = next(iter(numbers))
        length = request.identity.text_lengths[sequence]
        shapes[sequence] = (length, numbers[sequence] // length)
    return Geometry(
        latent_channels=request.model.spec.latent_channels,
        vae_factor=request.factor,
        **normalisation_fields(load_normalisation(request.model)),
        **shapes,
    )


def commit_images(
    request: EncodeRequest, geometry: Geometry, plan: UnitPlan, rows: pa.Table, put: Put = keep
) -> list[BucketInfo]:
    """Write the tensors of every bucket that has images, one bucket after the other."""
    encoded, config = rows.filter(ENCODED), request.config
    stored = ["sample_id", "uri", "text_keys", "latent_key", *config.tensors]
    infos = []
    with progress("write images", encoded.num_rows, "images") as advance:
        for bucket in request.buckets:
            inside = encoded.filter(_in(bucket))
            if not inside.num_rows:
                continue
            row_bytes, facts = _stored_form(request, geometry, bucket)
            group = group_rows(row_bytes)
            tables = _bucket_rows(plan, sorted(set(inside["unit"].to_pylist())), bucket, stored, advance)
            folder = request.out / (PIXELS if config.pixels else LATENTS)
            parts = write_parts(folder, str(bucket), tables, group, facts, put)
            sizes = {"height": bucket.height, "width": bucket.width, "rows": inside.num_rows}
            infos.append(BucketInfo(**sizes, group_rows=group, parts=parts))
    return infos


def _stored_form(request: EncodeRequest, geometry: Geometry, bucket: Bucket) -> tuple[int, dict[str, str]]:
    """The bytes of a row of the bucket, and a description of its tensors for other readers."""
    config = request.config
    if config.pixels:
        area = bucket.height * bucket.width
        facts = {"pixels": f"sRGB {[bucket.height, bucket.width, 3]} (row, column, channel), uint8"}
        if config.mask is None:
            return 3 * area, facts
        return 4 * area, {**facts, "mask": _mask_fact((bucket.height, bucket.width))}
    shape = request.latent_shape(bucket)
    order = f"(channel, row, column), {config.dtype}"
    facts = {"mean, std": f"raw latents {list(shape)} {order}", "model latents": geometry.formula}
    size = 2 * size_of(shape, config.dtype)
    if config.guide is not None:
        guide = (shape[0], shape[1] // config.guide, shape[2] // config.guide)
        facts["guide_mean, guide_std"] = f"raw latents {list(guide)} {order}"
        size += 2 * size_of(guide, config.dtype)
    if config.mask is not None:
        facts["mask"] = _mask_fact(shape[1:])
        size += shape[1] * shape[2]
    return size, facts


def _mask_fact(shape: Sequence[int]) -> str:
    return f"{list(shape)} (row, column), uint8; 255 takes part in training"


def _bucket_rows(
    plan: UnitPlan, units: list[int], bucket: Bucket, columns: list[str], advance: Advance
) -> Iterator[pa.Table]:
    for unit in units:
        table = read_parquet(plan.part(unit), [*columns, "height", "width", "reason"])
        table = table.filter(_in(bucket) & ENCODED)
        yield table.select(columns)
        advance(table.num_rows)


def _in(bucket: Bucket) -> pc.Expression:
    return (pc.field("height") == bucket.height) & (pc.field("width") == bucket.width)
