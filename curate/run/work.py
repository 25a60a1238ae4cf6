"""The work of the CPU on a unit: sidecars, header stages, pixel stages, the rules between them, and views.

An image is decoded once, and only if the rules over its header keep it. All pixel stages share its Frame,
which is freed before the next image is decoded. An error with an image becomes the verdict of its row. The
patches of an image are done while it is decoded.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from uhr.base import parquet
from uhr.curate.faults import CHANGED, OF_STAGE, UNAVAILABLE, stage_fault
from uhr.curate.planning.machine import MachineWork
from uhr.curate.planning.plan import CurationPlan
from uhr.curate.planning.planned import PlannedStage
from uhr.curate.rules import Judge, Rule
from uhr.curate.run.earlier.known import Answer, Earlier
from uhr.curate.run.earlier.rows import EarlierFault, EarlierRows, Outdated, StageKeys
from uhr.curate.run.images import UnitImages
from uhr.curate.run.lanes import Lanes, stage_lane
from uhr.curate.run.parts import frame_schema, has_previews
from uhr.curate.run.rows import DECODING, PREVIEWS, VIEWS, UnitRows, child_row, later_row, source_row
from uhr.curate.run.views import ViewBlock
from uhr.curate.sidecars import read_sidecars
from uhr.curate.stage import Child, FrameStage
from uhr.curate.stages.frames.decode import DecodeStage
from uhr.manifests.schema import BASE, KEPT, RIGHTS
from uhr.manifests.sources.base import Source
from uhr.pixels.files import changed
from uhr.pixels.types import PixelFault
from uhr.runtime.units import UnitFault, UnitPlan, Watch

HELD_PIXELS = 10_000_000
"""Limit of the decoded pixels (12 bytes each) that are in memory while a rule between pixel stages is
evaluated. One query then covers many small images, or one 4K image.
"""

StageGroup = tuple[tuple[tuple[int, PlannedStage[FrameStage]], ...], tuple[Rule, ...]]
"""Consecutive stages, each with its step number for the watch, and the rules that follow the last of them."""

_INHERITED = ("uri", "source_version", "content_hash", *(c.name for c in RIGHTS if c.name != "caption"))
"""What a patch has from its image. A caption says what the whole image shows."""


class CurateWork(MachineWork):
    """The first segment of a pass. Picklable: it has the checked plan and the source.

    keys: what the results of each stage depend on (`keys_of`), which takes long to compute where there are
    weights.
    """

    def __init__(self, plan: CurationPlan, source: Source, number: int, keys: StageKeys) -> None:
        this = plan.passes[number]
        super().__init__((*this.frames, *(() if this.expand is None else (this.expand,))), source)
        self.plan = plan
        self.source = source
        self.number = number
        self.keys = keys

    def open(self) -> None:
        super().open()
        for planned in self.stages:
            planned.stage.open()
        if self.plan.passes[self.number].views:
            # takes seconds, which must not count against the first image
            importlib.import_module("torch")
        self._judge = Judge(self.plan.schema, self.plan.channels, self.plan.config.all_rules)
        self._earlier: Earlier | None = None

    def do(self, plan: UnitPlan, unit: int, watch: Watch, given: bytes | None) -> bytes | None:
        items = plan.items(unit).to_pylist()
        if self._earlier is None:
            self._earlier = Earlier(plan.folder, self.source.fetches)
            self._lanes = Lanes(plan.folder, self.plan.config.pause)
        outdated: set[int] = set()
        while True:
            self._lanes.begin()
            earlier = EarlierRows(self._earlier, self.keys, outdated, self.plan.config.limits)
            run = _UnitRun(self, self._judge, items, watch, earlier, self._lanes)
            if plan.part(unit).exists():
                # only what it passed on in memory is missing
                return run.views_of(parquet.read(plan.part(unit)).to_pylist())
            try:
                run.run()
                break
            except Outdated as found:
                outdated.add(found.index)
        watch.end()
        schema = frame_schema(self.plan, self.number)
        part = run.rows.part(schema, self.plan.channels, has_previews(self.plan, self.number))
        plan.write(unit, part)
        self._lanes.end()
        return run.packed()


class _UnitRun:
    """One unit: `run` applies the pass to its items; `rows` collects columns and verdicts."""

    def __init__(
        self,
        work: CurateWork,
        judge: Judge,
        items: list[dict[str, Any]],
        watch: Watch,
        earlier: EarlierRows,
        lanes: Lanes,
    ) -> None:
        self._lanes = lanes
        self._plan = work.plan
        self._earlier = earlier
        self._pass = work.plan.passes[work.number]
        self._source = work.source
        self._judge = judge
        self._watch = watch
        self._go_on = work.plan.config.all_rules
        self._from_source = work.number == 0
        self._views = self._pass.views
        self._previews = bool(work.plan.config.preview) and has_previews(work.plan, work.number)
        self._block = ViewBlock(list(self._views))
        decoders = (p.label for p in self._pass.pixel if isinstance(p.stage, DecodeStage))
        self._decodes = next(decoders, DECODING)
        kept = {column.name for column in (*BASE, *self._plan.given)}
        if "content_hash" in {column.name for planned in self._plan.stages for column in planned.stage.adds}:
            kept.remove("content_hash")
        stated = [name for name in (items[0] if items else ()) if name in kept]
        made = (source_row(i, stated) if self._from_source else later_row(i) for i in items)
        self.rows = UnitRows(list(made))
        limits = work.plan.config.limits
        self._images = UnitImages(self._source, self._pass, limits, items, self.rows, earlier, lanes)

    def run(self) -> None:
        alive = self.rows.alive()
        if self._from_source:
            alive = [index for index in alive if self._sidecars(index)]
        if self._pass.expand is not None:
            self._prefetch([i for i in alive if self._answer(i, self._pass.expand) is None])
            for index in self._images.not_left(alive):
                self._expand(index)
            self._watch.end()
            return
        alive = self._apply_rules(self._pass.first, alive)
        alive = self._measure(alive)
        self._pixels(alive)
        self._watch.end()

    def packed(self) -> bytes | None:
        """Return the views of the rows that are still kept; None if no model looks at any."""
        return self._block.packed() if self._views else None

    def views_of(self, rows: Sequence[dict[str, Any]]) -> bytes | None:
        """Return the views of the rows of a part that was written before."""
        for index, row in enumerate(rows):
            while len(self.rows) <= index:
                self.rows.add({})
            if row["status"] != KEPT or (self._pass.expand is not None and row["parent_id"] is None):
                continue
            self.rows[index].update(row)
            if self._earlier.lacks(index, self.rows[index], self._pass.batches):
                self._add_views(index, self._images.frame(index))
        self._watch.end()
        return self.packed()

    def _measure(self, alive: list[int], frames: Mapping[int, Any] | None = None) -> list[int]:
        """Apply the header stages to rows, and return those that are measured on."""
        for stages, rules in _stage_groups(self._pass.header, 1):
            if frames is None:
                self._prefetch(self._images.lacking(stages, alive))
            measured = [
                i
                for i in self._images.not_left(alive)
                if self._annotate(i, self._frame_of(i, frames), stages)
            ]
            alive = self._apply_rules(rules, measured)
        return alive

    def _frame_of(self, index: int, frames: Mapping[int, Any] | None) -> Any:
        return self._images.frame(index) if frames is None else frames[index]

    def _pixels(self, alive: list[int], frames: Mapping[int, Any] | None = None) -> None:
        """Apply the pixel stages to rows, and make the views of those that are still kept."""
        groups = list(_stage_groups(self._pass.pixel, 1 + len(self._pass.header)))
        if frames is None:
            # all of these images reach the first stages, whatever rules come after them
            needing = self._images.lacking(groups[0][0], alive) if groups else self._for_views(alive)
            self._prefetch(needing)
            alive = self._images.not_left(alive)
        if len(groups) == 1 and not self._views and frames is None:
            # rules only at the end: no decoded image has to be kept while they are evaluated
            stages, rules = groups[0]
            self._apply_rules(rules, [i for i in alive if self._annotate(i, self._images.frame(i), stages)])
            return
        for chunk in self._chunks(alive) if groups or self._views else ():
            held = {index: self._frame_of(index, frames) for index in chunk}
            for stages, rules in groups:
                chunk = self._apply_rules(rules, [i for i in chunk if self._annotate(i, held[i], stages)])
                held = {index: held[index] for index in chunk}
            for index in self._for_views(chunk):
                self._make_views(index, held[index])

    def _for_views(self, indices: Sequence[int]) -> list[int]:
        """Return the rows of which a model will look at views."""
        if not self._views:
            return []
        alive = (index for index in indices if self.rows[index]["status"] is None)
        return [index for index in alive if self._earlier.lacks(index, self.rows[index], self._pass.batches)]

    def _answer(self, index: int, planned: PlannedStage[Any]) -> Answer | None:
        """Return the result that an earlier run has of a stage for a row."""
        return self._earlier.answer(index, self.rows[index], planned)

    def _expand(self, index: int) -> None:
        """Cut the patches of an image, and take them through the stages and rules of patches."""
        expand = self._pass.expand
        assert expand is not None
        row, frame = self.rows[index], self._images.frame(index)
        if self._answer(index, expand) is None and self._waits(index, expand.label):
            return
        if not self._begin(index, 0, expand.label):
            return
        try:
            children = self._children(index, frame, expand)
            inherited = (*_INHERITED, *(column.name for column in self._plan.inherited))
            added = [self.rows.add(child_row(row, child, inherited)) for child in children]
            self._earlier.forget_patches(row, added)
            hidden = any(row.get(name) is not None for name in self._plan.hiding)
            for at, child in zip(added, children, strict=True):
                self.rows.put(at, expand, child.values)
                if hidden:
                    self.rows.hide(at)
            frame.check_unchanged()
        except Outdated:
            raise
        except EarlierFault as known:
            self.rows.reused[expand.label] += 1
            self.rows.fail(index, known.fault.kind, f"{expand.label}: {known.fault.message}")
            return
        except PixelFault as fault:
            self._fail(index, frame, expand.label, fault)
            return
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a stage may do anything: it costs this row only
            self._fail(index, frame, expand.label, stage_fault(error))
            return
        self.rows.mark(index, expand.label)
        row["child_count"] = len(added)
        self._apply_rules(expand.rules, [index])
        frames = {at: self._images.child_frame(frame, at) for at in added}
        self._pixels(self._measure(self._apply_rules(self._pass.first, added), frames), frames)

    def _children(self, index: int, frame: Any, expand: PlannedStage[Any]) -> list[Child]:
        """Return the patches of an image, as an earlier run or the stage cuts them. Raises EarlierFault if
        the stage failed in that run, and PixelFault if the file cannot be read.
        """
        answer = self._answer(index, expand)
        if answer is not None and answer.fault is not None:
            raise EarlierFault(answer.fault)
        patches = None if answer is None else self._earlier.patches(index, self.rows[index], expand)
        if patches is None:
            self._images.check_content(index, frame)
            with self.rows.timed(expand.label):
                return [_checked(child, frame) for child in expand.stage.expand(frame)]
        self.rows.reused[expand.label] += 1
        names = [column.name for column in expand.stage.adds]
        return [Child(tuple(each["box"]), {n: each.get(n) for n in names}) for each in patches]

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

    def _sidecars(self, index: int) -> bool:
        """Read the sidecars of one image; return False if the image failed."""
        label = "sidecars"
        files = self._images.sidecar_files(index)
        if not files:
            return True
        if self._waits(index, label) or not self._begin(index, 0, label):
            return False
        try:
            sidecar = read_sidecars(files, self._plan.config.sidecars.model_dump())
        except PixelFault as fault:
            self._fail_file(index, label, fault)
            return False
        self.rows[index].update(sidecar.values)
        self.rows.broken_sidecars += sidecar.fault is not None
        return True

    def _prefetch(self, indices: Sequence[int]) -> None:
        """Fetch the bytes of these images together, if their source fetches."""
        if self._source.fetches and indices:
            self._watch.end()
            self._images.prefetch(indices)

    def _waits(self, index: int, label: str) -> bool:
        """Leave a row undone if the stage that is to be called, or what its bytes come from, is paused."""
        if not self._lanes:
            return False
        why = self._lanes.paused(stage_lane(label))
        if why is None and not self._images.are_prefetched(index):
            why = self._lanes.paused(self._source.lane(self.rows[index]))
        if why is not None:
            self.rows.leave(index, why)
        return why is not None

    def _begin(self, index: int, number: int, label: str) -> bool:
        """Announce the next step of an image to the watch. If the image ended an earlier attempt in this
        step, fail its row and return False.
        """
        fault = self._watch.begin(index, _step(number))
        if fault is None:
            return True
        if fault.step != _step(number) and self._decodes != DECODING:
            label = self._decodes  # whichever stage made it decode
        self.rows.fail(index, fault.kind, f"{label}: {fault.message}")
        self._lanes.failed(stage_lane(label), f"{fault.kind}, {fault.message}")
        return False

    def _decoding(self, index: int, number: int, begins: bool) -> None:
        self._watch.begin(index, _step(number, decoding=begins))

    def _annotate(
        self, index: int, frame: Any, stages: Sequence[tuple[int, PlannedStage[FrameStage]]]
    ) -> bool:
        """Add the columns of these stages for one image; return False if it failed."""
        label, called = "", False
        reuses = bool(self._earlier)
        try:
            for number, planned in stages:
                label = planned.label
                if planned.sees(self.rows[index]) and not (reuses and self._reuse(index, frame, planned)):
                    if self._waits(index, label) or not self._begin(index, number, label):
                        return False
                    called = True
                    frame.decoding = functools.partial(self._decoding, index, number)
                    if reuses:
                        self._images.check_before(planned, index, frame)
                    with self.rows.timed(label):
                        self.rows.put(index, planned, planned.stage.annotate(frame))
                if self._previews and number == 1 + len(self._pass.header):
                    # right after the first pixel stage, so that images which later rules reject have one too
                    # whichever stage comes first: the fault is of the image
                    label = "preview" if frame.is_decoded else self._decodes
                    if not self._reuse_preview(index):
                        if not self._begin(index, number, label):
                            return False
                        called = True
                        self._images.check_content(index, frame)
                        if not frame.is_decoded:
                            with self.rows.timed(DECODING):
                                _ = frame.decoded  # no stage before did
                        with self.rows.timed(PREVIEWS):
                            made = frame.preview(self._plan.config.preview)
                        self.rows.put_preview(index, *made)
            if called:
                frame.check_unchanged()
                if self._lanes:
                    for _, planned in stages:
                        self._lanes.succeeded(stage_lane(planned.label))
                    self._lanes.succeeded(self._source.lane(self.rows[index]))
            if frame.known is not None:
                self._images.headers[index] = frame.known
        except Outdated:
            raise
        except EarlierFault as known:
            self.rows.fail(index, known.fault.kind, f"{label}: {known.fault.message}")
        except PixelFault as fault:
            decodes = frame.is_undecodable and self._decodes != DECODING
            self._fail(index, frame, self._decodes if decodes else label, fault)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a stage may do anything: it costs this row only
            self._fail(index, frame, label, stage_fault(error))
        else:
            return True
        return False

    def _reuse(self, index: int, frame: Any, planned: PlannedStage[FrameStage]) -> bool:
        """Take over what an earlier run has of a stage; return False if there is nothing.

        Raises EarlierFault if the stage failed, and PixelFault if the file cannot be read.
        """
        answer = self._answer(index, planned)
        if answer is None and planned in self._pass.pixel and self._earlier.may_search(index):
            # the stage reads the bytes anyway: another file may have had the same
            self._images.check_content(index, frame)
            self._earlier.search(index, self.rows[index], frame.content_hash)
            answer = self._answer(index, planned)
        if answer is None:
            return False
        if answer.fault is not None:
            self.rows.reused[planned.label] += 1
            raise EarlierFault(answer.fault)
        self.rows.take_over(index, planned, answer.values)
        return True

    def _reuse_preview(self, index: int) -> bool:
        """Take over the preview that an earlier run made of these bytes; return False if there is none."""
        found = self._earlier.preview(index, self.rows[index], self._plan.config.preview)
        if found is not None:
            self.rows.put_preview(index, *found)
        return found is not None

    def _make_views(self, index: int, frame: Any) -> None:
        """Add the views of one image to the block, or fail its row, or leave it undone."""
        if self._waits(index, "views"):
            return
        fault = self._add_views(index, frame, and_faults=False)
        if fault is not None:
            self._fail(index, frame, "views", fault)
        elif self._lanes:
            self._lanes.succeeded(self._source.lane(self.rows[index]))

    def _add_views(self, index: int, frame: Any, and_faults: bool = True) -> PixelFault | UnitFault | None:
        """Add the views of one image to the block; its fault, if it has one, only on request."""
        fault: PixelFault | UnitFault | None = self._watch.begin(index, _step(1 + len(self._pass.frames)))
        if fault is None:
            try:
                self._images.check_content(index, frame)
                with self.rows.timed(VIEWS):
                    views = {key: frame.view(view) for key, view in self._views.items()}
                frame.check_unchanged()
                self._block.add(index, views)
            except Outdated:
                if not and_faults:
                    raise
                fault = changed("its bytes are not those that its row was measured on")
            except PixelFault as found:
                fault = found
            except Exception as error:  # noqa: BLE001 - it costs this row only
                fault = stage_fault(error)
        if fault is not None and and_faults:
            self._block.add_fault(index, fault)
        return fault

    def _fail(self, index: int, frame: Any, label: str, fault: PixelFault | UnitFault) -> None:
        """Fail a row; as "changed" if the file has changed, as the stage may have opened it itself."""
        try:
            frame.check_unchanged()
        except PixelFault as found:
            fault = found if found.kind == CHANGED else fault
        if isinstance(fault, PixelFault):
            self._fail_file(index, label, fault)
            return
        self.rows.fail(index, fault.kind, f"{label}: {fault.message}")
        if fault.kind in OF_STAGE:
            self._lanes.failed(stage_lane(label), f"{fault.kind}, {fault.message}")

    def _fail_file(self, index: int, label: str, fault: PixelFault) -> None:
        """Fail a row because of its file or of one beside it."""
        self.rows.fail(index, fault.kind, f"{label}: {fault.message}")
        if fault.kind == UNAVAILABLE and not self._images.are_prefetched(index):
            self._lanes.failed(self._source.lane(self.rows[index]), fault.message)

    def _apply_rules(self, rules: Sequence[Rule], indices: list[int]) -> list[int]:
        """Evaluate the rules for these rows, and return the rows that are measured on."""
        if not rules:
            return indices
        self._watch.end()
        return self.rows.rule(self._judge, rules, indices, self._go_on)


def _step(number: int, decoding: bool = False) -> int:
    """The number for the watch of a stage, or of the decoding of an image that it causes."""
    return 2 * number + (not decoding)


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
