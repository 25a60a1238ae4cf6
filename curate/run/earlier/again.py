"""Which tasks of an unfinished run are done again: what they found becomes earlier results."""

from __future__ import annotations

import itertools
from collections.abc import Collection
from pathlib import Path

from uhr.curate.run.earlier.files import earlier_files
from uhr.curate.run.earlier.harvest import collect
from uhr.curate.run.earlier.run_file import RunFile
from uhr.curate.run.rows import Tally
from uhr.runtime.units import UnitPlan


class Again:
    """Removes parts of a run, after their results are collected.

    folder: of the units. kinds: the kinds of fault whose rows are measured again.
    """

    def __init__(self, folder: Path, described: RunFile, kinds: frozenset[str]) -> None:
        self._folder = folder
        self._described = described
        self._kinds = kinds

    def unfinished(self, plan: UnitPlan) -> None:
        """Do the tasks again whose parts have rows that were left undone, or failed with one of the kinds."""
        first: dict[int, int] = {}
        for segment in range(plan.segments):
            for unit in plan.finished(segment) - first.keys():
                tally = Tally.of_part(plan.part(unit, segment))
                if tally.undone or any(tally.failed[kind] for kind in self._kinds):
                    first[unit] = segment
        if first:
            self._collect(plan, sorted(first))
        for unit, begin in first.items():
            # the last first: a part without those before it would be taken for one of the new rows
            for segment in reversed(range(begin, plan.segments)):
                plan.discard(unit, segment)

    def from_pass(self, number: int) -> None:
        """Do all tasks of a pass and of those after it again."""
        for each in itertools.count(number):
            if not UnitPlan.exists(self._folder, each):
                return
            plan = UnitPlan.open(self._folder, each)
            self._collect(plan, range(plan.count))
            plan.remove()

    def _collect(self, plan: UnitPlan, units: Collection[int]) -> None:
        taken = {path.name for path in earlier_files(self._folder)}
        names = (f"earlier-again-{number}.arrow" for number in itertools.count(1))
        path = self._folder / next(name for name in names if name not in taken)
        collect(path, plan, units, self._described, self._kinds)
