"""Slices by reference: sample ids and their positions in the parent, from which the rows are read."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pyarrow as pa

from uhr.base import parquet
from uhr.base.config import fingerprint
from uhr.base.errors import UserError
from uhr.base.files import user_cache, write_json
from uhr.manifests import places
from uhr.manifests.info import ManifestInfo, Part
from uhr.manifests.lineage import find_parent
from uhr.manifests.parts import write_previews, write_samples
from uhr.manifests.schema import COLUMNS

if TYPE_CHECKING:
    from uhr.manifests.manifest import Manifest

_RECORD = "rows.json"

POSITION = pa.field("position", pa.int64(), metadata={"meaning": "number of the row in the parent, from 0"})
_KEYS = ("sample_id", POSITION.name)


def reference_schema(added: Sequence[str]) -> pa.Schema:
    """Return the schema of the parts: identity and position, and the columns that the slice adds."""
    return pa.schema([COLUMNS["sample_id"].field(), POSITION, *(COLUMNS[name].field() for name in added)])


class Rows(NamedTuple):
    """The rows of a slice by reference: its `info` with the parts and previews that are in `folder`."""

    info: ManifestInfo
    folder: Path


def rows_of(path: Path, info: ManifestInfo, open_parent: Callable[[Path | str], Manifest]) -> Rows:
    """Return the rows that the parent of a slice has for it.

    They are written once for each content of the parent, in the user's cache, as `--materialise rows` would
    write them; those of a content that the parent had before are removed. Raises UserError if the parent is
    not found, or has other rows.
    """
    home = user_cache("slices") / info.id / fingerprint(list(_parents(path, info)))[:32]
    if not (home / _RECORD).is_file():
        home.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=home.parent, prefix="new-") as folder:
            rows = Path(folder) / "rows"
            _write(rows, path, info, parent_of(path, info, open_parent))
            # another process may have written the same meanwhile
            with contextlib.suppress(OSError):
                rows.rename(home)
        for other in home.parent.iterdir():
            if other != home and not other.name.startswith("new-"):
                shutil.rmtree(other, ignore_errors=True)
    made = json.loads((home / _RECORD).read_text(encoding="utf-8"))
    found = {name: [Part(**part) for part in made[name]] for name in ("parts", "previews")}
    return Rows(info.model_copy(update=found), home)


def _parents(path: Path | str, info: ManifestInfo) -> Iterator[str]:
    """Yield the ids that the manifests which the rows are read from have now."""
    while info.by_reference:
        path = _parent_place(path, info)
        info = places.info_at(path)
        yield info.id


def parent_of(path: Path, info: ManifestInfo, open_parent: Callable[[Path | str], Manifest]) -> Manifest:
    """Open the parent of a slice by reference. Raises UserError if it is not found."""
    return open_parent(_parent_place(path, info))


def _parent_place(path: Path | str, info: ManifestInfo) -> Path | str:
    parent = info.parents[0]
    place = find_parent(path, parent)
    if place is None:
        raise UserError(
            f"{places.place_of(path)} is a slice by reference, and its parent {parent.id[:16]} is not at "
            f"{parent.path}",
            "put the parent back there, or next to the slice",
        )
    return place


def _write(folder: Path, path: Path, info: ManifestInfo, parent: Manifest) -> None:
    own = pa.concat_tables([parquet.read(path / part.path) for part in info.parts])
    schema = with_columns(parent.schema, [own.schema.field(n) for n in own.schema.names if n not in _KEYS])
    rows = _rows(parent, own, schema, places.shown(path))
    made: dict[str, list[Part]] = {"parts": write_samples(folder, schema, rows), "previews": []}
    if parent.info.previews:
        made["previews"] = write_previews(folder, parent.preview_batches(own["sample_id"].to_pylist()))
    write_json(folder / _RECORD, {name: [part.model_dump() for part in made[name]] for name in made})


def with_columns(schema: pa.Schema, added: Sequence[pa.Field]) -> pa.Schema:
    """Return the schema with these columns last; one that it has is replaced."""
    names = {field.name for field in added}
    return pa.schema([*(field for field in schema if field.name not in names), *added])


def _rows(parent: Manifest, own: pa.Table, schema: pa.Schema, name: str) -> Iterator[pa.RecordBatch]:
    start = 0
    for batch in parent.take(own[POSITION.name].to_numpy()):
        here = own.slice(start, batch.num_rows).combine_chunks()
        if not here["sample_id"].equals(pa.chunked_array([batch.column("sample_id")])):
            raise _other_rows(parent, name)
        columns = [
            here[field.name].combine_chunks() if field.name in own.schema.names else batch.column(field.name)
            for field in schema
        ]
        yield pa.RecordBatch.from_arrays([_whole(column) for column in columns], schema=schema)
        start += batch.num_rows
    if start != own.num_rows:
        raise _other_rows(parent, name)


def _other_rows(parent: Manifest, name: str) -> UserError:
    fix = f"see 'uhr manifest verify {parent.name}'"
    if parent.info.redactions:
        fix = "make the slice anew: samples of its parent were forgotten since"
    return UserError(f"{name} refers to other rows than its parent {parent.name} has", fix)


def _whole(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    if isinstance(column, pa.ChunkedArray):
        return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks)
    return column
