"""The rows of one unit. They collect columns and verdicts, and become the staged part of the unit."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from uhr.base import parquet
from uhr.base.paths import unescaped
from uhr.curate.config import SidecarKeys
from uhr.curate.faults import CHANGED
from uhr.curate.planning.plan import CurationPlan, PlannedStage
from uhr.curate.rules import Verdict
from uhr.curate.run.conversion import Converter, converter_for
from uhr.curate.sidecars import read_sidecars
from uhr.manifests.schema import BASE, FAILED, KEPT, REJECTED, sample_id
from uhr.manifests.sources.base import GIVEN, Blob, MemoryBlob, Source

PREVIEW = (
    pa.field("_jpeg", pa.binary()),
    pa.field("_preview_width", pa.int32()),
    pa.field("_preview_height", pa.int32()),
)
"""Columns of a staged part that are not in the manifest's rows; they go to the preview parts."""

_LISTED = [column.name for column in BASE if column.name != "content_hash"]
"""Columns that do not depend on the image's bytes: uri, listed version, the values of the sidecars."""

_TALLY = b"tally"


class Tally(NamedTuple):
    """Counts of the rows of one or more units: kept, rejected by rule, failed by kind of fault.

    `seen` counts the rows that reached each rule, `broken_sidecars` the images with a broken sidecar.
    """

    kept: int
    rejected: Counter[str]
    failed: Counter[str]
    seen: Counter[str]
    broken_sidecars: int

    @classmethod
    def empty(cls) -> Tally:
        return cls(0, Counter(), Counter(), Counter(), 0)

    @classmethod
    def of_part(cls, part: Path) -> Tally:
        """Read the tally that a staged part has in its footer."""
        tree = json.loads(parquet.schema_of(part).metadata[_TALLY])
        return cls(tree[0], *map(Counter, tree[1:4]), tree[4])

    def plus(self, other: Tally) -> Tally:
        return Tally(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))

    def summary(self) -> str:
        """Return a text such as `kept 10, rejected 3, failed 1`."""
        counts = (self.kept, self.rejected.total(), self.failed.total())
        return ", ".join(f"{name} {n:,}" for name, n in zip((KEPT, REJECTED, FAILED), counts, strict=True))


class UnitRows:
    """Collects the rows of a unit. A row has the same index as its item; it is a dict of the columns known so
    far.
    """

    def __init__(self, plan: CurationPlan, items: pa.Table, source: Source) -> None:
        # the columns of set stages are added after all units are finished
        late = {column.name for planned in plan.sets for column in planned.stage.adds}
        self._schema = pa.schema([field for field in plan.schema if field.name not in late])
        self._converters: dict[str, dict[str, Converter]] = {}
        self._source = source
        self._items = items.to_pylist()
        stated = [name for name in items.schema.names if name in self._schema.names]
        self._rows = [_row(item, stated) for item in self._items]
        self._previews: dict[int, tuple[bytes, int, int]] = {}
        self._broken_sidecars = 0
        self.seen: Counter[str] = Counter()

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._rows[index]

    def alive(self) -> list[int]:
        """Rows without a verdict."""
        return [index for index, row in enumerate(self._rows) if row["status"] is None]

    def prefetch(self, indices: Sequence[int]) -> None:
        """Fetch the bytes of these images together, if their source fetches."""
        if self._source.fetches:
            self._source.prefetch([self._items[index] for index in indices])

    def open(self, index: int) -> Blob:
        """The bytes of an image."""
        return self._source.open(self._items[index])

    def read_sidecars(self, index: int, keys: SidecarKeys) -> None:
        """Add the values of an image's sidecars to its row.

        Raises PixelFault("changed") if one of them is not the listed version any more.
        """
        item = self._items[index]
        files: list[tuple[str, Blob]] = []
        if item.get(GIVEN.name) is not None:
            files.append((f"{GIVEN.name}.json", MemoryBlob(item[GIVEN.name].encode())))
        if item["sidecars"]:
            versions = item["sidecar_versions"].split(",")
            for uri, version in zip(item["sidecars"], versions, strict=True):
                blob = self._source.open({**item, "uri": uri, "source_version": version})
                files.append((unescaped(uri).rpartition("/")[2], blob))
        if files:
            sidecar = read_sidecars(files, keys.model_dump())
            self._rows[index].update(sidecar.values)
            self._broken_sidecars += sidecar.fault is not None

    def put(self, index: int, planned: PlannedStage[Any], values: Mapping[str, Any]) -> None:
        """Add the values that a stage returned for a row.

        Raises TypeError or ValueError if they are not a mapping of the stage's columns, or if a column cannot
        hold its value.
        """
        converters = self._converters.get(planned.label)
        if converters is None:
            converters = self._converters[planned.label] = {
                column.name: converter_for(column.type) for column in planned.stage.adds
            }
        if not isinstance(values, Mapping):
            raise TypeError(f"annotate gives {type(values).__name__}, not a mapping of its columns")
        undeclared = values.keys() - converters.keys()
        if undeclared:
            raise ValueError(f"it gives column {sorted(undeclared)[0]!r}, which it does not declare")
        converted = {}
        for name, value in values.items():
            try:
                converted[name] = converters[name](value)
            except (pa.ArrowException, ValueError, TypeError, OverflowError) as error:
                given = f"{type(value).__name__} {_short(value)}"
                raise ValueError(f"column '{name}' cannot hold {given} ({_first_line(error)})") from error
        self._rows[index].update(converted)

    def put_preview(self, index: int, jpeg: bytes, width: int, height: int) -> None:
        self._previews[index] = (jpeg, width, height)

    def fail(self, index: int, kind: str, message: str) -> None:
        if kind == CHANGED:
            # earlier measurements may be of another version of the file
            row = self._rows[index]
            self._rows[index] = {name: row.get(name) for name in _LISTED}
            self._previews.pop(index, None)
        self.decide(index, Verdict(FAILED, kind, message))

    def decide(self, index: int, verdict: Verdict) -> None:
        error = verdict.error and verdict.error.encode("utf-8", "replace").decode()
        self._rows[index].update(status=verdict.status, reason=verdict.reason, error=error)

    def part(self) -> pa.Table:
        """Return the staged part: the manifest's columns, previews, and the tally as schema metadata."""
        for index in self.alive():
            self._rows[index]["status"] = KEPT
        columns = [pa.array([row.get(f.name) for row in self._rows], f.type) for f in self._schema]
        shown = [self._previews.get(index, (None, None, None)) for index in range(len(self._rows))]
        previews = [pa.array([p[i] for p in shown], f.type) for i, f in enumerate(PREVIEW)]
        schema = pa.schema([*self._schema, *PREVIEW], metadata={_TALLY: json.dumps(self._tally()).encode()})
        return pa.table([*columns, *previews], schema=schema)

    def _tally(self) -> Tally:
        verdicts = Counter((row["status"], row["reason"]) for row in self._rows)
        by_reason = {
            status: Counter({r: n for (s, r), n in sorted(verdicts.items(), key=str) if s == status})
            for status in (REJECTED, FAILED)
        }
        kept = verdicts[(KEPT, None)]
        seen = Counter(dict(sorted(self.seen.items())))
        return Tally(kept, by_reason[REJECTED], by_reason[FAILED], seen, self._broken_sidecars)


def _short(value: object, most: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]}..."


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _row(item: dict[str, Any], stated: Sequence[str]) -> dict[str, Any]:
    fault = item["fault"]
    return {
        **{name: item[name] for name in stated},
        "sample_id": sample_id(item["uri"], item.get("source_name")),
        "status": None if fault is None else FAILED,
        "reason": fault,
        "error": item["fault_words"],
    }
