"""The progress of a run, read from its folder while it runs or after it stopped."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from uhr.base.errors import UserError
from uhr.base.lock import is_held
from uhr.curate.run.commit import UNITS
from uhr.curate.run.rows import Tally
from uhr.manifests.info import is_manifest
from uhr.manifests.manifest import Manifest
from uhr.runtime.units import UnitPlan


def status_of(out: Path) -> dict[str, Any]:
    """Return the state of the run in `out`, with its units, rows and verdicts so far.

    Of a run in several passes these are those of its current `pass`; `tasks_done` has the finished tasks of
    each segment of the pass.

    `state` is listing, running, stopped, committed (only the report is missing) or finished. Raises UserError
    if the folder contains no run.
    """
    folder = out / UNITS
    running = is_held(folder)
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
    finished = plan.complete()
    tally = Tally.empty()
    for unit in finished:
        tally = tally.plus(Tally.of_unit(plan, unit))
    begun = {} if number == plan.segments == 1 else {"pass": number, "tasks_done": _tasks_done(plan)}
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
    }


def _tasks_done(plan: UnitPlan) -> list[int]:
    return [len(plan.finished(segment)) for segment in range(plan.segments)]
