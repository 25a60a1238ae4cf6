"""What a machine of a cluster must have to do the work of a segment: packages, weights, keys, the source."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from uhr.base import hub
from uhr.base.errors import UserError
from uhr.curate.planning.planned import PlannedStage
from uhr.manifests.schema import SOURCE_NAME
from uhr.manifests.sources.base import Item, Source
from uhr.models.llm.chat import KEY
from uhr.models.scores.weights import Weights
from uhr.pixels.types import PixelFault
from uhr.runtime.units import TaskWork, UnitPlan

TRIED = 64
"""How many items are tried until one of each source can be read."""

UNITS = 8
"""How many units, at equal distances, are searched for such items."""

FETCH_SECONDS = 4 * 3600.0
"""Longest time until a machine has fetched the weights that it lacks from the hub or a store."""

HOSTS = 8
"""How many hosts of a source that fetches are contacted, until one answers."""


@dataclass(frozen=True)
class Facts:
    """What the machine has where the run was started.

    weights and files: hashes by stage and name. secrets: names of environment variables that are set.
    items: of each source one that can be read there. hosts: of each source that fetches, items from different
    hosts.
    """

    weights: Mapping[str, str]
    files: Mapping[str, str]
    secrets: tuple[str, ...] = ()
    items: tuple[Mapping[str, Any], ...] = ()
    hosts: tuple[Mapping[str, Any], ...] = ()


class MachineWork(TaskWork):
    """Work of stages that must find the same on every machine, and the source if it reads from that. All of
    its workers load the weights that the machine has on which it is made.
    """

    def __init__(self, stages: Sequence[PlannedStage[Any]], source: Source | None) -> None:
        self.stages = stages
        self.reads_from = source
        self.commits = commits(stages)

    def open(self) -> None:
        hub.pin(self.commits)

    def libraries(self) -> Collection[str]:
        return libraries(self.stages)

    def facts(self, plan: UnitPlan) -> Facts:
        return facts_of(self.stages, self.reads_from, plan)

    @property
    def check_seconds(self) -> float:
        fetches = any(weights.path is None for weights in _named(self.stages))
        return super().check_seconds + (FETCH_SECONDS if fetches else 0)

    def check(self, facts: Facts) -> None:
        hub.pin(self.commits)
        check(self.stages, facts, self.reads_from)


def facts_of(
    stages: Sequence[PlannedStage[Any]], source: Source | None = None, plan: UnitPlan | None = None
) -> Facts:
    """Return the facts of these stages on this machine, and items of the plan that the source can read."""
    asks = any(getattr(planned.stage.params, "server", None) is not None for planned in stages)
    secrets = (KEY,) if asks and os.environ.get(KEY) else ()
    items, hosts = ((), ()) if source is None or plan is None else _samples(source, plan)
    return Facts(_hashes(stages, "weight_hashes"), _hashes(stages, "contents"), secrets, items, hosts)


def _samples(source: Source, plan: UnitPlan) -> tuple[tuple[Item, ...], tuple[Item, ...]]:
    """Return `Facts.items` and `Facts.hosts`."""
    readable: dict[object, Item] = {}
    hosts: dict[object, dict[str, Item]] = {}
    tried = 0
    for unit in sorted({number * plan.count // UNITS for number in range(UNITS)} if plan.count else ()):
        for each in plan.items(unit).slice(0, TRIED).to_pylist():
            name = each.get(SOURCE_NAME.name)
            if source.fetches_item(each):
                # what a source fetches is fetched once, and not for a check
                lane, own = source.lane(each), hosts.setdefault(name, {})
                if lane is not None and each.get("fault") is None and len(own) < HOSTS:
                    own.setdefault(lane, each)
            elif name not in readable and tried < TRIED:
                tried += 1
                if _fault(source, each) is None:
                    readable[name] = each
    return tuple(readable.values()), tuple(item for own in hosts.values() for item in own.values())


def check(stages: Sequence[PlannedStage[Any]], facts: Facts, source: Source | None = None) -> None:
    """Raise UserError if this machine lacks what these stages or the source need. Weights of the hub and of
    object stores are fetched."""
    weights: dict[str, str] = {}
    for planned in stages:
        weights |= _fetched(planned)
        if (lack := planned.stage.missing()) is not None:
            raise UserError(f"stage '{planned.label}' cannot run: {lack}")
    for name in facts.secrets:
        if not os.environ.get(name):
            raise UserError(
                f"{name} is not set, which is where the run was started", "set it before Ray is started there"
            )
    for planned in stages:
        if (server := getattr(planned.stage.params, "server", None)) is not None:
            try:
                server.open().check_reachable()
            except UserError as error:
                raise UserError(f"stage '{planned.label}': {error.what}", error.fix) from None
    for what, mine, theirs in (
        ("weights", weights, facts.weights),
        ("file", _hashes(stages, "contents"), facts.files),
    ):
        for name, wanted in theirs.items():
            if mine.get(name) != wanted:
                raise UserError(
                    f"the {what} {name} has other content than where the run was started",
                    "copy it from there",
                )
    if source is not None:
        source.check()
        for item in facts.items:
            if (fault := _fault(source, item)) is not None:
                raise UserError(
                    f"{item['uri']} of the source {source.part(item).place} cannot be read ({fault})",
                    "mount the source there at the same path, or give it the credentials",
                )
        named: dict[object, list[Item]] = {}
        for item in facts.hosts:
            named.setdefault(item.get(SOURCE_NAME.name), []).append(item)
        for items in named.values():
            part = source.part(items[0])
            if (fault := part.contact(items)) is not None:
                what = f"nothing can be fetched for the source {part.place}: {fault}"
                raise UserError(what, "let this machine reach the hosts of the list")


def _named(stages: Sequence[PlannedStage[Any]]) -> Iterator[Weights]:
    for planned in stages:
        for text in planned.stage.weights().values():
            with contextlib.suppress(UserError):  # `missing` says so
                yield Weights.parse(text)


def commits(stages: Sequence[PlannedStage[Any]]) -> dict[str, str]:
    """Return the commits of the hub's repositories whose weights these stages load, by the names that
    `uhr.base.hub.pin` takes, as this machine has them.
    """
    found: dict[str, str] = {}
    for weights in _named(stages):
        if weights.repository is not None:
            commit = hub.commit_in_cache(weights.repository, weights.revision)
            if commit is not None:
                found[hub.name_of(weights.repository, weights.revision)] = commit
    return found


def _fetched(planned: PlannedStage[Any]) -> dict[str, str]:
    """Return the hashes of a stage's weights by stage and name; what is not on this machine is fetched."""
    try:
        return _hashes([planned], "weight_hashes")
    except UserError as error:
        raise UserError(f"stage '{planned.label}' cannot run: {error.what}", error.fix) from error


def libraries(stages: Sequence[PlannedStage[Any]]) -> Collection[str]:
    """Return the distributions of the packages that these stages need."""
    modules = {package.name for planned in stages for package in planned.stage.packages}
    if not modules:
        return ()
    owners = importlib.metadata.packages_distributions()
    return {owner for name in modules for owner in owners.get(name, ())}


def _fault(source: Source, item: Mapping[str, Any]) -> str | None:
    """Say why an item cannot be read; None if it can."""
    if item.get("fault") is not None:
        return str(item["fault"])
    try:
        blob = source.open(item)
        blob.at(0, min(1, blob.size))
    except PixelFault as fault:
        return fault.message
    return None


def _hashes(stages: Sequence[PlannedStage[Any]], method: str) -> dict[str, str]:
    return {
        f"{planned.label}/{name}": found
        for planned in stages
        for name, found in getattr(planned.stage, method)().items()
    }
