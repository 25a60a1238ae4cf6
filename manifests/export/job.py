"""Export a manifest: shards in order, each whole or not at all; a run that was killed resumes.

The files in OUT show its state: `.export/plan.json` and a record per finished shard while it runs;
`export.json`, written last, and no `.export` when it is finished.
"""

from __future__ import annotations

import collections
import datetime
import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

import uhr
from uhr.base.config import fingerprint
from uhr.base.console import Advance
from uhr.base.errors import UserError, one_line
from uhr.base.files import saving, write_json
from uhr.base.paths import path_text
from uhr.base.run_folder import FolderLayout, RunFolder
from uhr.manifests.export.base import EXTENSIONS, Entry, ExportOptions, Format, Sample, Shard
from uhr.manifests.manifest import Manifest
from uhr.manifests.schema import KEPT
from uhr.manifests.sources.base import NO_LIMITS
from uhr.pixels.decode import decode, png
from uhr.pixels.headers import read_header
from uhr.pixels.types import PixelFault

RECORD, WORK = "export.json", ".export"
LAYOUT = FolderLayout("an export", (RECORD, WORK), (RECORD, WORK), allow_others=True)

SPLIT = "train"
"""The split of a manifest that has none."""

_READERS = 8
"""Threads that read image files ahead: reading waits for disks and servers."""

_PLAIN = ("JPEG", "PNG", "WEBP")
_GUESSED_BYTES = 4_000_000
"""Size of an image whose manifest has no `file_size`."""


@dataclass(frozen=True)
class ExportRequest:
    """What to export: the kept rows of `parent`, as `format`, into the folder `out`."""

    parent: Manifest
    out: Path
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


@dataclass(frozen=True)
class _Planned:
    """A shard, and the positions of its rows in the manifest."""

    shard: Shard
    positions: np.ndarray


def export(request: ExportRequest, advance: Advance = lambda n=1, note=None: None) -> ExportResult:
    """Write the export, or what is missing of it. Images that cannot be read are left out, and listed.

    Raises UserError if the manifest has no kept rows or lacks a caption column, if OUT contains something
    else or another export, or cannot be written.
    """
    _check(request)
    with saving(request.out, "free space there; the same command resumes the export"):
        folder = RunFolder(request.out, LAYOUT)
        finished = _finished(request)
        if finished is not None:
            return finished
        folder.claim()
        with folder.lock(WORK):
            _claim_plan(request)
            plan = _shards(request)
            rows = _Rows(request.parent)
            for planned in plan:
                _shard(request, planned, rows, advance)
            result = _commit(request, plan)
        shutil.rmtree(request.out / WORK, ignore_errors=True)
        return result


def _check(request: ExportRequest) -> None:
    parent = request.parent
    names = parent.schema.names
    for name in request.options.captions:
        if name not in names:
            texts = [f.name for f in parent.schema if pa.types.is_string(f.type) and "caption" in f.name]
            raise UserError(
                f"--captions {name}: {parent.path} has no such column",
                f"name one of {', '.join(texts)}" if texts else "name a column of texts",
            )
    if parent.info.counts[KEPT] == 0:
        raise UserError(f"{parent.path} has no kept rows", "export a manifest that has some")


def _finished(request: ExportRequest) -> ExportResult | None:
    """Return the result of a finished export of the same; None if there is none."""
    file = request.out / RECORD
    if not file.is_file():
        return None
    record = _read_json(file)
    if record.get("plan") != fingerprint(request.plan()):
        raise UserError(f"--out {request.out} contains another export", "name another folder")
    return ExportResult(
        str(request.out), record["format"], record["images"], record["shards"], record["failed"], True
    )


def _claim_plan(request: ExportRequest) -> None:
    """Remember what is exported. Raises UserError if an unfinished export of something else is there."""
    file, plan = request.out / WORK / "plan.json", fingerprint(request.plan())
    if file.is_file():
        if _read_json(file).get("plan") != plan:
            raise UserError(
                f"--out {request.out} contains an unfinished export of something else",
                "name another folder, or repeat that command",
            )
        return
    others = sorted(path.name for path in request.out.iterdir() if path.name != WORK)
    if others:
        raise LAYOUT.not_ours(request.out, others[0])
    write_json(file, {"plan": plan, **request.plan()})


def _read_json(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read ({one_line(error)})", "export into a new folder") from None
    return value if isinstance(value, dict) else {}


def _shards(request: ExportRequest) -> list[_Planned]:
    """Divide the kept rows into shards, in order: by split, by extension if the format needs it, and by
    bytes. The shards are sorted by their first row.
    """
    parent, options = request.parent, request.options
    names = parent.schema.names
    split = "split" if "split" in names else f"'{SPLIT}'"
    kind = "format" if request.format.one_extension and "format" in names else "''"
    if request.format.one_extension and "parent_id" in names:
        kind = f"CASE WHEN parent_id IS NULL THEN {kind} ELSE 'PNG' END"
    size = f"coalesce(file_size, {_GUESSED_BYTES})" if "file_size" in names else str(_GUESSED_BYTES)
    with parent.connect() as connection:
        rows = connection.sql(
            f"""SELECT position, split, split || '/' || kind AS kind, size FROM
                (SELECT row_number() OVER () - 1 AS position, status, coalesce({split}, '{SPLIT}') AS split,
                        coalesce({kind}, '') AS kind, {size} AS size FROM samples)
                WHERE status = '{KEPT}' ORDER BY position"""
        ).to_arrow_table()
    codes = rows["kind"].combine_chunks().dictionary_encode().indices.to_numpy()
    positions, sizes = rows["position"].to_numpy(), rows["size"].to_numpy()
    splits = rows["split"].combine_chunks().dictionary_encode()
    names_of, split_codes = splits.dictionary.to_pylist(), splits.indices.to_numpy()
    cuts: list[tuple[int, str, np.ndarray]] = []
    for code in np.unique(codes):
        (here,) = np.nonzero(codes == code)
        for part in _cut(sizes[here], options):
            chosen = here[part]
            cuts.append((int(positions[chosen[0]]), names_of[split_codes[chosen[0]]], positions[chosen]))
    cuts.sort(key=lambda cut: cut[0])
    counts = collections.Counter(name for _, name, _ in cuts)
    numbers: collections.Counter[str] = collections.Counter()
    plan = []
    for _, name, chosen in cuts:
        plan.append(_Planned(Shard(numbers[name], counts[name], name), chosen))
        numbers[name] += 1
    return plan


def _cut(sizes: np.ndarray, options: ExportOptions) -> Iterator[slice]:
    """Yield consecutive runs of at most `shard_rows` images and `shard_bytes`, each of at least one image."""
    start = 0
    ends = np.cumsum(sizes)
    while start < len(sizes):
        before = ends[start - 1] if start else 0
        stop = int(np.searchsorted(ends, before + options.shard_bytes, side="right"))
        stop = max(start + 1, min(stop, start + options.shard_rows))
        yield slice(start, stop)
        start = stop


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


def _shard(request: ExportRequest, planned: _Planned, rows: _Rows, advance: Advance) -> None:
    """Write one shard and its record, if it is not there."""
    record = request.out / WORK / f"{planned.shard.name}.json"
    count = len(planned.positions)
    if record.is_file():
        advance(count)
        return
    target = request.out / request.format.paths(planned.shard)
    if target.is_dir():  # written, and killed before its record was
        shutil.rmtree(target)
    failed: list[dict[str, str]] = []
    samples = _read(request, rows(planned.positions), failed, advance)
    entries = [asdict(entry) for entry in request.format.write(request.out, planned.shard, samples)]
    write_json(record, {"entries": entries, "failed": failed})


def _read(
    request: ExportRequest, rows: Iterable[Mapping[str, Any]], failed: list[dict[str, str]], advance: Advance
) -> Iterator[Sample]:
    """Yield the images of the rows, read ahead by threads; those that cannot be read go to `failed`."""
    captions = request.options.captions
    with ThreadPoolExecutor(_READERS) as pool:
        waiting: collections.deque[tuple[Mapping[str, Any], Future[tuple[bytes, str]]]] = collections.deque()
        given = iter(rows)
        while True:
            while len(waiting) < 2 * _READERS and (row := next(given, None)) is not None:
                waiting.append((row, pool.submit(_image, request, row)))
            if not waiting:
                return
            row, future = waiting.popleft()
            advance(1)
            try:
                data, extension = future.result()
            except PixelFault as fault:
                failed.append(
                    {
                        "uri": row["uri"],
                        "sample_id": row["sample_id"],
                        "kind": fault.kind,
                        "error": fault.message,
                    }
                )
                continue
            caption = next((row[name] for name in captions if row[name]), "")
            yield Sample(row, data, extension, caption)


def _image(request: ExportRequest, row: Mapping[str, Any]) -> tuple[bytes, str]:
    """Return an image's file and its extension. Raises PixelFault if it cannot be read, or has changed."""
    blob = request.parent.source.open(row)
    try:
        data = blob.read(NO_LIMITS)
    except OSError as error:
        raise PixelFault("unreadable", one_line(error)) from None
    expected = row.get("content_hash")
    if expected is not None and hashlib.sha256(data).hexdigest() != expected:
        raise PixelFault("changed", "the bytes are not those that were curated")
    header = read_header(data)
    box = row.get("box")
    if box is not None or (request.format.upright and not _is_plain(header)):
        pixels = decode(data, header=header).rgb(None if box is None else tuple(box))
        return png(pixels), "png"
    return data, EXTENSIONS.get(header.format, header.format.lower())


def _is_plain(header: Any) -> bool:
    """Whether every reader shows the file as it is meant: upright, 8 bits, sRGB, opaque."""
    return (
        header.format in _PLAIN
        and header.orientation == 1
        and header.mode in ("RGB", "L")
        and header.bit_depth in (8, None)
        and not (header.has_alpha or header.has_icc or header.animated or header.colour)
    )


def _entries(request: ExportRequest, plan: Iterable[_Planned]) -> Iterator[Entry]:
    for planned in plan:
        record = _read_json(request.out / WORK / f"{planned.shard.name}.json")
        yield from (Entry(**entry) for entry in record["entries"])


def _commit(request: ExportRequest, plan: list[_Planned]) -> ExportResult:
    """Write the indices, and `export.json` last."""
    images: collections.Counter[str] = collections.Counter()
    failed: list[dict[str, str]] = []
    for planned in plan:
        record = _read_json(request.out / WORK / f"{planned.shard.name}.json")
        images[planned.shard.split] += len(record["entries"])
        failed += record["failed"]
    splits = {name: images[name] for name in sorted(images) if images[name]}
    request.format.finish(request.out, _entries(request, plan), splits)
    result = ExportResult(str(request.out), request.format.name, splits, len(plan), failed)
    write_json(
        request.out / RECORD,
        {
            "plan": fingerprint(request.plan()),
            "format": request.format.name,
            "options": request.options.model_dump(mode="json"),
            "parent": {"id": request.parent.id, "path": path_text(request.parent.path.resolve())},
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "uhr": uhr.__version__,
            "images": splits,
            "shards": len(plan),
            "files": [request.format.paths(planned.shard) for planned in plan],
            "failed": failed,
        },
    )
    return result
