"""Generates a set of images, from the first check to the index. A killed run can be repeated to resume.

OUT is a folder or a prefix of an object store:

    request.json     the identity of the set, written before anything is generated
    refined/         answers of the server that rewrites prompts
    pictures/        NAME.png and NAME.json; an item is done when its JSON exists
    failed/          NAME.json of items that failed; the next run tries them again
    set.parquet      a row per item
    set.json         written last

The temporary state of a run (lock and units) is in OUT/work, or for an object store in the user's cache. It
is removed at the end.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from uhr.base.console import counted, progress, warn
from uhr.base.errors import UserError, combined
from uhr.base.files import or_half_written, saving, user_path
from uhr.base.locks.run_lock import NAME as LOCK
from uhr.base.run_folder import FolderLayout, RunFolder
from uhr.base.store import FolderStore, Store, open_store
from uhr.models.generate.record import check_stages, stage_files
from uhr.models.generate.request import Item, Request
from uhr.models.generate.setup import Setup
from uhr.models.llm.refine import Refinement
from uhr.runtime import units
from uhr.runtime.units import Runner, UnitPlan, run_units
from uhr.train.generate import identity, index
from uhr.train.generate.identity import SetRequest
from uhr.train.generate.index import SetInfo
from uhr.train.generate.items import Entry
from uhr.train.generate.refining import ANSWERS, refine_all
from uhr.train.generate.work import (
    FAILED,
    IMAGES,
    REQUEST,
    GenerateWork,
    failure,
    failure_name,
    image_name,
    items_table,
    record_name,
)
from uhr.train.generate.workers import is_remote, startup_note, threads_of

UNITS = "units"

LAYOUT = FolderLayout(
    "the set",
    (REQUEST, ANSWERS, IMAGES, FAILED, index.INDEX, index.FILE, "work"),
    (REQUEST, "work"),
)
WORK = FolderLayout("the state of a run", (UNITS, LOCK), (UNITS, LOCK), {UNITS: or_half_written(units.FILES)})
"""The layout of a run's temporary state (`Store.work_folder`)."""

MOST_UNITS = 10_000
"""Up to this many items, each unit is one image, which balances the load of workers best."""


@dataclass(frozen=True)
class SetJob:
    """What to generate, and by which runner.

    images: the folder that the entries come from, if any. With such a folder, items that fail the check count
        as failed; without one, a mistake in the file of prompts ends the run.
    left_out: how much of the source gave no entry, by kind.
    costs: whether seconds and memory of each image are recorded. Its record then differs each time.
    other_out: returns the fix of an error if OUT, its argument, belongs to another set.
    """

    request: Request
    entries: Sequence[Entry]
    out: str
    other_out: Callable[[str], str]
    runner: Runner
    refinement: Refinement | None = None
    previews: Path | None = None
    images: Path | None = None
    left_out: Mapping[str, int] = field(default_factory=dict)
    costs: bool = False


@dataclass(frozen=True)
class SetResult:
    """The result of a run. `finished_before`: the set was complete already, and nothing was generated."""

    out: str
    info: SetInfo
    finished_before: bool
    first_error: str | None

    def facts(self) -> dict[str, Any]:
        """The result for `--json`."""
        return {"out": self.out, "finished_before": self.finished_before, **self.info.model_dump(mode="json")}


def generate(job: SetJob) -> SetResult:
    """Generate a set, or what is missing of it.

    Raises UserError for every mistake that can be found before weights are loaded, if OUT contains another
    set or anything else, if another run works in it, or if the store fails.
    """
    store = open_store(job.out)
    _check_names(store)
    _keep_apart(job, store)
    setup = Setup.of(_checkable_here(job))
    for note in setup.notes:
        warn(note)
    request = identity.settled(job.request, setup)
    runner = job.runner
    checked = _check(job, setup)
    items = [entry.item for entry in job.entries]
    versions = {path: image.version for path, image in checked.images.items()}
    requested = identity.identify(request, setup, threads_of(runner), items, job.refinement, versions)
    if isinstance(store, FolderStore):
        RunFolder(store.folder, LAYOUT).claim()
    work = RunFolder(store.work_folder(), WORK)
    fix = "free space there; the same command resumes where it stopped"
    with saving(work.path, fix), work.lock(where=store.text):
        try:
            requested = identity.begin_or_resume(store, requested, job.other_out(job.out))
            store.remove_half_written()
            names = store.names()
            found = index.read_set(store)
            if found is not None and not found.counts["failed"] and not _undone(items, names):
                return SetResult(job.out, found, True, None)
            _warn_of_threads(store, requested, threads_of(runner))
            _generate(job, requested, store, names, runner, checked)
            with progress("index", len(items), "images") as advance:
                info, error = index.finish(store, requested, items, job.left_out, advance)
        finally:
            work.clear(UNITS)
    return SetResult(job.out, info, False, error)


def _warn_of_threads(store: Store, requested: SetRequest, threads: int) -> None:
    """Warn that a set keeps the number of threads with which it was begun."""
    if requested.threads is not None and requested.threads != threads:
        kept = counted(requested.threads, "thread")
        why = "with others the last bits of an image may differ"
        warn(f"{store.text} was begun with {kept} for each worker and keeps that number: {why}")


def _check_names(store: Store) -> None:
    """Raise UserError if the store contains anything but a set."""
    if isinstance(store, FolderStore):
        RunFolder(store.folder, LAYOUT).check()
    else:
        LAYOUT.check_names(store.text, {name.partition("/")[0] for name in store.names()})


def _keep_apart(job: SetJob, store: Store) -> None:
    """Raise UserError if outputs would be read as input images by the next run, or previews are in OUT."""
    out = store.folder if isinstance(store, FolderStore) else None
    for name, place in (("--out", out), ("--previews", job.previews)):
        if place is not None and job.images is not None and _is_below(place, job.images):
            what = f"{name} {place} is in the folder of given images, {job.images}"
            raise UserError(what, "name a folder next to it: outputs there would be read as given images")
    if out is not None and job.previews is not None and _is_below(job.previews, out):
        raise UserError(f"--previews {job.previews} is in --out {out}", "name a folder next to it")


def _is_below(place: Path, folder: Path) -> bool:
    """Whether `place` is `folder` or in it, with links resolved."""
    return user_path(place).resolve().is_relative_to(user_path(folder).resolve())


def _checkable_here(job: SetJob) -> Request:
    """The request without what this machine cannot check: a cluster may have the GPU that is missing here."""
    import torch

    if not is_remote(job.runner) or not job.request.device.startswith("cuda") or torch.cuda.is_available():
        return job.request
    return job.request.model_copy(update={"device": "cpu", "offload": None, "quantize": None})


class _Image(NamedTuple):
    """Version and hash of an input image that was opened."""

    version: str
    sha256: str


class _Checked(NamedTuple):
    """The result of the check.

    refused: by name, the error of an item. images: by path, the input images that were opened.
    """

    refused: dict[str, str]
    images: dict[Path, _Image]


def _check(job: SetJob, setup: Setup) -> _Checked:
    """Check every item.

    Raises UserError with the locations of the first few that are invalid. Items of a folder of images are
    only refused by name, unless all are.
    """
    refused: dict[str, str] = {}
    images: dict[Path, _Image] = {}
    mistakes: list[UserError] = []
    # the names of previews by kind
    kinds: dict[Any, list[str]] = {}
    with progress("check", len(job.entries), "items") as advance:
        for entry in job.entries:
            item = entry.item
            kind = (item.image, item.size, item.negative is None)
            try:
                # items of one kind pass or fail the check together
                if kind not in kinds:
                    call = setup.call(item)
                    kinds[kind] = [] if job.previews is None else setup.preview_names(call)
                    if item.image is not None and call.given is not None:
                        images.setdefault(item.image, _Image(call.given.version, call.given.sha256))
                if job.previews is not None:
                    files = stage_files(job.previews, item.name, kinds[kind])
                    check_stages(files, item.image)
            except UserError as error:
                what = error.what if entry.where in error.what else f"{entry.where}: {error.what}"
                mistakes.append(UserError(what, error.fix))
                refused[item.name] = str(mistakes[-1])
            advance()
    if mistakes and job.images is None:
        raise combined(mistakes)
    if len(refused) == len(job.entries):
        first = next(iter(refused.values()))
        raise UserError(f"none of the {len(refused)} images can be used; the first: {first}")
    return _Checked(refused, images)


def _generate(
    job: SetJob,
    requested: SetRequest,
    store: Store,
    names: set[str],
    runner: Runner,
    checked: _Checked,
) -> None:
    """Generate the items that are not done and not refused: first rewrite all prompts, then make images."""
    items, refused = [entry.item for entry in job.entries], checked.refused
    for item in items:
        if item.name in refused:
            store.write(failure_name(item.name), failure(item.name, item.prompt, refused[item.name]))
    left = [item for item in _undone(items, names) if item.name not in refused]
    if left and job.refinement is not None:
        left = _refined(left, job.refinement, store, names)
    if not left:
        return
    RunFolder(store.work_folder(), WORK).clear(UNITS)
    hashes = {path: image.sha256 for path, image in checked.images.items()}
    table = items_table(left, [failure_name(item.name) in names for item in left], hashes)
    # "paint" is in the fingerprint of units that are resumed: do not reword
    plan = UnitPlan.create(store.work_folder() / UNITS, table, -(-len(left) // MOST_UNITS), "paint")
    out = str(store.folder.absolute()) if isinstance(store, FolderStore) else store.text
    previews = job.previews and job.previews.absolute()
    work = GenerateWork(requested.request, out, previews, requested.threads, job.costs)
    with _own_threads(), progress("generate", len(items), "images") as advance:
        if len(items) > len(left):
            advance(len(items) - len(left), f"{len(items) - len(left)} were done or refused before")
        advance(0, startup_note(runner))
        run_units(plan, work, runner, advance, lambda unit: "")


@contextlib.contextmanager
def _own_threads() -> Generator[None]:
    """Restore this process's number of threads after the block, in which work may change it."""
    import torch

    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _undone(items: Sequence[Item], names: set[str]) -> list[Item]:
    return [item for item in items if not {record_name(item.name), image_name(item.name)} <= names]


def _refined(items: list[Item], refinement: Refinement, store: Store, names: set[str]) -> list[Item]:
    refiner = refinement.open()
    with progress("refine", len({item.prompt for item in items}), "prompts") as advance:
        refined, silent = refine_all(items, refiner, store, names, advance)
    for item in items:
        if item.prompt in silent:
            store.write(failure_name(item.name), failure(item.name, item.prompt, silent[item.prompt]))
    return refined
