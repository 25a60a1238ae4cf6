"""Channels that are left out of a plan, because a rule that they require cannot be evaluated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from uhr.base.errors import UserError
from uhr.curate.config import PipelineConfig, RuleEntry, own_sources
from uhr.curate.planning.placement import Skipped
from uhr.curate.rules import Rule


class IdleRule(NamedTuple):
    """A rule that cannot be evaluated here, and the reason."""

    name: str
    where: str
    why: str


def closed_channels(
    config: PipelineConfig, skipped: Sequence[Skipped]
) -> tuple[tuple[str, ...], list[IdleRule]]:
    """Return the channels that have a required rule over a column of a skipped stage, and their rules.

    Raises UserError if such a channel has sources of its own, or if none is left.
    """
    absent = {name: stage for stage in skipped for name in stage.adds}
    closed: list[str] = []
    idle: list[IdleRule] = []
    for channel, rules in config.channels.items():
        for name, entry in rules.items():
            if isinstance(entry, str) or not entry.required:
                continue
            columns = Rule.parse(name, entry.where).condition.columns
            lacking = next((absent[column] for column in sorted(columns) if column in absent), None)
            if lacking is None:
                continue
            what = f"channel '{channel}' requires rule '{name}': stage '{lacking.label}' was skipped"
            if own_sources(channel) in rules or len(closed) + 1 == len(config.channels):
                raise UserError(f"{what} ({lacking.why})", "name its model, or remove the channel")
            closed.append(channel)
            idle += [IdleRule(rule, _where(rules[rule]), f"{what}: {lacking.why}") for rule in rules]
            break
    return tuple(closed), idle


def _where(entry: str | RuleEntry) -> str:
    return entry if isinstance(entry, str) else entry.where
