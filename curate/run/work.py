"""The work of the CPU on a unit: sidecars, header stages, pixel stages, the rules between them, and views.

An image is decoded once, and only if the rules over its header keep it. All pixel stages share its Frame,
which is freed before the next image is decoded. An error with an image becomes the verdict of its row. The
patches of an image are done while it is decoded.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from uhr.base import parquet
from uhr.base.paths import unescaped
from uhr.curate.faults import CHANGED, STAGE_ERROR
from uhr.curate.planning.plan import CurationPlan, PlannedStage
from uhr.curate.rules import Judge, Rule
from uhr.curate.run.parts import frame_schema, has_previews
from uhr.curate.run.rows import UnitRows, source_row
from uhr.curate.run.views import ViewBlock
from uhr.curate.sidecars import read_sidecars
from uhr.curate.stage import Child, FrameStage
from uhr.manifests.schema import BASE, KEPT, RIGHTS, patch_id
from uhr.manifests.sources.base import GIVEN, Blob, MemoryBlob, Source
from uhr.pixels.decoder_noise import stable_text
from uhr.pixels.types import Header, PixelFault
from uhr.runtime.units import TaskWork, UnitFault, UnitPlan, Watch

HELD_PIXELS = 10_000_000
"""Limit of the decoded pixels (12 bytes each) that are in memory while a rule between pixel stages is
evaluated. One query then covers many small images, or one 4K image.
"""

StageGroup = tuple[tuple[tuple[int, PlannedStage[FrameStage]], ...], tuple[Rule, ...]]
"""Consecutive stages, each with its step number for the watch, and the rules that follow the last of them."""

_INHERITED = ("uri", "source_version", "content_hash", *(c.name for c in RIGHTS if c.name != "caption"))
"""What a patch has from its image. A caption says what the whole image shows."""


class CurateWork(TaskWork):
    """The first segment of a pass. Picklable: it has the checked plan and the source."""

    def __init__(self, plan: CurationPlan, source: Source, number: int = 0) -> None:
        self.plan = plan
        self.source = source
        self.number = number

    def open(self) -> None:
        this = self.plan.passes[self.number]
        for planned in (*this.frames, *(() if this.expand is None else (this.expand,))):
            planned.stage.open()
        if this.views:
            # takes seconds, which must not count against the first image
            importlib.import_module("torch")
        self._judge = Judge(self.plan.schema, self.plan.channels, self.plan.config.all_rules)

    def do(self, plan: UnitPlan, unit: int, watch: Watch, given: bytes | None) -> bytes | None:
        items = plan.items(unit).to_pylist()
        run = _UnitRun(self, self._judge, items, watch)
        if plan.part(unit).exists():
            # only what it passed on in memory is missing
            return run.views_of(parquet.read(plan.part(unit)).to_pylist())
        run.run()
        watch.end()
        schema = frame_schema(self.plan, self.number)
        part = run.rows.part(schema, self.plan.channels, has_previews(self.plan, self.number))
        plan.write(unit, part)
        return run.packed()


class _UnitRun:
    """One unit: `run` applies the pass to its items; `rows` collects columns and verdicts."""

    def __init__(self, work: CurateWork, judge: Judge, items: list[dict[str, Any]], watch: Watch) -> None:
        self._plan = work.plan
        self._pass = work.plan.passes[work.number]
        self._source = work.source
        self._judge = judge
        self._items = items
        self._watch = watch
        self._headers: dict[int, Header] = {}
        self._go_on = work.plan.config.all_rules
        self._from_source = work.number == 0
        self._whole: tuple[str, Any] | None = None
        self._views = self._pass.views
        self._block = ViewBlock(list(self._views))
        kept = {column.name for column in (*BASE, *self._plan.given)}
        if "content_hash" in {column.name for planned in self._plan.stages for column in planned.stage.adds}:
            kept.remove("content_hash")
        stated = [name for name in (items[0] if items else ()) if name in kept]
        made = (source_row(i, stated) if self._from_source else _later_row(i) for i in items)
        self.rows = UnitRows(list(made))

    def run(self) -> None:
        alive = self.rows.alive()
        if self._from_source:
            alive = [index for index in alive if self._sidecars(index)]
        if self._pass.expand is not None:
            self._prefetch(alive)
            for index in alive:
                self._expand(index)
            self._watch.end()
            return
        alive = self._apply_rules(self._pass.first, alive)
        if self._pass.frames or self._views:
            self._prefetch(alive)
        alive = self._measure(alive)
        self._pixels(alive)
        self._watch.end()

    def packed(self) -> bytes | None:
        """Return the views of the rows that are still kept; None if no model looks at any."""
        return self._block.packed() if self._views else None

    def views_of(self, rows: Sequence[dict[str, Any]]) -> bytes | None:
        """Return the views of the rows of a part that was written before."""
        for index, row in enumerate(rows):
            if row["status"] != KEPT or (self._pass.expand is not None and row["parent_id"] is None):
                continue
            while len(self.rows) <= index:
                self.rows.add({})
            self.rows[index].update(row)
            self._add_views(index, self._frame(index))
        self._watch.end()
        return self.packed()

    def _measure(self, alive: list[int], frames: Mapping[int, Any] | None = None) -> list[int]:
        """Apply the header stages to rows, and return those that are measured on."""
        for group in _stage_groups(self._pass.header, 1):
            alive = self._apply_rules(
                group[1],
                [
                    i
                    for i in alive
                    if self._annotate(i, frames[i] if frames is not None else self._frame(i), group[0])
                ],
            )
        return alive

    def _pixels(self, alive: list[int], frames: Mapping[int, Any] | None = None) -> None:
        """Apply the pixel stages to rows, and make the views of those that are still kept."""
        groups = list(_stage_groups(self._pass.pixel, 1 + len(self._pass.header)))
        if len(groups) == 1 and not self._views and frames is None:
            # rules only at the end: no decoded image has to be kept while they are evaluated
            stages, rules = groups[0]
            self._apply_rules(rules, [i for i in alive if self._annotate(i, self._frame(i), stages)])
            return
        for chunk in self._chunks(alive) if groups or self._views else ():
            held = {index: self._frame(index) if frames is None else frames[index] for index in chunk}
            for stages, rules in groups:
                chunk = self._apply_rules(rules, [i for i in chunk if self._annotate(i, held[i], stages)])
                held = {index: held[index] for index in chunk}
            for index in chunk:
                if self._views and self.rows[index]["status"] is None:
                    self._make_views(index, held[index])

    def _expand(self, index: int) -> None:
        """Cut the patches of an image, and take them through the stages and rules of patches."""
        expand = self._pass.expand
        assert expand is not None
        row, frame = self.rows[index], self._frame(index)
        if not self._begin(index, 0, expand.label):
            return
        try:
            children = [_checked(child, frame) for child in expand.stage.expand(frame)]
            inherited = (*_INHERITED, *(column.name for column in self._plan.inherited))
            added = [self.rows.add(_child_row(row, child, inherited)) for child in children]
            for at, child in zip(added, children, strict=True):
                self.rows.put(at, expand, child.values)
            frame.check_unchanged()
        except PixelFault as fault:
            self._fail(index, frame, expand.label, fault)
            return
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a stage may do anything: it costs this row only
            self._fail(index, frame, expand.label, _stage_fault(error))
            return
        row["child_count"] = len(added)
        self._apply_rules(expand.rules, [index])
        frames = {at: self._child_frame(frame, at) for at in added}
        self._pixels(self._measure(self._apply_rules(self._pass.first, added), frames), frames)

    def _chunks(self, indices: Sequence[int]) -> Iterator[list[int]]:
        """Yield consecutive rows whose decoded images fit into memory together; single rows if their size is
        not known.
        """
        chunk: list[int] = []
        held = 0
        for index in indices:
            row = self.rows[index]
            pixels = (row.get("width") or HELD_PIXELS) * (row.get("height") or 1)
            if chunk and held + pixels > HELD_PIXELS:
                yield chunk
                chunk, held = [], 0
            chunk.append(index)
            held += pixels
        if chunk:
            yield chunk

    def _frame(self, index: int) -> Any:
        from uhr.curate.frame import Frame

        row = self.rows[index]
        if row.get("box") is None:
            item = self._items[index]
            return Frame(
                row["uri"], self._source.open(item), row, self._plan.config.limits, self._headers.get(index)
            )
        if self._whole is None or self._whole[0] != row["parent_id"]:
            frame = Frame(row["uri"], self._source.open(row), row, self._plan.config.limits)
            self._whole = row["parent_id"], frame
        return self._child_frame(self._whole[1], index)

    def _child_frame(self, whole: Any, index: int) -> Any:
        from uhr.curate.patch_frame import PatchFrame

        row = self.rows[index]
        return PatchFrame(whole, tuple(row["box"]), row)

    def _sidecars(self, index: int) -> bool:
        """Read the sidecars of one image; return False if the image failed."""
        label = "sidecars"
        if not self._begin(index, 0, label):
            return False
        files = self._sidecar_files(self._items[index])
        if not files:
            return True
        try:
            sidecar = read_sidecars(files, self._plan.config.sidecars.model_dump())
        except PixelFault as fault:
            self.rows.fail(index, fault.kind, f"{label}: {fault.message}")
            return False
        self.rows[index].update(sidecar.values)
        self.rows.broken_sidecars += sidecar.fault is not None
        return True

    def _sidecar_files(self, item: Mapping[str, Any]) -> list[tuple[str, Blob]]:
        """Return name and bytes of the sidecars of an item; first what its source says of it."""
        files: list[tuple[str, Blob]] = []
        if item.get(GIVEN.name) is not None:
            files.append((f"{GIVEN.name}.json", MemoryBlob(item[GIVEN.name].encode())))
        if item["sidecars"]:
            versions = item["sidecar_versions"].split(",")
            for uri, version in zip(item["sidecars"], versions, strict=True):
                blob = self._source.open({**item, "uri": uri, "source_version": version})
                files.append((unescaped(uri).rpartition("/")[2], blob))
        return files

    def _prefetch(self, indices: Sequence[int]) -> None:
        """Fetch the bytes of these images together, if their source fetches."""
        if self._source.fetches:
            self._watch.end()
            self._source.prefetch([self._items[index] for index in indices])

    def _begin(self, index: int, number: int, label: str) -> bool:
        """Announce the next step of an image to the watch. If the image ended an earlier attempt in this
        step, fail its row and return False.
        """
        fault = self._watch.begin(index, number)
        if fault is None:
            return True
        self.rows.fail(index, fault.kind, f"{label}: {fault.message}")
        return False

    def _annotate(
        self, index: int, frame: Any, stages: Sequence[tuple[int, PlannedStage[FrameStage]]]
    ) -> bool:
        """Add the columns of these stages for one image; return False if it failed."""
        label = ""
        try:
            for number, planned in stages:
                label = planned.label
                if not self._begin(index, number, label):
                    return False
                if _sees(planned, self.rows[index]):
                    self.rows.put(index, planned, planned.stage.annotate(frame))
                if self._plan.config.preview and number == 1 + len(self._pass.header):
                    # right after the first pixel stage, so that images which later rules reject have one too
                    label = f"{planned.label}: preview"
                    self.rows.put_preview(index, *frame.preview(self._plan.config.preview))
            frame.check_unchanged()
            if frame.known is not None:
                self._headers[index] = frame.known
        except PixelFault as fault:
            self._fail(index, frame, label, fault)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a stage may do anything: it costs this row only
            self._fail(index, frame, label, _stage_fault(error))
        else:
            return True
        return False

    def _make_views(self, index: int, frame: Any) -> None:
        """Add the views of one image to the block, or fail its row."""
        fault = self._add_views(index, frame, and_faults=False)
        if fault is not None:
            self._fail(index, frame, "views", fault)

    def _add_views(self, index: int, frame: Any, and_faults: bool = True) -> PixelFault | UnitFault | None:
        """Add the views of one image to the block; its fault, if it has one, only on request."""
        fault: PixelFault | UnitFault | None = self._watch.begin(index, 1 + len(self._pass.frames))
        if fault is None:
            try:
                views = {key: view.of(frame.rgb) for key, view in self._views.items()}
                frame.check_unchanged()
                self._block.add(index, views)
            except PixelFault as found:
                fault = found
            except Exception as error:  # noqa: BLE001 - it costs this row only
                fault = _stage_fault(error)
        if fault is not None and and_faults:
            self._block.add_fault(index, fault)
        return fault

    def _fail(self, index: int, frame: Any, label: str, fault: PixelFault | UnitFault) -> None:
        """Fail a row; as "changed" if the file has changed, as the stage may have opened it itself."""
        try:
            frame.check_unchanged()
        except PixelFault as found:
            fault = found if found.kind == CHANGED else fault
        self.rows.fail(index, fault.kind, f"{label}: {fault.message}")

    def _apply_rules(self, rules: Sequence[Rule], indices: list[int]) -> list[int]:
        """Evaluate the rules for these rows, and return the rows that are measured on."""
        if not rules:
            return indices
        self._watch.end()
        return self.rows.rule(self._judge, rules, indices, self._go_on)


def _sees(planned: PlannedStage[Any], row: Mapping[str, Any]) -> bool:
    """Whether a stage of a channel sees this row."""
    channels = row.get("channels")
    return planned.channel is None or channels is None or planned.channel in channels


def _stage_fault(error: BaseException) -> UnitFault:
    text = stable_text(str(error))
    return UnitFault(STAGE_ERROR, f"{type(error).__name__}{': ' if text else ''}{text}")


def _later_row(item: dict[str, Any]) -> dict[str, Any]:
    """Return the row of an item of a later pass: a row that earlier passes have kept."""
    return {**item, "status": None, "reason": None, "error": None}


def _child_row(parent: Mapping[str, Any], child: Child, inherited: Sequence[str]) -> dict[str, Any]:
    row = {column.name: None for column in BASE} | {name: parent.get(name) for name in inherited}
    box = tuple(int(each) for each in child.box)
    sample = patch_id(parent["sample_id"], (box[0], box[1], box[2], box[3]))
    return row | {"sample_id": sample, "parent_id": parent["sample_id"], "box": list(box)}


def _checked(child: Child, frame: Any) -> Child:
    """Return a patch. Raises ValueError if its box is not inside of the image."""
    x, y, width, height = child.box
    inside = 0 <= x < x + width <= frame.header.width and 0 <= y < y + height <= frame.header.height
    if not inside:
        raise ValueError(
            f"box {tuple(child.box)} is not inside of {frame.header.width}x{frame.header.height} px"
        )
    return child


def _stage_groups(stages: Sequence[PlannedStage[FrameStage]], first: int) -> Iterator[StageGroup]:
    """Group stages so that each group ends where rules are evaluated. Stages are numbered from `first`."""
    run: list[tuple[int, PlannedStage[FrameStage]]] = []
    for number, planned in enumerate(stages, first):
        run.append((number, planned))
        if planned.rules:
            yield tuple(run), planned.rules
            run = []
    if run:
        yield tuple(run), ()
