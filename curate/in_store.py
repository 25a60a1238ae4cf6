"""A run whose OUT is a prefix of an object store (`s3://bucket/prefix`).

It works in a folder of the user's cache, as a run into a folder does. Its units are mirrored below
`OUT/units`, where workers of other machines put their parts, so that another machine can go on with it or
show its status. The manifest is put there at the end, `manifest.json` last and on the condition that there is
none. A lease lets one run at a time work on it.

The files in OUT show its state, as in a folder: `units/` alone; `manifest.json` and `units/` (only clearing
up is left); `manifest.json` alone.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from uhr.base.console import progress
from uhr.base.errors import UserError
from uhr.base.locks import lease
from uhr.base.store import ObjectStore
from uhr.curate.run.commit import FETCHED, UNITS
from uhr.curate.run.job import CurationRequest, CurationResult, OtherCommand, run
from uhr.curate.run.status import status_of
from uhr.manifests import parts, places
from uhr.manifests.info import FILE
from uhr.manifests.manifest import Manifest
from uhr.manifests.sources.base import check_no_overlap
from uhr.runtime.mirror import Mirror


@dataclass(frozen=True)
class RunInStore:
    """A run into the prefix `address`. `seconds`: how long its lease lasts without being renewed."""

    address: str
    seconds: float = lease.SECONDS

    def run(self, request: CurationRequest, command_for: OtherCommand) -> CurationResult:
        """Do the run of `request`, whose `out` is not used, or resume it.

        Raises UserError as `job.run` does, and if another run holds the lease.
        """
        store = ObjectStore(self.address)
        self._check(store, request)

        def other(_: Path) -> str:
            return command_for(Path(self.address))

        if store.exists(FILE) and not self._units(store):
            return run(replace(request, out=places.local(self.address)), other)
        start = time.monotonic()
        with lease.held(store, self.seconds):
            if store.exists(FILE):
                # only clearing up is left
                result = run(replace(request, out=places.local(self.address)), other)
            else:
                result = self._work(store, request, other)
            self._clear(store)
        return replace(result, finished_before=False, seconds=time.monotonic() - start)

    def _work(self, store: ObjectStore, request: CurationRequest, other: OtherCommand) -> CurationResult:
        folder = work_folder(store)
        if not self._units(store):
            # what is here is of another run
            shutil.rmtree(folder, ignore_errors=True)
        Mirror.begin(folder / UNITS, f"{store.text}/{UNITS}")
        result = run(replace(request, out=folder), other)
        with progress("upload", None, "files") as advance:
            store.upload(result.report, parts.REPORT)
            advance()
            manifest = Manifest.open(places.publish(self.address, folder))
            advance(len(places.all_parts(manifest.info)))
        shutil.copyfile(result.report, report := manifest.path / parts.REPORT)
        shutil.rmtree(folder)
        return replace(result, manifest=manifest, report=report)

    def _check(self, store: ObjectStore, request: CurationRequest) -> None:
        check_no_overlap(request.source, store.text)
        if store.text in request.reuse:
            raise UserError(f"--reuse {store.text} is the prefix of this run", "name another --out")

    def _units(self, store: ObjectStore) -> set[str]:
        return {name for name in store.names() if name.startswith(f"{UNITS}/")}

    def _clear(self, store: ObjectStore) -> None:
        """Remove what was fetched, then the units: without them the run counts as finished."""
        fetched = {name for name in store.names() if name.startswith(f"{FETCHED}/")}
        for name in (*sorted(fetched), *sorted(self._units(store))):
            store.delete(name)


def work_folder(store: ObjectStore) -> Path:
    """Return the folder of this machine in which a run into a prefix works."""
    return store.work_folder() / "curate"


def status_in_store(address: str) -> dict[str, Any]:
    """Return what `status_of` does of a run in a store, with the `holder` of its lease and `until` when.

    What is new in the store since the last call is fetched.
    """
    store = ObjectStore(address)
    claim = lease.claim_at(store)
    running = claim is not None and not claim.is_over
    who = {"holder": claim.holder, "until": claim.time} if claim is not None and running else {}
    names = {name.partition("/")[0] for name in store.names()}
    if FILE in names:
        found = status_of(places.local(address))
        state = "finished" if UNITS not in names else "running" if running else "committed"
        return {**found, "out": address, "state": state, **who}
    if UNITS not in names and not running:
        raise UserError(f"{address} contains no run", "name the prefix that `uhr curate run --out` writes to")
    folder = store.work_folder() / "status"
    (folder / UNITS).mkdir(parents=True, exist_ok=True)
    Mirror(folder / UNITS, f"{store.text}/{UNITS}").pull()
    return {**status_of(folder, running), "out": address, **who}
