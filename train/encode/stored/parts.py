"""Parquet parts for random reads: small row groups, pages with checksums, no compression."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import pyarrow as pa

from uhr.base import parquet
from uhr.base.files import atomic, sha256_file
from uhr.manifests.info import Part

GROUP_ROWS = 64
GROUP_BYTES = 16 << 20
"""Limits of a row group. Reading the first row of one verifies the checksums of all of it."""

PART_BYTES = 2 << 30


def group_rows(row_bytes: int) -> int:
    """Rows per row group for rows of that size."""
    return max(1, min(GROUP_ROWS, GROUP_BYTES // row_bytes))


def write_parts(
    folder: Path, stem: str, tables: Iterable[pa.Table], group: int, facts: Mapping[str, str]
) -> list[Part]:
    """Write `folder/stem-00000.parquet`, ... in row groups of `group` rows.

    There is no compression, as latents and embeddings are noise to a compressor. Checksums find damaged pages
    when they are read. `uhr.base.parquet_pages` reads this form in place. `facts` go into each file's schema,
    for readers without `encoded.json`.
    """
    parts: list[Part] = []
    groups = parquet.regrouped(tables, group)
    following = next(groups, None)
    schema = following.schema.with_metadata(dict(facts)) if following is not None else None
    while following is not None:
        path = folder / f"{stem}-{len(parts):05d}.parquet"
        rows = size = 0
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
                    following = next(groups, None)
            parts.append(
                Part(
                    path=f"{folder.name}/{path.name}",
                    rows=rows,
                    bytes=temporary.stat().st_size,
                    sha256=sha256_file(temporary),
                )
            )
    return parts
