"""Write rows to Parquet parts. The same rows always give the same bytes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa

from uhr.base import parquet
from uhr.base.errors import UserError
from uhr.base.files import atomic, or_half_written, sha256_file
from uhr.base.locks.run_lock import NAME as LOCK
from uhr.base.run_folder import FolderLayout
from uhr.manifests.info import FILE, Part
from uhr.manifests.schema import SCHEMA_VERSION

SAMPLES, PREVIEWS, PIXELS, REPORT = "samples", "previews", "pixels", "report.html"

JOURNAL = "forget.json"
"""What `uhr manifest forget` is doing with the manifest; removed when it is done."""

GROUP_ROWS = 122_880
"""Rows per row group of samples: 60 vectors of DuckDB, whose scans are much slower with small groups."""

PART_ROWS = 8 * GROUP_ROWS
PREVIEW_GROUP_ROWS = 100
"""About 1.5 MB: to read one preview, its whole row group is read."""

PREVIEW_PART_ROWS = 200 * PREVIEW_GROUP_ROWS

PREVIEW_SCHEMA = pa.schema(
    [
        pa.field("sample_id", pa.string()),
        pa.field("jpeg", pa.binary(), metadata={"meaning": "small JPEG for people, never for a model"}),
        pa.field("width", pa.int32(), metadata={"unit": "px"}),
        pa.field("height", pa.int32(), metadata={"unit": "px"}),
    ]
)

_MARK = b"uhr_schema_version"
_OURS = or_half_written(r"part-\d{5}(-[0-9a-f]{16})?\.parquet")

LAYOUT = FolderLayout(
    "a manifest",
    (FILE, SAMPLES, PREVIEWS, PIXELS, REPORT, LOCK, JOURNAL),
    # a commit that was killed leaves samples without a manifest.json
    (FILE, SAMPLES),
    {SAMPLES: _OURS, PREVIEWS: _OURS, PIXELS: _OURS},
)


def write_parts(
    folder: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch], *, group_rows: int, part_rows: int
) -> Iterator[Part]:
    """Write the rows of `batches` to `folder/part-00000.parquet`, ...; yield each part when it is on disk.

    The result does not depend on the sizes of the batches: row groups have `group_rows` rows and files
    `part_rows`, a multiple of it. Without rows one empty part is written, to keep the schema.
    """
    assert part_rows % group_rows == 0
    schema = schema.with_metadata({_MARK: str(SCHEMA_VERSION).encode()})
    groups = parquet.regrouped(_as_declared(schema, batches), group_rows)
    group = next(groups, schema.empty_table())
    number = 0
    while group is not None:
        path = folder / f"part-{number:05d}.parquet"
        rows = 0
        with atomic(path) as temporary:
            # the keyword arguments are part of the bytes: change one, and every id changes
            with parquet.writer(temporary, schema, compression="zstd", write_page_index=True) as writer:
                while group is not None and rows < part_rows:
                    writer.write_table(group, row_group_size=group_rows)
                    rows += group.num_rows
                    group = next(groups, None)
            part = Part(
                path=f"{folder.name}/{path.name}",
                rows=rows,
                bytes=temporary.stat().st_size,
                sha256=sha256_file(temporary),
            )
        yield part
        number += 1


def write_samples(out: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> list[Part]:
    """Write the rows of a manifest to `out/samples`."""
    parts = write_parts(out / SAMPLES, schema, batches, group_rows=GROUP_ROWS, part_rows=PART_ROWS)
    return list(parts)


def write_previews(out: Path, batches: Iterable[pa.RecordBatch]) -> list[Part]:
    """Write the previews of a manifest to `out/previews`."""
    rows, of_part = PREVIEW_GROUP_ROWS, PREVIEW_PART_ROWS
    return list(write_parts(out / PREVIEWS, PREVIEW_SCHEMA, batches, group_rows=rows, part_rows=of_part))


def _as_declared(schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    for batch in batches:
        assert batch.schema.names == schema.names, f"columns {batch.schema.names}, declared {schema.names}"
        yield pa.Table.from_batches([pa.RecordBatch.from_arrays(batch.columns, schema=schema)])


def clear_leftovers(out: Path) -> None:
    """Remove the parts of a commit that was killed. Raises UserError if other files are in their place."""
    for temporary in out.glob(f".{FILE}.*.tmp"):
        temporary.unlink()
    for folder in (out / SAMPLES, out / PREVIEWS):
        if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
            raise UserError(f"{folder} is in the way of the manifest", "name another folder with --out")
        for file in sorted(folder.glob("*")) if folder.exists() else ():
            if not _is_leftover(file):
                raise UserError(f"{file} is in the way of the manifest", "name another folder with --out")
        for file in sorted(folder.glob("*")) if folder.exists() else ():
            file.unlink()


def _is_leftover(file: Path) -> bool:
    """By name, and by the mark in its schema: a user's own `part-00000.parquet` is never removed."""
    if not _OURS.fullmatch(file.name) or file.is_symlink() or not file.is_file():
        return False
    if file.name.endswith(".tmp"):
        return True
    try:
        return _MARK in (parquet.schema_of(file).metadata or {})
    except (pa.ArrowException, OSError):
        return False
