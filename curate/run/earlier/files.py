"""The files with earlier results, in the folder of a run's units: one row per image or patch.

`earlier-NAME.arrow` has the columns of the rows, and by stage whether its values are there. Its metadata says
which stages these are. `earlier-NAME.index` finds a row by the digits of its `sample_id`, of its content and
of its parent. Both files are mapped into memory: a worker reads only the rows of its own units.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import Field

from uhr.base import parquet
from uhr.base.config import Config, canonical_json, fingerprint
from uhr.base.files import atomic
from uhr.curate.planning.plan import CurationPlan
from uhr.curate.planning.planned import PlannedStage
from uhr.curate.stages.frames.fetch import FETCH
from uhr.manifests.info import Parent, Redaction
from uhr.manifests.places import file_at
from uhr.runtime.mirror import Mirror

NAMES = r"earlier-[0-9a-z-]+\.(arrow|index)"
"""Regular expression of the names of these files."""

BATCH_ROWS = 1024
"""Rows per record batch: to read one row, its batch is searched."""

KEYS = ("sample_id", "content_hash", "parent_id")
"""The columns by which a row is found."""

FAULT = ("_fault_stage", "_fault_kind", "_fault_message")
"""Columns: which stage failed on the row, the kind of fault, and its message without the stage's name."""

PREVIEW_AT = "_preview"
"""Column: the number of the row's preview among those of the manifest."""


class StageKey(Config):
    """What the results of a stage depend on besides the image.

    label: the name of the stage in its pipeline. limits: a hash of the limits under which its faults are
    valid. columns: those that it writes. needs: those that it reads.
    """

    label: str
    fingerprint: str
    limits: str
    columns: tuple[str, ...]
    needs: tuple[str, ...] = ()

    @property
    def of_fetching(self) -> bool:
        """Whether its values say how the image was fetched."""
        return FETCH[0].name in self.columns


def keys_of(plan: CurationPlan) -> dict[tuple[str, bool], StageKey]:
    """Return the key of each stage on images or patches, by its label and whether it is about patches."""
    limits = limits_of(plan.resolved())
    found = {}
    for this in plan.passes:
        own: list[tuple[PlannedStage[Any], bool]] = [
            (planned, this.of_patches) for planned in (*this.frames, *this.batches)
        ]
        own += [] if this.expand is None else [(this.expand, False)]
        for planned, of_patches in own:
            found[planned.label, of_patches] = _key(planned, limits[planned.label])
    return found


def _key(planned: PlannedStage[Any], limits: str) -> StageKey:
    return StageKey(
        label=planned.label,
        fingerprint=planned.stage.fingerprint(),
        limits=limits,
        columns=tuple(column.name for column in planned.stage.adds),
        needs=tuple(planned.stage.needs),
    )


def limits_of(pipeline: Mapping[str, Any]) -> dict[str, str]:
    """Return a hash of the limits of each stage of a resolved pipeline, by its label."""
    outer = pipeline["stages"]
    return {
        entry.get("name") or entry["stage"]: fingerprint([pipeline["limits"], entry.get("resources") or {}])
        for entry in [*outer, *(inner for entry in outer for inner in entry.get("stages", ()))]
    }


class PixelParts(Config):
    """The original bytes of images in the folder or at the address `path` of a manifest, but for those whose
    hashes are `hidden`.
    """

    path: str
    parts: tuple[str, ...]
    hidden: tuple[str, ...] = ()


class EarlierInfo(Config):
    """What a file has: where its rows come from, and the stages of which it has results.

    stores: the original bytes of images. redactions: of the manifests that its rows come from. preview: the
    long side of the previews in px, 0 if it is not known; `previews` are the files that have them, with their
    numbers of rows, and `previews_at` is the manifest in which they have these names. fetched: the folder or
    address of what an unfinished run has fetched.
    """

    origin: Parent | None = None
    stages: tuple[StageKey, ...]
    stores: tuple[PixelParts, ...] = ()
    redactions: tuple[Redaction, ...] = ()
    preview: int = 0
    previews: tuple[tuple[str, int], ...] = Field(default=())
    previews_at: str | None = None
    fetched: str | None = None

    def has(self, number: int) -> str:
        """Return the column that says whether the values of stage `number` are there."""
        return f"_has_{number}"


def write_earlier(path: Path, info: EarlierInfo, schema: pa.Schema, tables: Iterable[pa.Table]) -> int:
    """Write the file and its index; return the number of rows. The index comes first: where a file is, it is
    complete. If the folder has a mirror, they are put there too.
    """
    index: list[tuple[np.ndarray, np.ndarray]] = []
    rows = 0
    marked = schema.with_metadata({b"earlier": canonical_json(info).encode()})
    with atomic(path) as temporary:
        with open(temporary, "wb") as file, pa.ipc.new_file(file, marked) as writer:
            for table in parquet.regrouped((table.select(schema.names) for table in tables), BATCH_ROWS):
                for name in KEYS:
                    index.append(_digits(table[name], rows))
                writer.write_table(table.cast(marked), max_chunksize=BATCH_ROWS)
                rows += table.num_rows
        keys = np.concatenate([key for key, _ in index]) if index else np.zeros(0, np.uint64)
        places = np.concatenate([place for _, place in index]) if index else np.zeros(0, np.int64)
        order = np.argsort(keys, kind="stable")
        batch = pa.record_batch([pa.array(keys[order]), pa.array(places[order])], names=["key", "row"])
        with (
            atomic(path.with_suffix(".index")) as temporary_index,
            open(temporary_index, "wb") as file,
            pa.ipc.new_file(file, batch.schema) as writer,
        ):
            writer.write_batch(batch)
    mirror = Mirror.of(path.parent)
    if mirror is not None:
        mirror.push(path.with_suffix(".index").name)
        mirror.push(path.name)
    return rows


def _digits(column: pa.ChunkedArray, start: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the first 16 hex digits of each value as numbers, and the numbers of their rows."""
    valid = np.flatnonzero(column.is_valid().to_numpy())
    texts = column.drop_null().to_pylist()
    keys = np.frombuffer(bytes.fromhex("".join(text[:16] for text in texts)), ">u8").astype(np.uint64)
    return keys, valid + start


class EarlierFile:
    """A file of earlier results. One per process."""

    def __init__(self, path: Path) -> None:
        self._reader = parquet.batches(path)
        index = parquet.batches(path.with_suffix(".index")).get_batch(0)
        self._keys = index.column(0).to_numpy()
        self._rows = index.column(1).to_numpy()
        self.info = info_of(path)

    def find(self, digits: str) -> list[int]:
        """Return the numbers of the rows that may have these digits in one of KEYS."""
        key = np.uint64(int(digits[:16], 16))
        low, high = np.searchsorted(self._keys, key, "left"), np.searchsorted(self._keys, key, "right")
        return sorted(set(self._rows[low:high].tolist()))

    def row(self, number: int) -> dict[str, Any]:
        """Return the columns of a row."""
        batch = self._reader.get_batch(number // BATCH_ROWS)
        return batch.slice(number % BATCH_ROWS, 1).to_pylist()[0]

    def preview(self, number: int) -> tuple[bytes, int, int] | None:
        """Return a preview of the manifest by its number: JPEG, width and height."""
        for file, rows in self._previews:
            if number < rows:
                return file.read(number)
            number -= rows
        return None

    @cached_property
    def _previews(self) -> list[tuple[_PreviewFile, int]]:
        return [(_PreviewFile(self._place(name)), rows) for name, rows in self.info.previews]

    def _place(self, name: str) -> Path:
        place = self.info.previews_at
        if place is None and self.info.origin is not None:
            place = self.info.origin.path
        return Path(name) if os.path.isabs(name) or place is None else file_at(place, name)


class _PreviewFile:
    """A part with previews; keeps the row group that was read last."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._held: tuple[int, pa.Table] | None = None

    @cached_property
    def _starts(self) -> list[int]:
        with parquet.opened(self._path) as file:
            sizes = [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)]
        return [0, *np.cumsum(sizes).tolist()]

    def read(self, number: int) -> tuple[bytes, int, int]:
        group = int(np.searchsorted(self._starts, number, "right")) - 1
        if self._held is None or self._held[0] != group:
            with parquet.opened(self._path) as file:
                self._held = group, file.read_row_group(group)
        row = self._held[1].slice(number - self._starts[group], 1).to_pylist()[0]
        return row["jpeg"], row["width"], row["height"]


def info_of(path: Path) -> EarlierInfo:
    """Read what a file has."""
    tree = json.loads(parquet.batches(path).schema.metadata[b"earlier"])
    return EarlierInfo.model_validate(tree)


def earlier_files(folder: Path) -> list[Path]:
    """Return the files with earlier results in the folder of a run's units, sorted by name."""
    return sorted(folder.glob("earlier-*.arrow"))


def origins(folder: Path) -> Iterator[EarlierInfo]:
    """Yield what the files in a folder have, of those that come from other runs."""
    for path in earlier_files(folder):
        info = info_of(path)
        if info.origin is not None:
            yield info
