"""What a machine of a cluster must have to do the work of a segment: packages, weights, keys, the source."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from uhr.base.errors import UserError
from uhr.curate.planning.planned import PlannedStage
from uhr.manifests.sources.base import Source
from uhr.models.llm.chat import KEY
from uhr.pixels.types import PixelFault
from uhr.runtime.units import UnitPlan

TRIED = 64
"""How many items are tried until one can be read."""


@dataclass(frozen=True)
class Facts:
    """What the machine has where the run was started.

    weights and files: hashes by stage and name. secrets: names of environment variables that are set.
    item: one that can be read there; None if it must not be tried.
    """

    weights: Mapping[str, str]
    files: Mapping[str, str]
    secrets: tuple[str, ...] = ()
    item: Mapping[str, Any] | None = None


def facts_of(
    stages: Sequence[PlannedStage[Any]], source: Source | None = None, plan: UnitPlan | None = None
) -> Facts:
    """Return the facts of these stages on this machine, and an item of the plan that the source can read."""
    asks = any(getattr(planned.stage.params, "server", None) is not None for planned in stages)
    secrets = (KEY,) if asks and os.environ.get(KEY) else ()
    item = None
    # what a source fetches is fetched once, and not for a check
    if source is not None and plan is not None and plan.count and not source.fetches:
        items = plan.items(0).slice(0, TRIED).to_pylist()
        item = next((each for each in items if _fault(source, each) is None), None)
    return Facts(_hashes(stages, "weight_hashes"), _hashes(stages, "contents"), secrets, item)


def check(stages: Sequence[PlannedStage[Any]], facts: Facts, source: Source | None = None) -> None:
    """Raise UserError if this machine lacks what these stages or the source need."""
    for planned in stages:
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
        ("weights", _hashes(stages, "weight_hashes"), facts.weights),
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
        if facts.item is not None and (fault := _fault(source, facts.item)) is not None:
            raise UserError(
                f"{facts.item['uri']} of the source {source.place} cannot be read ({fault})",
                "mount the source there at the same path, or give it the credentials",
            )


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
