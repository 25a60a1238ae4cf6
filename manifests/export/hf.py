"""Hugging Face `datasets`: Parquet with `Image` features, and a dataset card."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from uhr.base import parquet
from uhr.base.errors import UserError, one_line
from uhr.base.files import atomic
from uhr.base.paths import escaped, is_utf8
from uhr.manifests.export.base import Entry, Format, Sample, Shard
from uhr.manifests.lineage import lineage, summary, why_absent
from uhr.manifests.manifest import Manifest
from uhr.manifests.places import place_of
from uhr.manifests.schema import Column

IMAGE = pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())])
"""How `datasets.Image` stores an image."""

GROUP_ROWS = 100
"""Images per row group: a reader holds a row group in memory."""

_LEFT_OUT = ("status", "reason", "error")
"""Verdicts, which say nothing in a set of kept images."""


class HuggingFace(Format):
    """A Parquet file per shard in `data/`: the column `image`, `text` (the caption), and the row's columns.

    `datasets.load_dataset(OUT)` reads it, with one split for each of the manifest's. Columns of the manifest
    that are called `image` or `text` are left out.
    """

    name = "hf"
    split_names = r"\w{1,100}"  # `datasets` allows no more, and a `-` ends the split in the name of a file

    def __init__(self, parent: Manifest) -> None:
        super().__init__(parent)
        columns = [field for field in parent.schema if field.name not in (*_LEFT_OUT, "image", "text")]
        self._columns = [field.name for field in columns]
        features = {"info": {"features": {"image": {"_type": "Image"}}}}
        self._schema = pa.schema([pa.field("image", IMAGE), pa.field("text", pa.string()), *columns])
        try:
            features = _features(self._schema, features)
        except ValueError as error:
            raise UserError(
                f"--to hf: {parent.name} has a column that `datasets` cannot have ({one_line(error)})",
                "choose another format, such as webdataset",
            ) from None
        self._schema = self._schema.with_metadata({"huggingface": json.dumps(features)})

    def paths(self, shard: Shard) -> str:
        return f"data/{shard.name}-of-{shard.count:05d}.parquet"

    def write(self, out: Path, shard: Shard, samples: Iterable[Sample]) -> Iterator[Entry]:
        path = self.paths(shard)
        with (
            atomic(out / path) as temporary,
            parquet.writer(temporary, self._schema, compression="zstd") as writer,
        ):
            held: list[dict[str, Any]] = []
            for sample in samples:
                image = {"bytes": sample.data, "path": f"{sample.id}.{sample.extension}"}
                row = {name: sample.row.get(name) for name in self._columns}
                held.append({"image": image, "text": sample.caption, **row})
                yield Entry(path, shard.split, sample.caption, {"license": sample.row.get("license")})
                if len(held) == GROUP_ROWS:
                    writer.write_table(pa.Table.from_pylist(held, schema=self._schema))
                    held = []
            if held:
                writer.write_table(pa.Table.from_pylist(held, schema=self._schema))

    def finish(self, out: Path, entries: Iterable[Entry], splits: Mapping[str, int], home: Path) -> None:
        licences = Counter(entry.facts.get("license") for entry in entries)
        with atomic(out / "README.md") as temporary:
            temporary.write_text(_card(self.parent, self._columns, splits, licences), encoding="utf-8")


def _features(schema: pa.Schema, tree: dict[str, Any]) -> dict[str, Any]:
    """Add the plain columns to the features that `datasets` reads from the metadata."""
    from datasets import Features

    plain = Features.from_arrow_schema(schema.remove(schema.get_field_index("image")).remove_metadata())
    tree["info"]["features"] |= plain.to_dict()
    return tree


def _card(
    parent: Manifest, columns: list[str], splits: Mapping[str, int], licences: Counter[str | None]
) -> str:
    import yaml

    name = place_of(parent.path).rpartition("/")[2]
    total = sum(splits.values())
    files = [{"split": split, "path": f"data/{split}-*"} for split in splits]
    head = {
        "configs": [{"config_name": "default", "data_files": files}],
        "task_categories": ["text-to-image"],
        "size_categories": [_size(total)],
        "tags": ["uhr"],
    }
    known = {column.name: column for column in parent.columns}
    described = [_described(known[name]) for name in columns]
    chain = [
        f"- `{link['id'][:16]}`: {summary(link['operation'])}, {link['rows']:,} rows"
        if link["found"]
        else f"- `{link['id'][:16]}`: {link['role']}, {why_absent(link)}"
        for link in lineage(parent.path)
    ]
    counts = "\n".join(f"| {split} | {count:,} |" for split, count in splits.items())
    by_licence = "\n".join(
        f"| {_cell(licence or 'none recorded')} | {count:,} |" for licence, count in licences.most_common()
    )
    return f"""---
{yaml.safe_dump(head, sort_keys=False, allow_unicode=True)}---

# {name if is_utf8(name) else escaped(name)}

{total:,} images with their captions and measurements.

| split | images |
|---|---|
{counts}

## Licences of the images

As their sources state them. An image without a stated licence is not free to use.

| licence | images |
|---|---|
{by_licence}

## Columns

| column | meaning |
|---|---|
| `image` | the image file, as it was found; a patch is cut out, as PNG |
| `text` | the caption; empty if there is none |
{chr(10).join(described)}

## Lineage

Written from the manifest `{parent.id}`. The manifests that it was made from, newest first:

{chr(10).join(chain)}
"""


def _described(column: Column) -> str:
    facts = [column.meaning or "not described", column.unit, column.range]
    return f"| `{_cell(column.name)}` | {_cell('; '.join(fact for fact in facts if fact))} |"


def _cell(text: str) -> str:
    """Return a text as it can be in a cell of a Markdown table."""
    return one_line(text).replace("|", "\\|")


def _size(rows: int) -> str:
    """Return the hub's category of a number of rows."""
    bounds = [(1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M")]
    bounds += [(10_000_000, "1M<n<10M"), (100_000_000, "10M<n<100M")]
    return next((name for bound, name in bounds if rows < bound), "100M<n<1B")
