"""The items to encode: each caption once, and the images by bucket.

The code works on whole columns, because a manifest may have millions of rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from uhr.base.console import progress
from uhr.train.encode.buckets import Bucket, choose
from uhr.train.encode.config import ALPHA, EncodeConfig, text_key
from uhr.train.encode.work.images import IMAGE_ITEMS
from uhr.train.encode.work.texts import TEXT_ITEMS


def caption_items(
    rows: pa.Table, config: EncodeConfig, encoders: str, lengths: Mapping[str, int]
) -> pa.Table:
    """List each distinct caption with its key. The empty caption, which caption dropout needs, comes first;
    the others follow in the order of their first use.

    The columns `config.captions` are listed one after the other.
    """
    different = {"": None}
    for name in config.captions:
        different |= dict.fromkeys(rows[name].fill_null("").unique().to_pylist())
    keys = []
    with progress("list captions", len(different), "captions") as advance:
        for caption in different:
            keys.append(text_key(config, encoders, dict(lengths), caption))
            advance()
    return pa.table([keys, list(different)], schema=TEXT_ITEMS)


def image_items(rows: pa.Table, config: EncodeConfig, texts: pa.Table, buckets: Sequence[Bucket]) -> pa.Table:
    """List the images, sorted by bucket (if the manifest has their size), then by uri.

    All images of one uri (patches) are together, in the place of the one whose bucket comes first. texts: the
    result of `caption_items` for the same rows; without rows for pixels.
    """
    count = rows.num_rows
    columns = {name: rows[name] for name in ("sample_id", "uri", "box", "content_hash")}
    columns |= {name: _whole_side(rows, name) for name in ("width", "height")}
    files = config.mask not in (None, ALPHA)
    columns["mask"] = rows[config.mask] if files else pa.nulls(count, pa.string())
    columns["text_keys"] = _text_keys(rows, () if config.pixels else config.captions, texts)
    items = pa.table(columns).cast(IMAGE_ITEMS)
    if "source_name" in rows.schema.names:
        items = items.append_column("source_name", rows["source_name"])
    places = pa.array(_places(_sides(rows, "height", 3), _sides(rows, "width", 2), buckets), pa.int32())
    first = pa.table({"uri": items["uri"], "place": places}).group_by("uri").aggregate([("place", "min")])
    found = pc.call_function("index_in", [items["uri"]], pc.SetLookupOptions(first["uri"].combine_chunks()))
    items = items.append_column("place", places)
    items = items.append_column("first", first["place_min"].take(found))
    items = items.sort_by([(name, "ascending") for name in ("first", "uri", "place", "sample_id")])
    return items.drop_columns(["place", "first"])


def _text_keys(rows: pa.Table, captions: Sequence[str], texts: pa.Table) -> pa.Array:
    """The keys of each row's captions, list<string> [N]: null where the row has none or an empty one."""
    lookup = pc.SetLookupOptions(texts["caption"].combine_chunks())
    columns = []
    for name in captions:
        empty = pc.call_function("equal", [rows[name], pa.scalar("")])
        given = pc.call_function("if_else", [empty, pa.scalar(None, pa.string()), rows[name]])
        found = pc.call_function("index_in", [given], lookup)
        columns.append(texts["text_key"].take(found).to_pylist())
    keys = zip(*columns, strict=True) if columns else [()] * rows.num_rows
    return pa.array([list(row) for row in keys], pa.list_(pa.string()))


def _whole_side(rows: pa.Table, name: str) -> pa.ChunkedArray | pa.Array:
    """A side of each whole image in px; null for a box, or if the manifest does not have it."""
    if name not in rows.schema.names:
        return pa.nulls(rows.num_rows, pa.int32())
    whole = pc.call_function("is_null", [rows["box"]])
    return pc.call_function("if_else", [whole, rows[name].cast(pa.int32()), pa.scalar(None, pa.int32())])


def _sides(rows: pa.Table, name: str, place: int) -> np.ndarray:
    """A side in px, int64 [N]: of the box if there is one (its `place`-th number); 0 if unknown."""
    of_box = pc.call_function("list_element", [rows["box"], place]).cast(pa.int64())
    known = rows[name].cast(pa.int64()) if name in rows.schema.names else pa.scalar(None, pa.int64())
    return pc.call_function("coalesce", [of_box, known]).fill_null(0).to_numpy()


def _places(heights: np.ndarray, widths: np.ndarray, buckets: Sequence[Bucket]) -> np.ndarray:
    """The number of each image's bucket, int64 [N]; `len(buckets)` for an image of unknown size."""
    place = {bucket: number for number, bucket in enumerate(buckets)}
    sizes, inverse = np.unique((heights << 32) | widths, return_inverse=True)
    chosen = np.empty(len(sizes), np.int64)
    with progress("sort images into buckets", len(heights), "images") as advance:
        counts = np.bincount(inverse, minlength=len(sizes)).tolist()
        for number, size in enumerate(sizes.tolist()):
            height, width = size >> 32, size & 0xFFFFFFFF
            chosen[number] = place[choose(height, width, buckets)] if height and width else len(buckets)
            advance(counts[number])
    return chosen[inverse]


def sizes_of(rows: pa.Table, buckets: Sequence[Bucket]) -> list[tuple[int, int, Bucket | None, int]]:
    """The distinct sizes of the images: (height, width, bucket, number of images), px. An unknown size is
    (0, 0) and has no bucket.
    """
    packed = (_sides(rows, "height", 3) << 32) | _sides(rows, "width", 2)
    found = []
    for size, number in zip(*(each.tolist() for each in np.unique(packed, return_counts=True)), strict=True):
        height, width = size >> 32, size & 0xFFFFFFFF
        known = height and width
        bucket = choose(height, width, buckets) if known else None
        found.append((height if known else 0, width if known else 0, bucket, number))
    return found
