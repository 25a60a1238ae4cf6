"""Make the manifest of a run whose passes are finished.

The rows are never in memory as a whole. They are streamed from the parts or, if there is more than one pass
or a stage over the set, from a DuckDB table, which spills to disk.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from uhr.base import parquet
from uhr.base.config import installed_versions
from uhr.base.console import Advance, progress, warn
from uhr.base.files import or_half_written
from uhr.base.locks.run_lock import NAME as LOCK
from uhr.base.paths import path_text
from uhr.base.run_folder import FolderLayout, all_or_nothing
from uhr.curate.planning.plan import CurationPlan
from uhr.curate.rules import Rule
from uhr.curate.run.earlier import files as earlier_files
from uhr.curate.run.earlier import run_file
from uhr.curate.run.earlier.harvest import FETCHED, UNITS
from uhr.curate.run.execution import Finished
from uhr.curate.run.lanes import FOLDER as LANES
from uhr.curate.run.parts import has_previews, previews_of
from uhr.curate.run.table import SPILLED
from uhr.manifests import parts as part_files
from uhr.manifests.info import FILE, Part, RuleInfo
from uhr.manifests.manifest import Manifest
from uhr.manifests.parts import PREVIEW_SCHEMA
from uhr.manifests.selection.reference import of_parent
from uhr.manifests.selection.tombstones import merged
from uhr.manifests.sources.base import FetchedFiles, Listing, Source
from uhr.manifests.sources.stored import Stored, write_pixels
from uhr.manifests.writer import Provenance, advancing, write_manifest
from uhr.runtime import units as unit_files
from uhr.runtime.mirror import Mirror

LAYOUT = FolderLayout(
    "the manifest",
    (*part_files.LAYOUT.names, UNITS, FETCHED),
    (FILE, UNITS),
    {
        **part_files.LAYOUT.inside,
        UNITS: or_half_written(f"{LOCK}|{unit_files.FILES}|{run_file.NAME}|{earlier_files.NAMES}"),
        f"{UNITS}/{SPILLED}": re.compile(".*"),
        f"{UNITS}/{LANES}": or_half_written(r"[0-9a-f]{16}(\.json)?"),
    },
)

COMPUTING = ("numpy", "opencv-python-headless", "pillow", "numba")
"""The packages that compute columns: a manifest records their versions."""


def commit(
    out: Path,
    finished: Finished,
    listing: Listing,
    operation: dict[str, Any],
    parent: Manifest | None,
    advance: Advance,
) -> Manifest:
    """Write the manifest of a run whose tasks are all finished, and the original bytes that it is to store.

    operation: says what was done, as in `Provenance`. parent: the manifest that the rows come from, where the
    new one is by reference to it.
    """
    plan = finished.plan
    with all_or_nothing(out):
        pixels = _pixels(out, finished)
        others = list(earlier_files.origins(out / UNITS))
        reused = [info.origin for info in others if info.origin is not None]
        if reused:
            operation = {**operation, "reused": dict(sorted(finished.tally.reused.items()))}
        provenance = Provenance(
            root=listing.source.place,
            origin=_origin(finished, with_stores(listing.source, out / UNITS)),
            operation=operation,
            parents=[*listing.source.parents, *{each.id: each for each in reused}.values()],
            stages=plan.stage_infos(),
            rules=funnel(plan, finished),
            source={**listing.not_opened, "broken_sidecars": finished.tally.broken_sidecars},
            weights=plan.weight_hashes(),
            files=plan.file_hashes(),
            versions=installed_versions(*COMPUTING),
            attachments=pixels,
            redactions=merged([listing.source.redactions, *(info.redactions for info in others)]),
        )
        shown = plan.config.preview and any(each.pixel for each in plan.passes)
        previews = _previews(finished) if shown else None
        schema, rows = plan.schema, finished.batches()
        if parent is not None:
            schema, rows = of_parent(parent, schema, finished.batches, str(out))
        return write_manifest(out, schema, advancing(rows, advance), provenance, previews, parent)


def during_run(source: Source, out: Path, again: bool = False) -> Source:
    """Return the source for the time of the run in the folder `out`: what it fetches is there, or in the
    store of which the folder is a mirror. What unfinished runs have fetched is taken over, and what earlier
    runs have stored is read from their folders.

    again: whether what could not be fetched is tried again.
    """
    mirror = Mirror.of(out / UNITS)
    store = None if mirror is None else f"{mirror.address.removesuffix(UNITS)}{FETCHED}"
    earlier = dict.fromkeys(i.fetched for i in earlier_files.origins(out / UNITS) if i.fetched is not None)
    folder = path_text(out.absolute() / FETCHED)
    this_run = uuid.uuid4().hex if again else ""
    files = FetchedFiles(folder=folder, store=store, earlier=tuple(earlier), again=this_run)
    return with_stores(source.spooled(files), out / UNITS)


def with_stores(source: Source, units: Path) -> Source:
    """Return the source that reads what earlier runs have stored of its images from their folders, but for
    those that one of these runs does not read from there.

    units: the folder of the run's units, which names them.
    """
    stores = [store for info in earlier_files.origins(units) for store in info.stores]
    hidden = tuple(sorted({each for store in stores for each in store.hidden}))
    for path, parts in sorted({(store.path, store.parts) for store in stores}):
        source = Stored(path=path, parts=parts, source=source, hidden=hidden)
    return source


def _origin(finished: Finished, source: Source) -> dict[str, Any] | None:
    """Describe the source for the manifest: images whose bytes are not stored are not read from other
    manifests either.
    """
    hiding = finished.plan.hiding
    if not isinstance(source, Stored) or not hiding:
        return source.origin
    hidden: set[str] = set()
    for batch in finished.batches():
        for name in hiding:
            found = batch.filter(batch[name].is_valid())["content_hash"]
            hidden.update(found.drop_null().to_pylist())
    return source.without(hidden).origin if hidden else source.origin


def _pixels(out: Path, finished: Finished) -> list[Part]:
    plan = finished.plan
    if plan.config.pixels in (None, "none"):
        return []
    with progress("store images", None, "images") as advance:
        shown = _without(finished.batches(), plan.hiding)
        written = write_pixels(out, shown, finished.source, plan.config.pixels == "all", advance)
    if written.lost:
        warn(f"{written.lost:,} images changed after they were measured, and are not stored")
    return written.parts


def _without(batches: Iterator[pa.RecordBatch], hiding: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Leave out the rows that have a value in one of the columns `hiding`."""
    for batch in batches:
        for name in hiding:
            batch = batch.filter(batch[name].is_null())
        yield batch


def funnel(plan: CurationPlan, finished: Finished | None = None) -> list[RuleInfo]:
    """Return the rules with the number of rows that reached them and that they rejected, if there are any
    yet.
    """
    patches = any(each.of_patches for each in plan.passes)
    seen, counted, lost = (
        ({}, {}, {}) if finished is None else (finished.seen, finished.rejected, finished.lost)
    )

    def info(rule: Rule, rows: str) -> RuleInfo:
        name = rule.name
        rejected = lost if rule.channel else counted
        return RuleInfo.model_validate(
            {
                "name": name,
                "where": rule.condition.text,
                "seen": seen.get(name, 0),
                "rejected": rejected.get(name, 0),
                "null": "" if rule.null == "fail" else rule.null,
                "channel": rule.channel or "",
                "rows": rows if patches else "",
            }
        )

    evaluated = []
    for each in plan.passes:
        of_images = set() if each.expand is None else {rule.name for rule in each.expand.rules}
        for rule in each.rules:
            rows = "patches" if each.of_patches and rule.name not in of_images else "images"
            evaluated.append(info(rule, rows))
    idle = [RuleInfo(name=i.name, where=i.where, state="not evaluated", why=i.why) for i in plan.idle]
    return evaluated + idle


def _previews(finished: Finished) -> Iterator[pa.RecordBatch]:
    for number, units in enumerate(finished.units):
        for unit in range(units.count) if has_previews(finished.plan, number) else ():
            table = previews_of(parquet.read(units.part(unit)))
            yield from table.rename_columns(PREVIEW_SCHEMA.names).cast(PREVIEW_SCHEMA).to_batches()
