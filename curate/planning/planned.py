"""What a plan is made of: stages with their rules, the segments of models, and the passes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from uhr.curate.rules import Rule
from uhr.curate.stage import BaseStage, BatchStage, ExpandStage, FrameStage, Resources, SetStage
from uhr.manifests.schema import CHILD_COUNT, Column

S = TypeVar("S", bound=BaseStage)


@dataclass(frozen=True)
class PlannedStage(Generic[S]):
    """A stage, the rules evaluated right after it, and the channel whose rows it sees (None: all)."""

    label: str
    stage: S
    rules: tuple[Rule, ...] = ()
    channel: str | None = None

    def sees(self, row: Mapping[str, Any]) -> bool:
        """Whether the row is one of the stage's channel."""
        channels = row.get("channels")
        return self.channel is None or channels is None or self.channel in channels


@dataclass(frozen=True)
class ModelSegment:
    """Consecutive model stages that share their workers."""

    stages: tuple[PlannedStage[BatchStage], ...]

    @property
    def resources(self) -> Resources:
        """The resources of its workers; the longest of the stages' times."""
        found = [planned.stage.resources for planned in self.stages]
        return found[0].model_copy(update={"seconds": max(each.seconds for each in found)})

    @property
    def views(self) -> dict[str, Any]:
        """The views that its stages look at, by a text that is equal for equal views."""
        return {repr(view): view for planned in self.stages for view in planned.stage.views.values()}


@dataclass(frozen=True)
class Pass:
    """One table of items and what is done to it, in this order: `first` (rules over columns that the rows
    have already), `header`, `pixel`, `segments`, `sets`.

    The items of the first pass are the files of the source, those of a later one the rows that are still
    kept. With `expand` the rows are the patches that it cuts from the items.
    """

    first: tuple[Rule, ...] = ()
    header: tuple[PlannedStage[FrameStage], ...] = ()
    pixel: tuple[PlannedStage[FrameStage], ...] = ()
    segments: tuple[ModelSegment, ...] = ()
    sets: tuple[PlannedStage[SetStage], ...] = ()
    expand: PlannedStage[ExpandStage] | None = None
    of_patches: bool = False

    @property
    def frames(self) -> tuple[PlannedStage[FrameStage], ...]:
        return (*self.header, *self.pixel)

    @property
    def batches(self) -> tuple[PlannedStage[BatchStage], ...]:
        return tuple(planned for segment in self.segments for planned in segment.stages)

    @property
    def stages(self) -> tuple[PlannedStage[Any], ...]:
        first = () if self.expand is None else (self.expand,)
        return (*first, *self.frames, *self.batches, *self.sets)

    @property
    def rules(self) -> Iterator[Rule]:
        """The rules that are evaluated, in this order."""
        yield from self.first
        for planned in self.stages:
            yield from planned.rules

    @property
    def views(self) -> dict[str, Any]:
        """The views of all segments, by a text that is equal for equal views."""
        return {key: view for segment in self.segments for key, view in segment.views.items()}

    def columns(self, stages: Sequence[PlannedStage[Any]]) -> list[Column]:
        """Return the columns of some of its stages, with `stage` set."""
        return [column for planned in stages for column in own_columns(planned)]


def inherited_columns(stages: Sequence[PlannedStage[FrameStage]]) -> list[Column]:
    """Return the columns of the stages on images that patches have from their image."""
    return [c for planned in stages if planned.stage.inherited for c in own_columns(planned)]


def own_columns(planned: PlannedStage[Any]) -> list[Column]:
    """Return a stage's columns with `stage` set."""
    columns = [*planned.stage.adds, *((CHILD_COUNT,) if isinstance(planned.stage, ExpandStage) else ())]
    return [replace(column, stage=column.stage or planned.label) for column in columns]
