"""Run a pipeline over a source, from the listing to the report. A run that was killed can be resumed.

The files in OUT show its state: nothing; `units/` without a plan (killed while listing); a plan and some
parts; all parts; `manifest.json` and `units/` (killed before the report was written and the units removed);
finished: `manifest.json` and no `units/`.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from uhr.base.arrow import table_hash
from uhr.base.console import progress, warn
from uhr.base.errors import UserError, unknown
from uhr.base.files import saving
from uhr.base.paths import in_store, path_text
from uhr.base.run_folder import RunFolder, all_or_nothing
from uhr.curate.faults import DOWNLOAD, KINDS
from uhr.curate.planning.plan import CurationPlan
from uhr.curate.run.commit import FETCHED, LAYOUT, UNITS, commit, during_run, funnel
from uhr.curate.run.earlier.harvest import of_units, redactions_at, take
from uhr.curate.run.earlier.run_file import RunFile, stages_of
from uhr.curate.run.execution import passes_run
from uhr.curate.run.failures import (
    Failures,
    NoteSummary,
    SidecarSummary,
    failures_of,
    notes_of,
    sidecars_of,
    unanswered_of,
)
from uhr.manifests import parts, places
from uhr.manifests.info import is_manifest
from uhr.manifests.manifest import Manifest
from uhr.manifests.schema import STATED
from uhr.manifests.selection.tombstones import FORGOTTEN, all_tombstones, living
from uhr.manifests.sources.base import Listing, Source, check_no_overlap
from uhr.manifests.sources.of_manifest import OfManifest
from uhr.runtime.mirror import shown
from uhr.runtime.pool import Pool
from uhr.runtime.units import Limits, PlanMismatch, Runner, UnitPlan

OtherCommand = Callable[[Path], str]
"""Returns the command that makes the same run into another folder; its argument is the folder in use."""


class Subset(NamedTuple):
    """Which of the source's items are curated: all, the first `limit` names, or `sample` that are drawn."""

    limit: int | None = None
    sample: int | None = None
    seed: int = 0

    def of(self, listing: Listing) -> Listing:
        if self.sample is not None:
            return listing.drawn(self.sample, self.seed)
        return listing if self.limit is None else listing.first(self.limit)


@dataclass(frozen=True)
class CurationRequest:
    """The options of a run: curate `source` into `out` with the pipeline `plan`.

    reuse: folders or addresses of manifests and unfinished runs whose results are taken over. retry: kinds of
    fault whose rows are measured again, of an unfinished run in `out` or of those in `reuse`. by_reference:
    whether the manifest has only the columns whose values `source`, a manifest, does not have.
    """

    plan: CurationPlan
    source: Source
    out: Path
    pool: Pool = field(default_factory=Pool)
    subset: Subset = field(default_factory=Subset)
    reuse: tuple[Path | str, ...] = ()
    retry: tuple[str, ...] = ()
    by_reference: bool = False

    def parent(self) -> Manifest | None:
        """The manifest that the new one reads rows from. Raises UserError if it cannot."""
        if not self.by_reference:
            return None
        whole = "leave --materialise none out"
        if not isinstance(self.source, OfManifest):
            raise UserError(
                "--materialise none: the source is not one manifest", f"add --source manifest:M, or {whole}"
            )
        if any(each.expand is not None for each in self.plan.passes):
            raise UserError(
                f"--materialise none: {self.plan.config.name} cuts patches, which are new rows", whole
            )
        parent = self.source.manifest
        for name in parent.schema.names:
            if name not in self.plan.schema.names:
                raise UserError(
                    f"--materialise none: {parent.name} has the column {name}, which this run does not write",
                    whole,
                )
        return parent

    def check(self) -> None:
        """Raise UserError if a kind of fault is unknown, `out` is among the folders to reuse, or the manifest
        cannot be by reference.
        """
        self.parent()
        for kind in self.retry:
            if kind not in KINDS:
                raise unknown("reason", kind, sorted(KINDS), "--retry")
        for path in self.reuse:
            if not in_store(path) and Path(path).resolve() == self.out.resolve():
                raise UserError(f"--reuse {path} is the folder of this run", "name another --out")


@dataclass(frozen=True)
class CurationResult:
    """The result of a run. `finished_before`: the run was finished already, and nothing was written."""

    manifest: Manifest
    report: Path
    unreadable: list[str]
    finished_before: bool
    seconds: float

    @cached_property
    def failures(self) -> Failures:
        """The most frequent error of each kind of fault."""
        return failures_of(self.manifest)

    @cached_property
    def noted(self) -> NoteSummary | None:
        """The decoder notes of the kept images."""
        return notes_of(self.manifest)

    @cached_property
    def unanswered(self) -> dict[str, NoteSummary]:
        """Why kept images have no caption or translation, by column."""
        return unanswered_of(self.manifest)

    @cached_property
    def sidecars(self) -> SidecarSummary:
        """The most frequent fault of the sidecars, and where captions may be that were not found."""
        return sidecars_of(self.manifest)

    def facts(self) -> dict[str, object]:
        """Return the result as plain data for `--json`."""
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
            "unanswered": {name: why._asdict() for name, why in self.unanswered.items()},
            "rules_that_failed_every_row": self.failures.always,
            "skipped": [
                s.model_dump(include={"name", "adds", "why"}) for s in info.stages if s.state == "skipped"
            ],
            "source": info.source,
            "unreadable_folders": self.unreadable,
            "reused": info.operation.get("reused", {}),
            "seconds": round(self.seconds, 3),
        }


def is_finished(out: Path) -> bool:
    """Whether the run in `out` is finished: it has a manifest, and the units are removed."""
    return is_manifest(out) and not (out / UNITS).exists()


def list_source(request: CurationRequest) -> Listing:
    """List the source, without what was forgotten from the manifests in `reuse`. Raises UserError if it is
    missing or empty, or if it overlaps with OUT.
    """
    check_no_overlap(request.source, request.out)
    with progress("list", None, "files") as advance:
        listing = request.source.list(advance)
    _suggest_stated_sizes(request.plan, listing)
    tombstones = all_tombstones(redactions_at(path) for path in request.reuse)
    if tombstones:
        alive = living(listing.items, tombstones)
        listing = listing.where(alive, FORGOTTEN)
    return request.subset.of(listing)


def _suggest_stated_sizes(plan: CurationPlan, listing: Listing) -> None:
    """Warn where images will be fetched whose sizes are in the list, and only rules over the files' own sizes
    judge them.
    """
    sizes = {column.name for column in STATED}.intersection(listing.items.schema.names)
    used = {name for rule in plan.rules for name in rule.condition.columns}
    if not listing.source.gives_evidence or used & sizes or not used & {"width", "height", "megapixels"}:
        return
    if any(len(listing.items[name]) > listing.items[name].null_count for name in sizes):
        fix = "rules.stated={where: stated_width * stated_height >= PIXELS, null: keep}"
        warn(f"the list states sizes, and a rule over them rejects before a byte is fetched: --set '{fix}'")


def run(request: CurationRequest, command_for: OtherCommand) -> CurationResult:
    """Curate the source of `request`, or resume that run.

    Raises UserError as `list_source` does, and if OUT contains something else, cannot be written, or is in
    use by another run.
    """
    with saving(request.out, "free space there; the same command resumes the run"):
        return _run(request, command_for)


def _run(request: CurationRequest, command_for: OtherCommand) -> CurationResult:
    start = time.monotonic()
    request.check()
    request.source.check()
    check_no_overlap(request.source, request.out)
    folder = RunFolder(request.out, LAYOUT)
    config = request.plan.config.limits
    with all_or_nothing(request.out):  # a source that cannot be listed leaves no empty folder
        if not is_finished(request.out):  # a finished run's folder is only read, so it may hold anything
            folder.claim()
        runner = request.pool.runner(Limits(config.seconds, int(config.memory)))
        listing = list_source(request)
    inputs = table_hash(listing.items)
    if request.retry and not request.reuse and is_finished(request.out):
        raise UserError(f"the run in {places.shown(request.out)} is finished", command_for(request.out))
    if is_finished(request.out):
        manifest = _check_same_run(request, inputs, command_for)
        return CurationResult(
            manifest, request.out / parts.REPORT, listing.unreadable, True, time.monotonic() - start
        )
    with folder.lock(UNITS):
        if is_manifest(request.out):
            manifest = _check_same_run(request, inputs, command_for)
        else:
            manifest = _do_passes(request, runner, listing, inputs, command_for)
        report = _finish(manifest, folder)
    return CurationResult(manifest, report, listing.unreadable, False, time.monotonic() - start)


def _check_same_run(request: CurationRequest, inputs: str, command_for: OtherCommand) -> Manifest:
    """Return the manifest in OUT. Raises UserError unless this run would write the same."""
    manifest = Manifest.open(request.out)
    made, name = manifest.info.operation, manifest.name
    if made.get("kind") != "curate":
        raise UserError(
            f"{name} contains a manifest of another kind ({made.get('kind')})", "name another folder"
        )
    if made.get("fingerprint") != request.plan.fingerprint:
        raise UserError(f"{name} was made with another pipeline", command_for(request.out))
    if manifest.info.by_reference != request.by_reference:
        form = "by reference" if manifest.info.by_reference else "with rows of its own"
        raise UserError(f"{name} was made {form}", command_for(request.out))
    if made.get("inputs") != inputs:
        raise UserError(
            f"the files in {request.source.place} are not those that {name} was made from",
            command_for(request.out),
        )
    return manifest


def _do_passes(
    request: CurationRequest, runner: Runner, listing: Listing, inputs: str, command_for: OtherCommand
) -> Manifest:
    """Run all passes, and commit the manifest."""
    plan, folder = request.plan, request.out / UNITS
    operation = {
        "kind": "curate",
        "pipeline": plan.resolved(),
        "fingerprint": plan.fingerprint,
        "inputs": inputs,
    }
    described = run_file(plan, listing, inputs)
    try:
        _prepare(request, described)
        source = during_run(request.source, request.out, DOWNLOAD in request.retry)
        with (
            passes_run(plan, folder, listing.items, source, runner, described, request.retry) as finished,
            progress("commit", finished.rows, "rows") as advance,
        ):
            # of the run when it was unfinished
            (request.out / parts.REPORT).unlink(missing_ok=True)
            return commit(request.out, finished, listing, operation, request.parent(), advance)
    except PlanMismatch as mismatch:
        changed = (
            "was begun with another pipeline" if mismatch.changed == "work" else "was begun on other files"
        )
        raise UserError(f"the run in {shown(folder)} {changed}", command_for(request.out)) from None


def run_file(plan: CurationPlan, listing: Listing, inputs: str) -> RunFile:
    """Describe a run for those who read its parts. `inputs` is the hash of its items."""
    images, patches = stages_of(plan)
    return RunFile(
        fingerprint=plan.fingerprint,
        inputs=inputs,
        pipeline=plan.resolved(),
        images=images,
        patches=patches,
        stages=tuple(plan.stage_infos()),
        rules=tuple(funnel(plan)),
        root=path_text(listing.source.place),
        origin=listing.source.origin,
    )


def _prepare(request: CurationRequest, described: RunFile) -> None:
    """Collect the earlier results that the run may use. Raises PlanMismatch if the folder has another run."""
    units = request.out / UNITS
    if RunFile.exists(units):
        before = RunFile.read(units)
        if before.inputs != described.inputs:
            raise PlanMismatch("", None, "inputs")
        if before.fingerprint != described.fingerprint:
            if not request.retry or before.same_but_limits != described.same_but_limits:
                raise PlanMismatch("", None, "work")
            # the limits are others: all tasks are done again, and take over what is not to be retried
            of_units(units, units, before.fingerprint[:16], request.retry)
            numbers = itertools.takewhile(lambda number: UnitPlan.exists(units, number), itertools.count(1))
            # the last first: after a kill the same loop finds the others
            for number in reversed(list(numbers)):
                UnitPlan.open(units, number).remove()
    elif UnitPlan.exists(units):
        raise PlanMismatch("", None, "work")
    described.write(units)
    for path in request.reuse:
        take(path, units, request.retry)


def _finish(manifest: Manifest, folder: RunFolder) -> Path:
    """Write the report, then remove the units: without them the run counts as finished."""
    from uhr.manifests.report import write_report

    report = manifest.path / parts.REPORT
    if not report.exists():
        write_report(manifest, report)
    folder.clear(FETCHED, UNITS)  # UNITS last: without them the run counts as finished
    return report
