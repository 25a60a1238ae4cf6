"""A run of a pipeline over a source, from the listing to the report; killed anywhere, it goes on where it
stopped.

The states of OUT, told apart by what stands there: nothing; `units/` without a plan (killed while listing); a
plan and some parts; every part; `manifest.json` beside `units/` (killed before the report or the clearing
up); finished: a manifest, and no `units/`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import pyarrow as pa

from uhr.base.console import progress, warn
from uhr.base.errors import UserError
from uhr.base.files import saving
from uhr.base.run_folder import RunFolder
from uhr.curate.commit import LAYOUT, UNITS, commit
from uhr.curate.failures import Failures, Noted, failures_of, noted_in
from uhr.curate.planning.plan import Plan
from uhr.curate.rows import Tally
from uhr.curate.sources import Listing, check_source, list_folder, refuse_overlap
from uhr.curate.work import CurateWork
from uhr.manifests import parts
from uhr.manifests.manifest import Manifest, is_manifest
from uhr.runtime.pool import InlineRunner, Pool, RayRunner
from uhr.runtime.units import Limits, PlanMismatch, Runner, UnitPlan, run_units, table_hash

Fresh = Callable[[Path], str]
"""The command that would make the same run into another folder."""


@dataclass(frozen=True)
class Order:
    """What the user asked for."""

    plan: Plan
    source: Path
    out: Path
    pool: Pool = field(default_factory=Pool)
    limit: int | None = None


@dataclass(frozen=True)
class Outcome:
    """What came of it. `finished_before`: nothing was left to do, and nothing was touched."""

    manifest: Manifest
    report: Path
    unreadable: list[str]
    finished_before: bool
    seconds: float

    @cached_property
    def failures(self) -> Failures:
        """What went wrong, in words."""
        return failures_of(self.manifest)

    @cached_property
    def noted(self) -> Noted | None:
        """What was odd about images that were kept."""
        return noted_in(self.manifest)

    def facts(self) -> dict[str, object]:
        """For machines."""
        info = self.manifest.info
        return {
            "manifest": str(self.manifest.path),
            "id": info.id,
            "report": str(self.report),
            "finished_before": self.finished_before,
            "counts": info.counts,
            "rules": [rule.model_dump() for rule in info.rules],
            "failures": [
                {"kind": kind, "error": error, "rows": rows}
                for kind, found in self.failures.commonest.items()
                for error, rows in found
            ],
            "noted": None if self.noted is None else self.noted._asdict(),
            "rules_that_failed_every_row": self.failures.always,
            "skipped": [
                s.model_dump(include={"name", "adds", "why"}) for s in info.stages if s.state == "skipped"
            ],
            "source": info.source,
            "unreadable_folders": self.unreadable,
            "seconds": round(self.seconds, 3),
        }


def is_finished(out: Path) -> bool:
    """Whether nothing is left to do: there is a manifest, and the units are gone."""
    return is_manifest(out) and not (out / UNITS).exists()


def survey(order: Order) -> Listing:
    """List the source. Errors: it is missing, empty, or overlaps with OUT."""
    refuse_overlap(order.source, order.out)
    with progress("list", None, "files") as advance:
        listing = list_folder(order.source, advance)
    if order.limit is not None:
        listing = listing.first(order.limit)
    return listing


def run(order: Order, fresh: Fresh) -> Outcome:
    """Curate. Errors: what `survey` raises, an OUT that holds something else or cannot be written, another
    run at work in it."""
    with saving(order.out, "make room there; the same command goes on where it stopped"):
        return _run(order, fresh)


def _run(order: Order, fresh: Fresh) -> Outcome:
    start = time.monotonic()
    check_source(order.source)
    refuse_overlap(order.source, order.out)
    folder = RunFolder(order.out, LAYOUT)
    if not is_finished(order.out):  # a finished run's folder is only read, so it may hold anything
        folder.claim()
    config = order.plan.config.limits
    runner = order.pool.runner(Limits(config.seconds, int(config.memory)))
    listing = survey(order)
    inputs = table_hash(listing.items)
    if is_finished(order.out):
        manifest = _same_run(order, inputs, fresh)
        return Outcome(manifest, order.out / parts.REPORT, listing.unreadable, True, time.monotonic() - start)
    with folder.lock(UNITS):
        if is_manifest(order.out):
            manifest = _same_run(order, inputs, fresh)
        else:
            units, tally = _do_units(order, runner, listing.items, fresh)
            manifest = _commit(order, listing, units, tally, inputs)
        report = _finish(manifest, folder)
    return Outcome(manifest, report, listing.unreadable, False, time.monotonic() - start)


def _same_run(order: Order, inputs: str, fresh: Fresh) -> Manifest:
    """The manifest in OUT, if it is what this run would make."""
    manifest = Manifest.open(order.out)
    made = manifest.info.operation
    if made.get("kind") != "curate":
        raise UserError(
            f"{order.out} holds a manifest of another kind ({made.get('kind')})", "name another folder"
        )
    if made.get("fingerprint") != order.plan.fingerprint:
        raise UserError(f"{order.out} was made with another pipeline", fresh(order.out))
    if made.get("inputs") != inputs:
        raise UserError(
            f"the files in {order.source} are not those that {order.out} was made of", fresh(order.out)
        )
    return manifest


def _do_units(order: Order, runner: Runner, items: pa.Table, fresh: Fresh) -> tuple[UnitPlan, Tally]:
    plan, folder = order.plan, order.out / UNITS
    try:
        units = UnitPlan.create(folder, items, plan.unit_size(items.num_rows), plan.fingerprint)
    except PlanMismatch as mismatch:
        changed = (
            "was begun with another pipeline" if mismatch.changed == "work" else "was begun on other files"
        )
        raise UserError(f"the run in {order.out} {changed}", fresh(order.out)) from None
    tally = Tally.empty()
    for unit in sorted(units.finished()):
        tally = tally.plus(Tally.of_part(units.part(unit)))

    def note(unit: int) -> str:
        nonlocal tally
        tally = tally.plus(Tally.of_part(units.part(unit)))
        return tally.words()

    if isinstance(runner, InlineRunner):
        warn("in this process: an image that crashes its decoder, hangs or eats the memory ends the run")
    with progress("curate", items.num_rows, "images") as advance:
        work = CurateWork(plan, str(order.source.absolute()))
        if isinstance(runner, RayRunner):
            advance(0, "starting Ray")
        run_units(units, work, runner, advance, note)
    return units, tally


def _commit(order: Order, listing: Listing, units: UnitPlan, tally: Tally, inputs: str) -> Manifest:
    operation = {
        "kind": "curate",
        "pipeline": order.plan.resolved(),
        "fingerprint": order.plan.fingerprint,
        "inputs": inputs,
    }
    with progress("commit", units.rows, "rows") as advance:
        met = {**listing.met, "broken_sidecars": tally.broken_sidecars}
        return commit(order.out, order.plan, units, tally, listing.root, operation, met, advance)


def _finish(manifest: Manifest, folder: RunFolder) -> Path:
    """The report, and then the units are no longer needed: their absence says that nothing is left to do."""
    from uhr.manifests.report import write_report

    report = manifest.path / parts.REPORT
    if not report.exists():
        write_report(manifest, report)
    folder.clear(UNITS)
    return report
