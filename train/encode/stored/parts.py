"""Parquet parts for random reads: small row groups, pages with checksums, no compression."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import pyarrow as pa

from uhr.base import parquet
from uhr.base.files import atomic, sha256_file
from uhr.manifests.info import Part

GROUP_ROWS = 64
GROUP_BYTES = 16 << 20
"""Limits of a row group. Reading the first row of one verifies the checksums of all of it."""

PART_BYTES = 2 << 30

KEYS = "text_keys"
"""What the footer of a part of texts has under this name: the keys of its rows (64 hex digits each), one
after the other. Without them a reader would have to read every row group for its few bytes."""

Put = Callable[[Path, Part], Part]
"""Is given each part when its file is finished, and returns the part as it is to be listed. It may move the
file elsewhere."""


def group_rows(row_bytes: int) -> int:
    """Rows per row group for rows of that size."""
    return max(1, min(GROUP_ROWS, GROUP_BYTES // row_bytes))


def keep(file: Path, part: Part) -> Part:
    """Leave a part where it was written: a `Put`."""
    return part


def write_parts(
    folder: Path,
    stem: str,
    tables: Iterable[pa.Table],
    group: int,
    facts: Mapping[str, str],
    put: Put = keep,
) -> list[Part]:
    """Write `folder/stem-00000.parquet`, ... in row groups of `group` rows.

    There is no compression, as latents and embeddings are noise to a compressor. Checksums find damaged pages
    when they are read. `uhr.base.parquet_pages` reads this form in place. `facts` go into each file's schema,
    for readers without `encoded.json`; the footers of texts have `KEYS` besides.
    """
    parts: list[Part] = []
    groups = parquet.regrouped(tables, group)
    following = next(groups, None)
    schema = following.schema.with_metadata(dict(facts)) if following is not None else None
    has_keys = following is not None and "text_key" in following.schema.names
    while following is not None:
        path = folder / f"{stem}-{len(parts):05d}.parquet"
        rows = size = 0
        keys: list[str] = []
        with atomic(path) as temporary:
            with parquet.writer(
                temporary,
                schema,
                compression="none",
                use_dictionary=False,
                write_statistics=False,
                write_page_checksum=True,
                data_page_version="1.0",
            ) as writer:
                while following is not None and size < PART_BYTES:
                    writer.write_table(following, row_group_size=group)
                    rows, size = rows + following.num_rows, size + following.nbytes
                    keys += following["text_key"].to_pylist() if has_keys else ()
                    following = next(groups, None)
                if keys:
                    writer.add_key_value_metadata({KEYS: "".join(keys)})
            part = Part(
                path=f"{folder.name}/{path.name}",
                rows=rows,
                bytes=temporary.stat().st_size,
                sha256=sha256_file(temporary),
            )
        parts.append(put(path, part))
    return parts
