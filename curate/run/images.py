"""The bytes of a unit's images: opened, fetched together, and compared with those of earlier results."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

from uhr.base.paths import unescaped
from uhr.curate.frame import Frame
from uhr.curate.patch_frame import PatchFrame
from uhr.curate.planning.planned import Pass, PlannedStage
from uhr.curate.run.earlier.rows import EarlierRows, Outdated
from uhr.curate.run.lanes import Lanes
from uhr.curate.run.rows import UNDONE, UnitRows
from uhr.curate.stage import FrameStage
from uhr.curate.stages.frames.fetch import FetchStage
from uhr.manifests.sources.base import GIVEN, Item, Source
from uhr.manifests.sources.blobs import Blob, MemoryBlob
from uhr.pixels.decode import PixelLimits
from uhr.pixels.types import Header, PixelFault


class UnitImages:
    """The images of the rows of one unit. `headers` are those that were read, by row."""

    def __init__(
        self,
        source: Source,
        this: Pass,
        limits: PixelLimits,
        items: Sequence[dict[str, Any]],
        rows: UnitRows,
        earlier: EarlierRows,
        lanes: Lanes,
    ) -> None:
        self._source = source
        self._limits = limits
        self._items = items
        self._rows = rows
        self._earlier = earlier
        self._lanes = lanes
        self._evidence = next((p for p in this.header if isinstance(p.stage, FetchStage)), None)
        self._whole: tuple[str, Frame] | None = None
        self._unavailable: set[int] = set()
        self.headers: dict[int, Header] = {}

    def frame(self, index: int) -> Frame:
        """Return the image of a row, or the patch."""
        row = self._rows[index]
        if row.get("box") is None:
            blob = self._source.open(self._with_content(index))
            return Frame(row["uri"], blob, row, self._limits, self.headers.get(index))
        if self._whole is None or self._whole[0] != row["parent_id"]:
            frame = Frame(row["uri"], self._source.open(row), row, self._limits)
            self._whole = row["parent_id"], frame
        return self.child_frame(self._whole[1], index)

    def child_frame(self, whole: Frame, index: int) -> Frame:
        """Return a patch of an image."""
        row = self._rows[index]
        return PatchFrame(whole, tuple(row["box"]), row)

    def sidecar_files(self, index: int) -> list[tuple[str, Blob]]:
        """Return name and bytes of the sidecars of a row; first what its source says of it."""
        item = self._items[index]
        files: list[tuple[str, Blob]] = []
        if item.get(GIVEN.name) is not None:
            files.append((f"{GIVEN.name}.json", MemoryBlob(item[GIVEN.name].encode())))
        if item["sidecars"]:
            versions = item["sidecar_versions"].split(",")
            for uri, version in zip(item["sidecars"], versions, strict=True):
                blob = self._source.open({**item, "uri": uri, "source_version": version})
                files.append((unescaped(uri).rpartition("/")[2], blob))
        return files

    def prefetch(self, indices: Sequence[int]) -> None:
        """Fetch the bytes of these images together, and leave those undone whose host is paused. What could
        not be fetched for an earlier stage of this unit is not requested again.
        """
        reached, failed = set[int](), set[int]()

        def fetch(item: Item) -> None:
            lane = self._source.lane(item)
            if self._lanes.paused(lane) is None:
                facts = self._source.open(item).facts
                if facts.get("transient"):
                    failed.add(id(item))
                    self._lanes.failed(lane, facts["fault"])
                else:
                    self._lanes.succeeded(lane)
                reached.add(id(item))

        items = {index: self._with_content(index) for index in indices if index not in self._unavailable}
        label = None if self._evidence is None else self._evidence.label
        # the calls of the stage, which then only read what was fetched, are counted apart
        with contextlib.nullcontext() if label is None else self._rows.timed(label, rows=0):
            self._source.prefetch(items.values(), fetch)
        self._unavailable |= {index for index, item in items.items() if id(item) in failed}
        for index, item in items.items():
            why = self._lanes.paused(self._source.lane(item))
            if why is not None and id(item) not in reached:
                self._rows.leave(index, why)

    def are_prefetched(self, index: int) -> bool:
        """Whether `prefetch` fetches the bytes of a row, and records for its host whether it could."""
        return self._source.fetches and self._source.fetches_item(self._rows[index])

    def not_left(self, indices: Sequence[int]) -> list[int]:
        """Return the rows that are not left undone."""
        return [index for index in indices if self._rows[index]["status"] != UNDONE]

    def lacking(
        self, stages: Sequence[tuple[int, PlannedStage[FrameStage]]], indices: Sequence[int]
    ) -> list[int]:
        """Return the rows for which one of these stages has to be called, if their source fetches."""
        if not self._source.fetches:
            return []
        own = [planned for _, planned in stages]
        return [index for index in indices if self._earlier.lacks(index, self._rows[index], own)]

    def _with_content(self, index: int) -> dict[str, Any]:
        """Return what identifies the bytes of a row: also its hash, if an earlier run has stored them."""
        item, row = self._items[index], self._rows[index]
        if self._evidence is not None and self._earlier.answer(index, row, self._evidence) is None:
            # how the image was fetched is not stored with its bytes
            return item
        known = row.get("content_hash")
        if known is None and self._earlier:
            known = self._earlier.content_hash(index, row)
        return item if known is None else {**item, "content_hash": known}

    def check_content(self, index: int, frame: Any) -> None:
        """Raise Outdated if the earlier results of a row are those of other bytes than it has now."""
        expected = self._earlier.unchecked(index, self._rows[index])
        if expected is not None and frame.content_hash != expected:
            raise Outdated(index)

    def check_before(self, planned: PlannedStage[FrameStage], index: int, frame: Any) -> None:
        """Do the same before a stage is called; the stage `fetch` itself says why there are no bytes."""
        with contextlib.suppress(*((PixelFault,) if planned is self._evidence else ())):
            self.check_content(index, frame)
