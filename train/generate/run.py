"""A set of pictures, from the first check to its index; killed anywhere, the same command goes on.

OUT is a folder or a prefix of an object store:

    request.json     what this is a set of; stands before anything is painted
    refined/         answers of the server that rewrites prompts
    pictures/        NAME.png and NAME.json; an item is done when its JSON stands, whoever wrote it
    failed/          NAME.json of what could not be made; tried again by the next run
    set.parquet      a row per item
    set.json         last

What a run notes down for itself (its lock, its units) is in OUT/work, or for an object store in the user's
cache, and gone when it ends.
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
from uhr.base.lock import NAME as LOCK
from uhr.base.run_folder import Layout, RunFolder
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
from uhr.train.generate.team import beginning, is_remote, threads_of
from uhr.train.generate.work import (
    FAILED,
    IMAGES,
    REQUEST,
    PaintWork,
    failure,
    failure_name,
    image_name,
    items_table,
    record_name,
)

UNITS = "units"

LAYOUT = Layout(
    "the set",
    (REQUEST, ANSWERS, IMAGES, FAILED, index.INDEX, index.FILE, "work"),
    (REQUEST, "work"),
)
WORK = Layout("notes of a run", (UNITS, LOCK), (UNITS, LOCK), {UNITS: or_half_written(units.FILES)})
"""What a run notes down for itself while it works (`Store.work_folder`)."""

MOST_UNITS = 10_000
"""Below that a unit is one image: whoever is free takes the next one."""


@dataclass(frozen=True)
class Order:
    """What the user asked for; `runner` does it.

    `images`: the folder that the entries come from, if they come from one. What does not pass the check
    counts as failed then; a mistake in a file of prompts ends the run before it begins. `left_out`: how much
    of the source gave no entry, by kind. `fresh` says how to make this set elsewhere.
    """

    request: Request
    entries: Sequence[Entry]
    out: str
    fresh: Callable[[str], str]
    runner: Runner
    refinement: Refinement | None = None
    previews: Path | None = None
    images: Path | None = None
    left_out: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What came of it. `before`: nothing was left to do."""

    out: str
    info: SetInfo
    before: bool
    first_error: str | None

    def facts(self) -> dict[str, Any]:
        """For machines."""
        return {"out": self.out, "finished_before": self.before, **self.info.model_dump(mode="json")}


def generate(order: Order) -> Outcome:
    """Make a set, or what is left of it. UserError for whatever can be known before weights are loaded, an
    OUT of another set or another kind, another run at work in it, and a store that fails.
    """
    store = open_store(order.out)
    _refuse_strangers(store)
    _keep_apart(order, store)
    setup = Setup.of(_checkable(order))
    for note in setup.notes:
        warn(note)
    request = identity.settled(order.request, setup)
    runner = order.runner
    checked = _check(order, setup)
    items = [entry.item for entry in order.entries]
    versions = {path: image.version for path, image in checked.images.items()}
    asked = identity.identify(request, setup, threads_of(runner), items, order.refinement, versions)
    if isinstance(store, FolderStore):
        RunFolder(store.folder, LAYOUT).claim()
    work = RunFolder(store.work_folder(), WORK)
    fix = "make room there; the same command goes on where it stopped"
    with saving(work.path, fix), work.lock(where=store.text):
        try:
            asked = identity.take(store, asked, order.fresh(order.out))
            names = store.names()
            found = index.read_set(store)
            if found is not None and not found.counts["failed"] and not _undone(items, names):
                return Outcome(order.out, found, True, None)
            _tell_threads(store, asked, threads_of(runner))
            _paint(order, asked, store, names, runner, checked)
            with progress("index", len(items), "images") as advance:
                info, error = index.finish(store, asked, items, order.left_out, advance)
        finally:
            work.clear(UNITS)
    return Outcome(order.out, info, False, error)


def _tell_threads(store: Store, asked: SetRequest, threads: int) -> None:
    """A set keeps the number of threads that it was begun with, whatever this run was given."""
    if asked.threads is not None and asked.threads != threads:
        kept = counted(asked.threads, "thread")
        why = "with others the last bits of an image may differ"
        warn(f"{store.text} was begun with {kept} for each worker and keeps that number: {why}")


def _refuse_strangers(store: Store) -> None:
    """Before anything long: nothing is written where something else stands."""
    if isinstance(store, FolderStore):
        RunFolder(store.folder, LAYOUT).check()
    else:
        LAYOUT.check_names(store.text, {name.partition("/")[0] for name in store.names()})


def _keep_apart(order: Order, store: Store) -> None:
    """What is written must not be read as a given image by the next run, nor previews stand in the way of
    the set."""
    out = store.folder if isinstance(store, FolderStore) else None
    for name, place in (("--out", out), ("--previews", order.previews)):
        if place is not None and order.images is not None and _is_below(place, order.images):
            what = f"{name} {place} is in the folder of given images, {order.images}"
            raise UserError(what, "name a folder beside it: what is written there would be taken for given")
    if out is not None and order.previews is not None and _is_below(order.previews, out):
        raise UserError(f"--previews {order.previews} is in --out {out}", "name a folder beside it")


def _is_below(place: Path, folder: Path) -> bool:
    """Whether `place` is `folder` or in it, whatever both are called."""
    return user_path(place).resolve().is_relative_to(user_path(folder).resolve())


def _checkable(order: Order) -> Request:
    """The request as far as this machine can judge it: a cluster may have the GPU that is missing here."""
    import torch

    if (
        not is_remote(order.runner)
        or not order.request.device.startswith("cuda")
        or torch.cuda.is_available()
    ):
        return order.request
    return order.request.model_copy(update={"device": "cpu", "offload": None, "quantize": None})


class _Image(NamedTuple):
    """The bytes of an image that was opened (`Given.version` and `Given.sha256`)."""

    version: str
    sha256: str


class _Checked(NamedTuple):
    """`refused`: by name, what is wrong with an item. `images`: by path, what was opened."""

    refused: dict[str, str]
    images: dict[Path, _Image]


def _check(order: Order, setup: Setup) -> _Checked:
    """Every item. A UserError tells the places of those that cannot be made, of many the first few; of a
    folder of images they are refused by name, as long as there are others.
    """
    refused: dict[str, str] = {}
    images: dict[Path, _Image] = {}
    mistakes: list[UserError] = []
    # by kind, the names of previews
    kinds: dict[Any, list[str]] = {}
    with progress("check", len(order.entries), "items") as advance:
        for entry in order.entries:
            item = entry.item
            kind = (item.image, item.size, item.negative is None)
            try:
                # nothing but these can be wrong
                if kind not in kinds:
                    call = setup.call(item)
                    kinds[kind] = [] if order.previews is None else setup.preview_names(call)
                    if item.image is not None and call.given is not None:
                        images.setdefault(item.image, _Image(call.given.version, call.given.sha256))
                if order.previews is not None:
                    files = stage_files(order.previews, item.name, kinds[kind])
                    check_stages(files, item.image)
            except UserError as error:
                what = error.what if entry.where in error.what else f"{entry.where}: {error.what}"
                told = UserError(what, error.fix)
                mistakes.append(told)
                refused[item.name] = str(told)
            advance()
    if mistakes and order.images is None:
        raise combined(mistakes)
    if len(refused) == len(order.entries):
        words = next(iter(refused.values()))
        raise UserError(f"none of the {len(refused)} images can be used; the first: {words}")
    return _Checked(refused, images)


def _paint(
    order: Order,
    asked: SetRequest,
    store: Store,
    names: set[str],
    runner: Runner,
    checked: _Checked,
) -> None:
    """Whatever is not done and can be: prompts first, all of them, then images."""
    items, refused = [entry.item for entry in order.entries], checked.refused
    for item in items:
        if item.name in refused:
            store.write(failure_name(item.name), failure(item.name, item.prompt, refused[item.name]))
    left = [item for item in _undone(items, names) if item.name not in refused]
    if left and order.refinement is not None:
        left = _refined(left, order.refinement, store, names)
    if not left:
        return
    RunFolder(store.work_folder(), WORK).clear(UNITS)
    hashes = {path: image.sha256 for path, image in checked.images.items()}
    table = items_table(left, [failure_name(item.name) in names for item in left], hashes)
    plan = UnitPlan.create(store.work_folder() / UNITS, table, -(-len(left) // MOST_UNITS), "paint")
    out = str(store.folder.absolute()) if isinstance(store, FolderStore) else store.text
    previews = order.previews and order.previews.absolute()
    work = PaintWork(asked.request, out, previews, asked.threads)
    with _own_threads(), progress("paint", len(items), "images") as advance:
        if len(items) > len(left):
            advance(len(items) - len(left), f"{len(items) - len(left)} were done or refused before")
        advance(0, beginning(runner))
        run_units(plan, work, runner, advance, lambda unit: "")


@contextlib.contextmanager
def _own_threads() -> Generator[None]:
    """This process's number of threads, whatever it is in the block: work may be done in this process."""
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
