"""Collect earlier results: of a manifest, or of the parts of an unfinished run."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from uhr.base import parquet
from uhr.base.config import fingerprint
from uhr.base.console import progress
from uhr.base.errors import UserError
from uhr.base.paths import in_store, path_text
from uhr.base.store import ObjectStore
from uhr.curate.faults import CHANGED, DOWNLOAD, NO_VALUE, RULE_ERROR, TRANSIENT, UNAVAILABLE
from uhr.curate.run.earlier.files import (
    FAULT,
    KEYS,
    PREVIEW_AT,
    EarlierInfo,
    PixelParts,
    StageKey,
    limits_of,
    origins,
    write_earlier,
)
from uhr.curate.run.earlier.run_file import NAME as RUN_FILE
from uhr.curate.run.earlier.run_file import RunFile
from uhr.curate.run.rows import PREVIEW, RAN, UNDONE
from uhr.curate.stages.frames.decode import DecodeStage
from uhr.manifests import places
from uhr.manifests.info import UNFINISHED, Parent, Redaction
from uhr.manifests.manifest import Manifest
from uhr.manifests.schema import CHILD_COUNT, FAILED, KEPT, REJECTED, VERDICT
from uhr.manifests.selection.tombstones import merged
from uhr.manifests.sources.stored import Stored
from uhr.runtime.mirror import Mirror
from uhr.runtime.units import UnitPlan

UNITS = places.UNITS

FETCHED = "fetched"
"""The folder in OUT with what a source fetched during the run."""

REUSED = "results reused from"
"""The role of a manifest, among the parents of another, whose results that has taken over."""

_DECODED = {column.name for column in DecodeStage.adds}

_VERDICT = tuple(column.name for column in VERDICT)

_FAULT_FIELDS = [pa.field(name, pa.string()) for name in FAULT]


def take(out: Path | str, folder: Path, without: Collection[str] = ()) -> None:
    """Collect the results of the manifest or unfinished run `out`, a folder or an address in an object store,
    in `folder`, unless they are there.

    without: the kinds of fault that are not taken over, besides those that may pass by themselves.

    Raises UserError if `out` has neither, or if it was made by a version whose results cannot be read.
    """
    if places.is_manifest_at(out):
        of_manifest(Manifest.open(out), folder, without)
        return
    units = _units_at(out)
    run = RunFile.read(units)
    state = fingerprint([run.fingerprint, run.inputs, sorted(p.name for p in units.iterdir())])
    origin = Parent(id=state, path=_place(out), role=UNFINISHED)
    of_units(units, folder, state[:16], without, origin)


def redactions_at(out: Path | str) -> list[Redaction]:
    """Return what was forgotten from a manifest or from those that an unfinished run has taken over. Raises
    UserError as `take` does.
    """
    if places.is_manifest_at(out):
        return places.info_at(out).redactions
    return merged(each.redactions for each in origins(_units_at(out)))


def _place(out: Path | str) -> str:
    return out if in_store(out) else path_text(Path(out).resolve())


def _units_at(out: Path | str) -> Path:
    """Return the folder of the units of an unfinished run; for an address that of a copy, with what is there
    now. Raises UserError if there is no run.
    """
    units = units_here(out)
    if not RunFile.exists(units):
        what = "an unfinished run of an earlier version" if units.is_dir() else "no run"
        raise UserError(f"--reuse: {out} contains {what}", "name the folder of a manifest or of a run")
    return units


def units_here(out: Path | str) -> Path:
    """Return the folder for the units of a run; for an address that of a copy, with what is there now."""
    if not in_store(out):
        return Path(out) / UNITS
    store = ObjectStore(out)
    units = store.work_folder() / "reuse" / UNITS
    if f"{UNITS}/{RUN_FILE}" in store.names():
        units.mkdir(parents=True, exist_ok=True)
        Mirror(units, f"{store.text}/{UNITS}").pull()
    else:
        shutil.rmtree(units, ignore_errors=True)
    return units


def of_manifest(manifest: Manifest, folder: Path, without: Collection[str]) -> None:
    """Collect the results of a manifest."""
    path = folder / f"earlier-{manifest.id[:16]}.arrow"
    if path.exists():
        return
    info, rows = manifest.info, _ManifestRows(manifest, without)
    shown = manifest.with_previews
    files = tuple((part.path, part.rows) for part in shown.info.previews)
    made = EarlierInfo(
        origin=Parent(id=info.id, path=places.place_of(manifest.path), role=REUSED),
        stages=rows.stages,
        stores=tuple(_stores(manifest)),
        redactions=tuple(info.redactions),
        preview=rows.pipeline.get("preview", 0) if files else 0,
        previews=files,
        previews_at=places.place_of(shown.path) if files else None,
    )
    with progress("reuse", info.counts["rows"], "rows") as advance:
        write_earlier(path, made, rows.schema, rows.tables(advance))


def _stores(manifest: Manifest) -> Iterator[PixelParts]:
    source = manifest.source
    while isinstance(source, Stored):
        yield PixelParts(path=source.path, parts=source.parts, hidden=source.hidden)
        source = source.source


class _ManifestRows:
    """The rows of a manifest with which stages ran on them.

    A manifest does not say that of each row. A stage ran if one of its columns has a value, or if the verdict
    of the row came after it: the stages are in the order in which they ran, and each rule was evaluated after
    the last stage that it reads.
    """

    def __init__(self, manifest: Manifest, without: Collection[str]) -> None:
        self._manifest = manifest
        self._without = without
        info = manifest.info
        pipeline = info.operation.get("pipeline")
        self.pipeline: Mapping[str, Any] = pipeline if isinstance(pipeline, Mapping) else {}
        limits = limits_of(self.pipeline) if self.pipeline else {}
        ran = [stage for stage in info.stages if stage.state == "ran"]
        self.stages = tuple(
            StageKey(
                label=stage.name,
                fingerprint=stage.fingerprint,
                # without a pipeline nothing is known of the limits: no fault is taken over
                limits=limits.get(stage.name, ""),
                columns=tuple(stage.adds),
            )
            for stage in ran
        )
        entries = {entry.get("name") or entry["stage"]: entry for entry in self.pipeline.get("stages", ())}
        self._bound = {label for label, entry in entries.items() if entry.get("channel")}
        labels = [stage.label for stage in self.stages]
        cuts = CHILD_COUNT.name in manifest.schema.names and bool(entries)
        last = list(entries)[-1] if cuts else None
        self._expand = labels.index(last) if last in labels else None
        self._places = {
            rule.name: max(
                (n for n, s in enumerate(self.stages) if set(s.columns) & self._columns_of(rule.where)),
                default=-1,
            )
            for rule in info.rules
            if rule.state == "evaluated"
        }
        # with patches or all_rules a verdict does not say which stages ran
        exact = self._expand is None and not self.pipeline.get("all_rules")
        self._exact = exact and info.operation.get("kind") == "curate"

    def _columns_of(self, where: str) -> set[str]:
        from uhr.manifests.sql import SqlCondition

        return set(SqlCondition.parse(where, "rule").columns)

    @property
    def schema(self) -> pa.Schema:
        has = [pa.field(f"_has_{n}", pa.bool_()) for n in range(len(self.stages))]
        own = [field.remove_metadata() for field in self._manifest.schema]
        return pa.schema([*own, *has, *_FAULT_FIELDS, pa.field(PREVIEW_AT, pa.int64())])

    def tables(self, advance: Any) -> Iterator[pa.Table]:
        previews = self._previews()
        for batch in self._manifest.rows():
            for start in range(0, batch.num_rows, 16_384):
                part = batch.slice(start, 16_384)
                yield self._table(part, previews)
                advance(part.num_rows)

    def _previews(self) -> dict[str, int]:
        found: dict[str, int] = {}
        shown = self._manifest.with_previews
        for part in shown.info.previews:
            ids = parquet.read(shown.path / part.path, ["sample_id"])["sample_id"].to_pylist()
            found.update(zip(ids, itertools.count(len(found))))
        return found

    def _table(self, batch: pa.RecordBatch, previews: Mapping[str, int]) -> pa.Table:
        table = pa.Table.from_batches([batch])
        verdicts = zip(
            *(batch.column(name).to_pylist() for name in ("status", "reason", "error")), strict=True
        )
        reached, faults = [], []
        for status, reason, error in verdicts:
            place, fault = self._verdict(status, reason, error or "")
            reached.append(place)
            faults.append(fault)
        refetched = pa.array(_refetched(table, self._without), pa.bool_())
        places, of_patches = pa.array(reached, pa.int32()), batch.column("parent_id").is_valid()
        for number, stage in enumerate(self.stages):
            ran = _any_valid([batch.column(name) for name in stage.columns], batch.num_rows)
            if self._exact and stage.label not in self._bound:
                ran = pc.call_function(
                    "or", [ran, pc.call_function("greater_equal", [places, pa.scalar(number)])]
                )
            if self._expand is not None:
                if number == self._expand:
                    ran = batch.column(CHILD_COUNT.name).is_valid()
                own = of_patches if number > self._expand else pc.call_function("invert", [of_patches])
                ran = pc.call_function("and", [ran, own])
            if stage.of_fetching:
                ran = pc.call_function("and_not", [ran, refetched])
            table = table.append_column(f"_has_{number}", ran)
        for at, field in enumerate(_FAULT_FIELDS):
            table = table.append_column(field, pa.array([fault[at] for fault in faults], pa.string()))
        at = [previews.get(sample) for sample in batch.column("sample_id").to_pylist()]
        table = table.append_column(PREVIEW_AT, pa.array(at, pa.int64()))
        return table.cast(self.schema)

    def _verdict(self, status: str, reason: str | None, error: str) -> tuple[int, _Fault]:
        """Return the number of the last stage that certainly ran on the row, and its fault."""
        if status == KEPT:
            return len(self.stages) - 1, _NONE
        if status == REJECTED:
            return self._places.get(reason or "", -1), _NONE
        if reason in (NO_VALUE, RULE_ERROR):
            rules = (name for name in self._places if error.startswith(f"rule '{name}' ("))
            return self._places.get(next(rules, ""), -1), _NONE
        fault = fault_of(reason, error, [stage.label for stage in self.stages])
        if fault[0] is None:
            return -1, _NONE
        number = [stage.label for stage in self.stages].index(fault[0])
        # a stage before the one that decodes may have been called first, and those between were not
        decodes = _DECODED.issubset(self.stages[number].columns)
        return -1 if decodes else number - 1, _NONE if reason in self._without else fault


_Fault = tuple[str | None, str | None, str | None]

_NONE: _Fault = (None, None, None)


def fault_of(kind: str | None, error: str, labels: Sequence[str]) -> _Fault:
    """Return the stage that an error names, its kind, and its message; nothing if it names no stage, or if
    the fault says nothing about the image.
    """
    if kind == CHANGED or kind in TRANSIENT:
        return _NONE
    for label in sorted(labels, key=len, reverse=True):
        if error.startswith(f"{label}: "):
            return label, kind, error[len(label) + 2 :]
    return _NONE


def _refetched(rows: pa.Table, without: Collection[str]) -> list[bool]:
    """Return which rows failed or were left undone because their images could not be fetched, and are not
    taken over: how that went is no result either.
    """
    names = [name for name in ("status", "reason", "content_hash") if name in rows.schema.names]
    return [
        (row["reason"] == DOWNLOAD and DOWNLOAD in without)
        or ((row["status"] == UNDONE or row["reason"] == UNAVAILABLE) and row.get("content_hash") is None)
        for row in rows.select(names).to_pylist()
    ]


def _any_valid(columns: Sequence[pa.Array], rows: int) -> pa.Array:
    found = pa.array([False] * rows, pa.bool_())
    for column in columns:
        found = pc.call_function("or", [found, column.is_valid()])
    return found


def of_units(
    units: Path, folder: Path, name: str, without: Collection[str], origin: Parent | None = None
) -> None:
    """Collect the results that the parts in the folder `units` have, and the files of earlier results there.

    origin: None if they are of the run itself.
    """
    run = RunFile.read(units)
    for number in itertools.count(1):
        if not UnitPlan.exists(units, number):
            return
        path = folder / f"earlier-{name}-{number}.arrow"
        if path.exists():
            continue
        plan = UnitPlan.open(units, number)
        collect(path, plan, range(plan.count), run, without, origin)


def collect(
    path: Path,
    plan: UnitPlan,
    units: Collection[int],
    run: RunFile,
    without: Collection[str],
    origin: Parent | None = None,
) -> None:
    """Write the results in the parts of these units of one pass to the file `path`."""
    # what the run itself has taken over from others
    others = [] if origin is None else list(origins(plan.folder))
    made = EarlierInfo(
        origin=origin,
        stores=tuple(store for each in others for store in each.stores),
        redactions=tuple(merged(each.redactions for each in others)),
        fetched=None if origin is None else f"{origin.path}/{FETCHED}",
        stages=(*run.images, *run.patches),
        preview=run.pipeline.get("preview", 0),
    )
    rows = PartRows(plan, run, without)
    if rows.schema is not None:
        with progress("reuse", len(units), "units") as advance:
            write_earlier(path, made, rows.schema, rows.tables(units, advance))


class PartRows:
    """The rows of the parts of one pass, each with what all of its tasks found."""

    def __init__(self, plan: UnitPlan, run: RunFile, without: Collection[str]) -> None:
        self._plan = plan
        self._without = without
        self._images, self._patches = run.images, run.patches
        self.stages = (*run.images, *run.patches)
        self.schema = self._schema()

    def _schema(self) -> pa.Schema | None:
        fields: dict[str, pa.Field] = {}
        if self._plan.number > 1 and self._plan.count:
            fields |= {field.name: field for field in self._plan.items(0).schema}
        for segment in range(self._plan.segments):
            done = self._plan.finished(segment)
            if not done and segment == 0:
                return None
            for unit in list(done)[:1]:
                schema = parquet.schema_of(self._plan.part(unit, segment))
                fields |= {field.name: field for field in schema if field.name != RAN.name}
        for name in KEYS:
            fields.setdefault(name, pa.field(name, pa.string()))
        has = [pa.field(f"_has_{n}", pa.bool_()) for n in range(len(self.stages))]
        own = list(fields.values())
        previews = [] if PREVIEW[0].name in fields else list(PREVIEW)
        return pa.schema([*own, *previews, *has, *_FAULT_FIELDS])

    def tables(self, units: Collection[int], advance: Any) -> Iterator[pa.Table]:
        first = self._plan.finished()
        for unit in units:
            if unit in first:
                yield self._table(unit)
            advance(1)

    def _table(self, unit: int) -> pa.Table:
        schema = self.schema
        assert schema is not None
        table, ran = self._joined(unit)
        patches = (
            table["parent_id"].is_valid().to_pylist()
            if "parent_id" in table.schema.names
            else [False] * table.num_rows
        )
        errors = zip(*(table[name].to_pylist() for name in _VERDICT), strict=True)
        faults = [self._fault(*verdict, patch) for verdict, patch in zip(errors, patches, strict=True)]
        refetched = _refetched(table, self._without)
        numbers = {key.label: n for n, key in enumerate(self._images)}
        of_patches = {key.label: n + len(self._images) for n, key in enumerate(self._patches)}
        has = [[False] * table.num_rows for _ in self.stages]
        for at, (labels, patch) in enumerate(zip(ran, patches, strict=True)):
            for label in labels:
                # a patch also names the stage that cut it, which is one of images
                if (place := (of_patches if patch else numbers).get(label)) is not None:
                    has[place][at] = not (refetched[at] and self.stages[place].of_fetching)
        for number, values in enumerate(has):
            table = table.append_column(f"_has_{number}", pa.array(values, pa.bool_()))
        for at, field in enumerate(_FAULT_FIELDS):
            table = table.append_column(field, pa.array([fault[at] for fault in faults], pa.string()))
        columns = [
            table[field.name].cast(field.type)
            if field.name in table.schema.names
            else pa.chunked_array([pa.nulls(table.num_rows, field.type)])
            for field in schema
        ]
        return pa.table(columns, schema=schema)

    def _fault(self, status: str, reason: str | None, error: str | None, patch: bool) -> _Fault:
        if status != FAILED or reason in self._without:
            return _NONE
        keys = self._patches if patch else self._images
        return fault_of(reason, error or "", [key.label for key in keys])

    def _joined(self, unit: int) -> tuple[pa.Table, list[list[str]]]:
        """Return the rows of a unit with all columns of its parts and items, and the stages that ran on
        each.
        """
        part = parquet.read(self._plan.part(unit))
        ran: list[list[str]] = [[*(labels or ())] for labels in part[RAN.name].to_pylist()]
        table = part.drop_columns([RAN.name])
        for segment in range(1, self._plan.segments):
            file = self._plan.part(unit, segment)
            if not file.exists():
                break
            more = parquet.read(file)
            for labels, also in zip(ran, more[RAN.name].to_pylist(), strict=True):
                labels += also or ()
            for name in more.schema.names:
                if name in table.schema.names:
                    table = table.set_column(table.schema.get_field_index(name), name, more[name])
                elif name != RAN.name:
                    table = table.append_column(name, more[name])
        if self._plan.number > 1:
            items = self._plan.items(unit)
            # the patches that a pass cuts come after the rows of its items
            cut = table.num_rows - items.num_rows
            for field in items.schema:
                if field.name not in table.schema.names:
                    values = [*items[field.name].chunks, pa.nulls(cut, field.type)]
                    table = table.append_column(field.name, pa.chunked_array(values, field.type))
        return table, ran
