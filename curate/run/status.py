"""The progress of a run, read from its folder while it runs or after it stopped."""

from __future__ import annotations

import itertools
from collections.abc import Collection
from pathlib import Path
from typing import Any

from uhr.base.errors import UserError
from uhr.base.locks.run_lock import is_held
from uhr.curate.run.commit import UNITS
from uhr.curate.run.rows import Tally
from uhr.manifests.info import is_manifest
from uhr.manifests.manifest import Manifest
from uhr.runtime.units import UnitPlan

WINDOW = 600.0
"""Seconds before the newest part of a segment over which its rate is measured."""


def status_of(out: Path, running: bool | None = None) -> dict[str, Any]:
    """Return the state of the run in `out`, with its units, rows and verdicts so far.

    Of a run in several passes these are those of its current `pass`; `tasks_done` has the finished tasks of
    each segment of the pass, and `segments` its rows per minute and the seconds until it is done.

    `state` is listing, running, stopped, committed (only the report is missing) or finished. `running` says
    whether a run is at work, if that is not to be seen from the folder. Raises UserError if the folder
    contains no run.
    """
    folder = out / UNITS
    running = is_held(folder) if running is None else running
    if is_manifest(out):
        counts = Manifest.open(out).info.counts
        state = "finished" if not folder.exists() else "running" if running else "committed"
        verdicts = {name: counts[name] for name in ("kept", "rejected", "failed")}
        return {
            "out": str(out),
            "state": state,
            "rows": counts["rows"],
            "rows_done": counts["rows"],
            **verdicts,
        }
    if not folder.is_dir():
        raise UserError(f"{out} contains no run", "name the folder that `uhr curate run --out` wrote")
    if not UnitPlan.exists(folder):
        return {"out": str(out), "state": "listing" if running else "stopped", "rows": None, "rows_done": 0}
    number = next(n for n in itertools.count(1) if not UnitPlan.exists(folder, n + 1))
    plan = UnitPlan.open(folder, number)
    # listed once, so that all counts are of one moment while a run goes on
    done = [plan.finished(segment) for segment in range(plan.segments)]
    finished = set(done[0]).intersection(*done[1:])
    tally = Tally.empty()
    for unit in finished:
        tally = tally.plus(Tally.of_unit(plan, unit))
    begun = (
        {} if number == plan.segments == 1 else {"pass": number, "tasks_done": [len(units) for units in done]}
    )
    return {
        **begun,
        "out": str(out),
        "state": "running" if running else "stopped",
        "rows": plan.rows,
        "rows_done": sum(map(plan.rows_in, finished)),
        "units": plan.count,
        "units_done": len(finished),
        "kept": tally.kept,
        "rejected": tally.rejected.total(),
        "failed": tally.failed.total(),
        **({"undone": tally.undone} if tally.undone else {}),
        "reasons": {**tally.rejected, **tally.failed},
        "faults": dict(tally.failed.most_common()),
        "segments": [_pace(plan, segment, units, running) for segment, units in enumerate(done)],
    }


def _pace(plan: UnitPlan, segment: int, done: Collection[int], running: bool) -> dict[str, Any]:
    """Return tasks and rows of a segment, its rows per minute while the newest parts were written, and the
    seconds until it is done at that rate; None where that is not known.
    """
    rows = sum(map(plan.rows_in, done))
    times = sorted((plan.part(unit, segment).stat().st_mtime, unit) for unit in done)
    recent = [entry for entry in times if entry[0] > times[-1][0] - WINDOW]
    rate = None
    if len(recent) > 1 and (seconds := recent[-1][0] - recent[0][0]) > 0:
        # what was written first was begun before
        rate = sum(plan.rows_in(unit) for _, unit in recent[1:]) / seconds
    left = plan.rows - rows
    return {
        "tasks": len(done),
        "rows": rows,
        "rows_per_minute": None if rate is None else round(rate * 60, 1),
        "seconds_left": round(left / rate) if running and rate is not None else None,
    }
