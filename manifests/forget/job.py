"""Forget samples: in every manifest of their chain, in exports and reports. A run that was killed is finished
by the same command.
"""

from __future__ import annotations

import contextlib
import datetime
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from uhr.base.config import build
from uhr.base.console import Advance, command
from uhr.base.errors import UserError
from uhr.base.files import json_bytes
from uhr.base.paths import in_store, text_path
from uhr.base.store import FolderStore, ObjectStore, Store
from uhr.manifests import places
from uhr.manifests.forget import exports
from uhr.manifests.forget.redact import Change, Encoded, Redactor, Sealed
from uhr.manifests.forget.reports import write_again
from uhr.manifests.forget.targets import (
    ForgetRequest,
    Remaining,
    Targets,
    chain_of,
    extend,
    first_targets,
    remaining,
)
from uhr.manifests.manifest import Manifest
from uhr.manifests.parts import JOURNAL


@dataclass(frozen=True)
class Forgotten:
    """What was taken out, or would be in a dry run.

    samples: their number, with crops and near-duplicates. manifests: by manifest, parents first. exports: the
    number of files by folder or address. reports: those elsewhere than beside their manifests, which are
    written again. checkpoints: those that were trained on data that had one of the
    samples; they are not changed. unread_checkpoints: those with a record that cannot be read, which may have
    been, too. remaining: other rows of the same author or address in manifests of the
    chain, which are left. caches: folders of this user's cache with copies, which are removed. other_caches:
    others on this machine that can be seen, such as those of other users; they are not looked into.
    """

    samples: int
    manifests: list[Change]
    exports: dict[str, int]
    reports: list[str]
    checkpoints: list[str]
    dry_run: bool
    remaining: list[Remaining]
    caches: list[str]
    other_caches: list[str]
    unread_checkpoints: list[str] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)


def forget(
    place: Path | str,
    request: ForgetRequest,
    below: Sequence[Path | str] = (),
    *,
    reason: str = "",
    dry_run: bool = False,
    encoded: tuple[Encoded, Sealed] | None = None,
    advance: Advance = lambda n=1, note=None, total=None: None,
) -> Forgotten:
    """Take samples out of the manifest at `place`, its parents, and all that was made from any of them.

    Images of the sources and checkpoints are not changed. Each changed manifest gets a new id, and records
    the one before, the time, `reason` and tombstones: hashes by which a rerun leaves the samples out.

    Args:
        below: folders and prefixes in which descendants, exports and runs are looked for too; otherwise only
            beside the manifests of the chain.
        encoded: what redacts encoded data.

    Raises UserError if a sample is not found, if another `forget` of the manifest was not finished, or if
    another command is writing to a manifest of the chain.
    """
    home = places.place_of(place)
    places.info_at(place)  # or it raises, before anything is written there
    store: Store = ObjectStore(home) if in_store(home) else FolderStore(str(text_path(home)))
    with contextlib.ExitStack() as locks:
        if not dry_run:
            locks.enter_context(places.locked(home))
        unfinished = _unfinished(store, request, home)
        # what is counted first is gone through again when it is taken out
        counted = advance if dry_run else _no_advance
        plan = unfinished or _planned(Manifest.open(place), request, below, reason, counted)
        targets = Targets(
            ids=set(plan["ids"]), hashes=set(plan["hashes"]), tombstones=set(plan["tombstones"])
        )
        changes = [Change(**change) for change in plan["manifests"]]
        if not dry_run:
            for change in changes:
                if change.path != home:
                    locks.enter_context(places.locked(change.path))
            if unfinished is None:
                _begin(store, plan)
            redactor = Redactor(targets, plan["time"], plan["reason"], encoded)
            reports = plan.get("reports", {})
            total = len(changes) + len(plan["exports"]) + len(reports)
            for number, change in enumerate(changes):
                advance(0, change.path, total)
                changes[number] = redactor.redact(change.path, change)
                advance(1)
            for export in plan["exports"]:
                advance(0, export)
                exports.redact(export, frozenset(targets.ids), plan["time"])
                advance(1)
            for report, manifest in reports.items():
                write_again(report, manifest)
                advance(1)
            store.delete(JOURNAL)
    return Forgotten(
        len(targets.ids),
        changes,
        plan["exports"],
        sorted(plan.get("reports", ())),
        plan["checkpoints"],
        dry_run,
        [Remaining(**each) for each in plan.get("remaining", ())],
        plan.get("caches", []),
        [str(folder) for folder in places.other_caches()],
        plan.get("unread_checkpoints", []),
        sorted(targets.ids),
    )


def _no_advance(n: int = 1, note: str | None = None, total: int | None = None) -> None:
    pass


def _planned(
    manifest: Manifest, request: ForgetRequest, below: Sequence[Path | str], reason: str, advance: Advance
) -> dict[str, Any]:
    """Return what is to be done, as the journal has it until it is done."""
    targets = first_targets(manifest, request)
    advance(0, "looks for what was made of them")
    chain = chain_of(manifest, below)
    opened = [Manifest.open(place) for place in chain.manifests]
    extend(targets, opened)
    redactor = Redactor(targets, "", "", None)
    changes = []
    advance(0, "", len(chain.manifests) + len(chain.exports))
    for place in chain.manifests:
        changes.append(redactor.would(place))
        advance(1)
    seen: set[str] = set()
    caches: set[Path] = set()
    for change in changes:
        if change.rows:
            before = {each.before for each in places.info_at(change.path).redactions} | {change.before}
            seen |= before
            caches.update(places.copies_of(change.path))
    ids = frozenset(targets.ids)
    files = {}
    for place in chain.exports:
        files[place] = len(exports.matching(place, ids))
        advance(1)
    return {
        "request": request.model_dump(mode="json"),
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds"),
        "reason": reason,
        "ids": sorted(targets.ids),
        "hashes": sorted(targets.hashes),
        "tombstones": sorted(targets.tombstones),
        "manifests": [asdict(change) for change in changes],
        "exports": {place: count for place, count in files.items() if count},
        "reports": {
            report: place
            for report, place in chain.reports.items()
            if place in {c.path for c in changes if c.rows}
        },
        "remaining": [asdict(each) for each in remaining(request, targets, opened)],
        "caches": sorted(map(str, caches)),
        "checkpoints": sorted(p for p, data in chain.checkpoints.items() if seen.intersection(data or ())),
        "unread_checkpoints": sorted(path for path, data in chain.checkpoints.items() if data is None),
    }


def _begin(store: Store, plan: dict[str, Any]) -> None:
    """Write the journal. Raises UserError if another process has written one to the bucket meanwhile."""
    data = json_bytes(plan)
    if not isinstance(store, ObjectStore):
        store.write(JOURNAL, data)
    elif not store.create(JOURNAL, data):
        raise UserError(f"another 'forget' is at work in {store.text}", "wait for it, or stop it")


def _unfinished(store: Store, request: ForgetRequest, home: str) -> dict[str, Any] | None:
    """Return the plan of a run of the same request that was not finished. Raises UserError if there is one of
    another request.
    """
    data = store.read(JOURNAL)
    if data is None:
        return None
    plan: dict[str, Any] = json.loads(data)
    if build(ForgetRequest, plan["request"], JOURNAL) != request:
        name, value = next((name, value) for name, value in plan["request"].items() if value is not None)
        value = ",".join(value) if name == "ids" else value
        line = command("manifest", "forget", home if in_store(home) else text_path(home), f"--{name}", value)
        raise UserError(f"{home}: an earlier 'forget' was not finished", f"finish it first with: {line}")
    return plan
