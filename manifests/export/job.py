"""Export a manifest: shards in order, each whole or not at all; a run that was killed resumes.

The files in OUT show its state: `.export/plan.json` and a record per finished shard while it runs;
`export.json`, written last, and no `.export` when it is finished.
"""

from __future__ import annotations

import collections
import contextlib
import datetime
import hashlib
import itertools
import json
import threading
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

import uhr
from uhr.base.config import fingerprint
from uhr.base.console import Advance
from uhr.base.errors import UserError, one_line
from uhr.base.files import json_bytes
from uhr.base.paths import in_store
from uhr.manifests.export.base import EXTENSIONS, Entry, ExportOptions, Format, Sample
from uhr.manifests.export.destination import LAYOUT, RECORD, WORK, Destination, destination_at
from uhr.manifests.export.plan import PlannedShard, plan_shards
from uhr.manifests.manifest import Manifest
from uhr.manifests.places import place_of
from uhr.manifests.sources.blobs import NO_LIMITS
from uhr.pixels.decode import decode, png
from uhr.pixels.headers import read_header
from uhr.pixels.types import Header, PixelFault

_PLAN = f"{WORK}/plan.json"

_READERS = 8
"""Threads that read image files ahead: reading waits for disks and servers."""

_PLAIN = ("JPEG", "PNG", "WEBP")


@dataclass(frozen=True)
class ExportRequest:
    """What to export: the kept rows of `parent`, as `format`, into the folder or prefix `out`."""

    parent: Manifest
    out: Path | str
    format: Format
    options: ExportOptions = field(default_factory=ExportOptions)

    def plan(self) -> dict[str, Any]:
        """Return what the result depends on."""
        return {"parent": self.parent.id, "format": self.format.name, **self.options.model_dump(mode="json")}


@dataclass(frozen=True)
class ExportResult:
    """The result: images written by split, and the images that could not be read, each with its fault."""

    path: str
    format: str
    images: dict[str, int]
    shards: int
    failed: list[dict[str, str]]
    finished_before: bool = False


def export(request: ExportRequest, advance: Advance = lambda n=1, note=None: None) -> ExportResult:
    """Write the export, or what is missing of it. Images that cannot be read are left out, and listed.

    Raises UserError as `plan_shards`, and if OUT contains something else or another export, is inside a
    manifest or the source, or cannot be written.
    """
    out = destination_at(request.out)
    out.check(request.parent.source, absolute=request.format.absolute)
    finished = _finished(request, out)
    if finished is not None:
        return finished
    plan = plan_shards(request.parent, request.format, request.options)
    with out.locked():
        finished = _finished(request, out)
        if finished is not None:  # another process was faster
            return finished
        _claim_plan(request, out)
        out.remove_half_written(request.format.paths(planned.shard) for planned in plan)
        missing = [planned for planned in plan if not out.has(_record(planned))]
        advance(sum(len(each.positions) for each in plan) - sum(len(each.positions) for each in missing))
        rows = _Rows(request.parent)
        # one reader for all shards: it is ahead while one is finished and the next begun
        with _reader(request, (row for planned in missing for row in rows(planned.positions))) as images:
            for planned in missing:
                _shard(request, out, planned, itertools.islice(images, len(planned.positions)), advance)
        result = _commit(request, out, plan)
    out.finish()
    return result


def _finished(request: ExportRequest, out: Destination) -> ExportResult | None:
    """Return the result of a finished export of the same; None if there is none."""
    record = _read_json(out, RECORD)
    if record is None:
        return None
    if record.get("plan") != fingerprint(request.plan()):
        raise UserError(f"--out {out.text} contains another export", f"name another {_kind(out)}")
    missing = next((name for name in record["files"] if not out.has(name)), None)
    if missing is not None:
        raise UserError(
            f"--out {out.text} contains an export without {missing}", f"name another {_kind(out)}"
        )
    return ExportResult(
        out.text, record["format"], record["images"], record["shards"], record["failed"], True
    )


def _kind(out: Destination) -> str:
    return "prefix" if in_store(out.text) else "folder"


def _claim_plan(request: ExportRequest, out: Destination) -> None:
    """Remember what is exported. Raises UserError if an unfinished export of something else is there."""
    plan = fingerprint(request.plan())
    found = _read_json(out, _PLAN)
    if found is not None:
        if found.get("plan") != plan:
            raise UserError(
                f"--out {out.text} contains an unfinished export of something else",
                f"name another {_kind(out)}, or repeat that command",
            )
        return
    if others := out.others():
        raise LAYOUT.not_ours(out.text, others[0])
    out.write(_PLAN, json_bytes({"plan": plan, **request.plan()}))


def _read_json(out: Destination, name: str) -> dict[str, Any] | None:
    """Return what a record of the export has; None if there is none."""
    try:
        data = out.read(name)
        value = None if data is None else json.loads(data)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{out.text}/{name} cannot be read ({one_line(error)})", f"export into a new {_kind(out)}"
        ) from None
    return value if isinstance(value, dict) or data is None else {}


def _record(planned: PlannedShard) -> str:
    """The name of the record of a shard."""
    return f"{WORK}/{planned.shard.name}.json"


class _Rows:
    """Reads rows by position; the row group that was read last is kept, since a shard begins where the one
    before ended.
    """

    def __init__(self, parent: Manifest) -> None:
        self._parent = parent
        self._groups = parent.row_groups()
        self._starts = np.array([group.start for group in self._groups])
        self._held: tuple[int, pa.Table] | None = None

    def __call__(self, positions: np.ndarray) -> Iterator[dict[str, Any]]:
        groups = np.searchsorted(self._starts, positions, side="right") - 1
        for group in np.unique(groups):
            table = self._table(int(group))
            here = positions[groups == group] - self._starts[group]
            yield from table.take(here).to_pylist()

    def _table(self, group: int) -> pa.Table:
        if self._held is None or self._held[0] != group:
            self._held = (group, self._parent.row_group(self._groups[group]))
        return self._held[1]


_Image = tuple[Mapping[str, Any], Future[tuple[bytes, str]]]
"""A row, and its image's file and extension (`_image`)."""


def _shard(
    request: ExportRequest,
    out: Destination,
    planned: PlannedShard,
    images: Iterable[_Image],
    advance: Advance,
) -> None:
    """Write one shard of these images, and its record."""
    failed: list[dict[str, str]] = []
    samples = _samples(request, images, failed, advance)
    with out.writing(request.format.paths(planned.shard)) as folder:
        entries = [vars(entry) for entry in request.format.write(folder, planned.shard, samples)]
    out.write(_record(planned), json_bytes({"entries": entries, "failed": failed}, indent=None))


@contextlib.contextmanager
def _reader(request: ExportRequest, rows: Iterable[Mapping[str, Any]]) -> Generator[Iterator[_Image]]:
    """Yield the images of the rows, which threads read ahead."""
    hashing = threading.Semaphore(max(1, pa.cpu_count() - 1))
    _keep_freed_memory()
    with ThreadPoolExecutor(_READERS) as pool:

        def images() -> Iterator[_Image]:
            waiting: collections.deque[_Image] = collections.deque()
            given = iter(rows)
            while True:
                while len(waiting) < 2 * _READERS and (row := next(given, None)) is not None:
                    waiting.append((row, pool.submit(_image, request, row, hashing)))
                if not waiting:
                    return
                yield waiting.popleft()

        yield images()


def _samples(
    request: ExportRequest, images: Iterable[_Image], failed: list[dict[str, str]], advance: Advance
) -> Iterator[Sample]:
    """Yield the samples of images; those that cannot be read go to `failed`."""
    captions = request.options.captions
    for row, image in images:
        try:
            data, extension = image.result()
        except PixelFault as fault:
            failed.append(
                {
                    "uri": row["uri"],
                    "sample_id": row["sample_id"],
                    "kind": fault.kind,
                    "error": fault.message,
                }
            )
        else:
            caption = next((row[name] for name in captions if row[name]), "")
            yield Sample(row, data, extension, caption)
        advance(1)


def _keep_freed_memory() -> None:
    """Have the C library keep the memory of images for the next ones. Otherwise each image is read into new
    pages of the system, which takes three times as long as to copy its bytes.
    """
    # glibc returns freed blocks to the system from a size on that a larger freed block raises (mallopt(3),
    # M_MMAP_THRESHOLD), to 32 MiB at most
    bytearray(31 << 20)


def _image(request: ExportRequest, row: Mapping[str, Any], hashing: threading.Semaphore) -> tuple[bytes, str]:
    """Return an image's file and its extension. Raises PixelFault if it cannot be read, or has changed.

    hashing: as many threads hash at a time, so that a core is left to the thread that writes.
    """
    blob = request.parent.source.open(row)
    try:
        data = blob.read(NO_LIMITS)
    except OSError as error:
        raise PixelFault("unreadable", one_line(error)) from None
    expected = row.get("content_hash")
    if expected is not None:
        with hashing:
            found = hashlib.sha256(data).hexdigest()
        if found != expected:
            raise PixelFault("changed", "the bytes are not those that were curated")
    header = read_header(data)
    box = row.get("box")
    if box is not None or (request.format.upright and not _is_plain(header)):
        if box is not None and not _inside(box, header):
            size = f"{header.width} x {header.height} px"
            raise PixelFault("changed", f"the patch {box} is not inside of the image of {size}")
        pixels = decode(data, header=header).rgb(None if box is None else tuple(box))
        return png(pixels), "png"
    return data, EXTENSIONS.get(header.format, header.format.lower())


def _inside(box: Sequence[int], header: Header) -> bool:
    """Whether a box (x, y, width, height) is a part of the image as displayed."""
    x, y, width, height = box
    inside = x + width <= header.width and y + height <= header.height
    return inside and min(x, y) >= 0 and min(width, height) > 0


def _is_plain(header: Header) -> bool:
    """Whether every reader shows the file as it is meant: upright, 8 bits, sRGB, opaque."""
    return (
        header.format in _PLAIN
        and header.orientation == 1
        and header.mode in ("RGB", "L")
        and header.bit_depth in (8, None)
        and not (header.has_alpha or header.has_icc or header.animated or header.colour)
    )


def _commit(request: ExportRequest, out: Destination, plan: list[PlannedShard]) -> ExportResult:
    """Write the indices, and `export.json` last."""
    images: collections.Counter[str] = collections.Counter()
    failed: list[dict[str, str]] = []
    files: list[str] = []
    for planned in plan:
        record = _read_json(out, _record(planned)) or {}
        images[planned.shard.split] += len(record["entries"])
        failed += record["failed"]
        path = request.format.paths(planned.shard)
        if record["entries"] or out.has(path):  # a store has no empty folders
            files.append(path)
    splits = {name: images[name] for name in sorted(images) if images[name]}
    records = (_read_json(out, _record(planned)) or {} for planned in plan)
    entries = (Entry(**entry) for record in records for entry in record["entries"])
    with out.writing(None) as folder:
        request.format.finish(folder, entries, splits, out.home)
    result = ExportResult(out.text, request.format.name, splits, len(plan), failed)
    record = {
        "plan": fingerprint(request.plan()),
        "format": request.format.name,
        "options": request.options.model_dump(mode="json"),
        "parent": {"id": request.parent.id, "path": place_of(request.parent.path)},
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "uhr": uhr.__version__,
        "images": splits,
        "shards": len(plan),
        "files": files,
        "failed": failed,
    }
    if not out.create(RECORD, json_bytes(record)):
        # another machine was faster: its export is this one, or it raises
        return _finished(request, out) or result
    return result
