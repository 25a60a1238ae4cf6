"""Take rows out of one manifest, with their previews, pixels and encoded data."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from uhr.base import parquet
from uhr.base.errors import UserError
from uhr.base.files import sha256_file, user_cache
from uhr.base.paths import in_store, text_path, text_place
from uhr.base.store import ObjectStore
from uhr.manifests import places
from uhr.manifests.forget.targets import Targets
from uhr.manifests.info import ManifestInfo, Parent, Part, Redaction, read_info
from uhr.manifests.manifest import Manifest
from uhr.manifests.parts import PIXELS, PREVIEW_GROUP_ROWS, REPORT
from uhr.manifests.selection.reference import POSITION, parent_of, placed
from uhr.manifests.sources.stored import GROUP_ROWS
from uhr.manifests.writer import Provenance, write_manifest

Encoded = Callable[[Path, Path, frozenset[str]], list[Part]]
"""A function of (folder, staging folder, sample ids) that writes the tensors of encoded data without these
samples into the staging folder, and returns its files."""

Sealed = Callable[[Path | str], None]
"""A function of the folder or address of encoded data that makes its own records agree with the redacted
manifest."""


@dataclass(frozen=True)
class Change:
    """What is, or would be, taken out of one manifest; `id` is empty in a dry run."""

    path: str
    before: str
    rows: int
    previews: int
    pixels: int
    id: str = ""


class Redactor:
    """Redacts the manifests of a chain, one after the other, parents before children.

    targets: what to take out. time, reason: for the records. encoded: as `Encoded` and `Sealed`.
    """

    def __init__(
        self, targets: Targets, time: str, reason: str, encoded: tuple[Encoded, Sealed] | None
    ) -> None:
        self._ids, self._hashes = frozenset(targets.ids), frozenset(targets.hashes)
        self._tombstones = sorted(targets.tombstones)
        self._time, self._reason = time, reason
        self._encoded = encoded
        self._pixels: dict[str, list[str]] = {}
        self.new_ids: dict[str, str] = {}

    def would(self, place: str) -> Change:
        """Count what `redact` would take out. Changes nothing.

        Raises UserError for encoded data in a store that have any of it.
        """
        manifest = Manifest.open(place)
        ids = [each for batch in manifest.rows(["sample_id"]) for each in batch.column(0).to_pylist()]
        mine = self._ids.intersection(ids)
        if mine and in_store(place) and manifest.info.operation.get("kind") == "encode":
            what = f"{place} is encoded data in a bucket, from which no samples can be taken out"
            raise UserError(what, "remove all objects below it, then repeat the command, then encode again")
        shown = mine and manifest.info.previews
        previews = sum(batch.num_rows for batch in manifest.preview_batches(mine)) if shown else 0
        pixels = sum(
            _count(places.file_at(place, part.path), self._hashes) for part in _pixel_parts(manifest.info)
        )
        return Change(place, manifest.id, len(mine), previews, pixels)

    def redact(self, place: str, change: Change) -> Change:
        """Take the rows out, if there are any. A manifest whose parent has changed names its new id."""
        info = places.info_at(place)
        moved = any(parent.id in self.new_ids for parent in info.parents)
        done = any(each.time == self._time for each in info.redactions)
        if not in_store(place):
            for leftover in text_path(place).glob(".forget-*"):  # of a command that was killed
                shutil.rmtree(leftover)
        if not done and (change.rows or change.pixels or moved):
            folder = None if in_store(place) else text_path(place)
            home = user_cache("forget") if folder is None else folder
            home.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=home, prefix=".forget-") as staged:
                new = self._written(Path(staged) / "new", place, info, change)
                places.replace(place, Path(staged) / "new", new)
            info = places.info_at(place)
        elif done:
            places.tidy(place)
        self._finish(place, info)
        for each in info.redactions:
            # parents come first: a child has the redactions of its parent too
            self.new_ids.setdefault(each.before, info.id)
        pixels = [part.path for part in _pixel_parts(info)]
        self._pixels[place] = pixels
        return Change(place, change.before, change.rows, change.previews, change.pixels, info.id)

    def _finish(self, place: str, info: ManifestInfo) -> None:
        """Make what is beside the manifest again: a report, and the records of encoded data."""
        if not info.redactions:
            return
        home = text_place(place)
        if info.operation.get("kind") == "encode" and self._encoded is not None:
            self._encoded[1](home)
        if in_store(place):
            if ObjectStore(place).exists(REPORT):
                from uhr.manifests.report import write_report

                write_report(Manifest.open(place), f"{place}/{REPORT}")
            return
        folder = text_path(place)
        if (folder / REPORT).is_file():
            from uhr.manifests.report import write_report

            write_report(Manifest.open(folder), folder / REPORT)

    def _written(self, staged: Path, place: str, info: ManifestInfo, change: Change) -> ManifestInfo:
        # a manifest by reference is not opened: the positions that it has are those of its parent before
        folder = places.local(place)
        manifest = Manifest(folder, info) if info.by_reference else Manifest.open(folder)
        parents = [Parent(id=self.new_ids.get(p.id, p.id), path=p.path, role=p.role) for p in info.parents]
        redaction = Redaction(
            time=self._time,
            rows=change.rows,
            reason=self._reason,
            before=info.id,
            tombstones=self._tombstones if change.rows else [],
        )
        provenance = Provenance.derived(
            manifest,
            info.operation,
            parents,
            root=info.root,
            origin=self._origin(info.origin),
            source=info.source,
            versions=info.versions,
            attachments=self._attachments(staged, place, info, change),
            redactions=[*info.redactions, redaction],
        )
        rows, parent = self._rows(manifest), None
        if info.by_reference:
            parent = parent_of(folder, info.model_copy(update={"parents": parents}), Manifest.open)
            rows = self._placed(manifest, rows, parent)
        previews = self._previews(manifest) if info.previews else None
        write_manifest(staged, manifest.schema, rows, provenance, previews, parent)
        made = read_info(staged)
        # when and by which software the rows were made is not the redaction's
        return made.model_copy(update={"created": info.created, "uhr": info.uhr})

    def _rows(self, manifest: Manifest) -> Iterator[pa.RecordBatch]:
        encoded = manifest.info.operation.get("kind") == "encode"
        removed = _removed(manifest, self._ids) if encoded else {}
        for batch in manifest.rows():
            kept = batch.filter(_others(batch.column("sample_id"), self._ids))
            yield _renumbered(kept, removed) if encoded else kept

    def _previews(self, manifest: Manifest) -> Iterator[pa.RecordBatch]:
        for part in manifest.info.previews:
            for batch in parquet.row_batches(manifest.path / part.path, PREVIEW_GROUP_ROWS):
                yield batch.filter(_others(batch.column("sample_id"), self._ids))

    def _placed(
        self, manifest: Manifest, rows: Iterator[pa.RecordBatch], parent: Manifest
    ) -> Iterator[pa.RecordBatch]:
        """Yield rows of a manifest by reference with their positions among the rows of the parent now."""
        place = manifest.schema.get_field_index(POSITION.name)
        for batch, positions in placed(parent, rows, manifest.name):
            yield batch.set_column(place, manifest.schema.field(place), pa.array(positions))

    def _attachments(self, staged: Path, place: str, info: ManifestInfo, change: Change) -> list[Part]:
        found = []
        tensors = [part for part in info.attachments if part not in _pixel_parts(info)]
        if tensors and change.rows:
            assert self._encoded is not None, "uhr.cli names it"
            found += self._encoded[0](text_path(place), staged, self._ids)
        else:
            found += tensors
        for part in _pixel_parts(info):
            file = places.file_at(place, part.path)
            if _count(file, self._hashes):
                rewritten = _without(file, staged / part.path, self._hashes)
                found += [rewritten] if rewritten is not None else []
            else:
                found.append(part)
        return found

    def _origin(self, tree: Any) -> Any:
        """Return the description of a source with the new names of stored pixels."""
        if not isinstance(tree, Mapping):
            return tree
        new = {key: self._origin(value) for key, value in tree.items()}
        if tree.get("kind") == "stored" and tree.get("path") in self._pixels:
            new["parts"] = self._pixels[tree["path"]]
        return new


def _among(column: pa.Array | pa.ChunkedArray, values: frozenset[str]) -> Any:
    """Return whether each is one of the values; bool [rows], never null."""
    known = pc.SetLookupOptions(pa.array(sorted(values), pa.string()))
    return pc.call_function("is_in", [column], known)


def _others(column: pa.Array | pa.ChunkedArray, values: frozenset[str]) -> Any:
    return pc.call_function("invert", [_among(column, values)])


def _count(file: Path, hashes: frozenset[str]) -> int:
    """Return how many stored images have one of these hashes."""
    column = parquet.read(file, ["content_hash"])["content_hash"]
    return int(pc.call_function("sum", [_among(column, hashes)]).as_py() or 0)


def _pixel_parts(info: ManifestInfo) -> list[Part]:
    return [part for part in info.attachments if part.path.startswith(f"{PIXELS}/") and _is_store(part)]


def _is_store(part: Part) -> bool:
    """Whether these are the files of images, by content; encoded pixels of a VAE's recipe are by bucket."""
    return part.path.rpartition("/")[2].startswith("part-")


def _without(file: Path, target: Path, hashes: frozenset[str]) -> Part | None:
    """Write stored images without those of these hashes; None if none is left."""
    rows = 0
    target.parent.mkdir(parents=True, exist_ok=True)
    with (
        parquet.opened(file) as old,
        parquet.writer(target, old.schema_arrow, compression="none", write_page_index=True) as writer,
    ):
        for number in range(old.num_row_groups):
            group = old.read_row_group(number)
            kept = group.filter(_others(group["content_hash"], hashes))
            if kept.num_rows:
                writer.write_table(kept, row_group_size=GROUP_ROWS)
                rows += kept.num_rows
    if not rows:
        target.unlink()
        return None
    name = f"{PIXELS}/{target.name}"
    return Part(path=name, rows=rows, bytes=target.stat().st_size, sha256=sha256_file(target))


def _removed(manifest: Manifest, ids: frozenset[str]) -> dict[str, np.ndarray]:
    """Return the numbers of the rows that are taken out of each bucket, rising."""
    rows = manifest.table(["sample_id", "bucket", "bucket_row"], where="bucket IS NOT NULL")
    rows = rows.filter(_among(rows["sample_id"], ids))
    found: dict[str, list[int]] = {}
    for bucket, number in zip(rows["bucket"].to_pylist(), rows["bucket_row"].to_pylist(), strict=True):
        found.setdefault(bucket, []).append(number)
    return {bucket: np.sort(numbers) for bucket, numbers in found.items()}


def _renumbered(batch: pa.RecordBatch, removed: Mapping[str, np.ndarray]) -> pa.RecordBatch:
    """Return the rows with the numbers that they have in their buckets now."""
    buckets, numbers = batch.column("bucket").to_pylist(), batch.column("bucket_row").to_pylist()
    new = [
        number - int(np.searchsorted(removed[bucket], number)) if bucket in removed else number
        for bucket, number in zip(buckets, numbers, strict=True)
    ]
    place = batch.schema.get_field_index("bucket_row")
    return batch.set_column(place, batch.schema.field(place), pa.array(new, pa.int64()))
