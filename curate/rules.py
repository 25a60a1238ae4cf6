"""Rules: named SQL booleans over columns, the only thing that rejects a sample."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import duckdb
import pyarrow as pa

from uhr.base.errors import UserError, one_line
from uhr.curate.faults import KINDS, NO_VALUE, RULE_ERROR
from uhr.manifests import sql
from uhr.manifests.schema import FAILED, REJECTED


@dataclass(frozen=True)
class Rule:
    """Keeps the samples for which `condition` is true.

    `null` is what becomes of a sample on which the condition is null: fail, reject or keep. The rule of a
    `channel` decides only whether that channel accepts the sample.
    """

    name: str
    condition: sql.SqlCondition
    null: str = "fail"
    channel: str | None = None

    @classmethod
    def parse(cls, name: str, text: str, null: str = "fail", channel: str | None = None) -> Rule:
        """Make a rule from its name and its SQL.

        Raises UserError if `name` is a kind of fault, or if `text` is not a condition.
        """
        if name in KINDS:
            raise UserError(
                f"rule '{name}' has the name of a kind of fault",
                "rename it: `reason` could mean the rule or the fault",
            )
        return cls(name, sql.SqlCondition.parse(text, f"rule '{name}'"), null, channel)

    def key(self) -> list[str]:
        """Return what the rule is for fingerprints: name, condition, and what is not the default."""
        more = [self.null] if self.null != "fail" else []
        return [self.name, self.condition.text, *more, *([f"channel {self.channel}"] if self.channel else [])]


class Verdict(NamedTuple):
    """The final status of a sample, the reason (a rule's name or a kind of fault), and the error message if
    it failed.
    """

    status: str
    reason: str
    error: str | None


RuleValue = bool | None | str
"""The value of a rule for one row: true, false, null, or the message of the error that it raised."""


@dataclass
class RuleCounts:
    """By rule: the number of rows that reached it, and for the rules of channels, those that lost the channel
    by it."""

    seen: dict[str, int] = field(default_factory=dict)
    lost: dict[str, int] = field(default_factory=dict)


class Ruling(NamedTuple):
    """What some rules decide about one row: its verdict if it has one now, the channels that still accept it,
    and the names of the rules that reject it.
    """

    verdict: Verdict | None
    channels: list[str] | None = None
    rejected_by: tuple[str, ...] = ()


class Judge:
    """Evaluates rules over rows, all rules in one query. One per process: it keeps a connection open.

    channels: the names of all channels; none if there are no channels.
    all_rules: whether the rules after the one that rejects a row are evaluated too.
    """

    def __init__(self, schema: pa.Schema, channels: Sequence[str] = (), all_rules: bool = False) -> None:
        self._schema = schema
        self._channels = list(channels)
        self._all_rules = all_rules
        self._connection = sql.connect(threads=1)
        self._sql: dict[str, str] = {}

    def rulings(
        self, rules: Sequence[Rule], rows: Sequence[Mapping[str, Any]], counts: RuleCounts
    ) -> list[Ruling]:
        """Return for each row what the first rule that is not true decides, and add to `counts`."""
        values = self.evaluate(rules, rows)
        return [self._ruling(rules, row, found, counts) for row, found in zip(rows, values, strict=True)]

    def evaluate(
        self, rules: Sequence[Rule], rows: Sequence[Mapping[str, Any]]
    ) -> list[tuple[RuleValue, ...]]:
        """Return the value of every rule for every row."""
        if not rules or not rows:
            return [() for _ in rows]
        try:
            return self._query(rules, rows)
        except duckdb.Error as error:
            if len(rows) == 1 and len(rules) == 1:
                return [(one_line(error),)]
        # a value of the batch does not convert: evaluate one by one, so that only its own row fails
        return [tuple(self.evaluate([rule], [row])[0][0] for rule in rules) for row in rows]

    def _query(self, rules: Sequence[Rule], rows: Sequence[Mapping[str, Any]]) -> list[tuple[RuleValue, ...]]:
        names = (
            sorted(frozenset().union(*(rule.condition.columns for rule in rules))) or self._schema.names[:1]
        )
        arrays = [pa.array([row.get(n) for row in rows], self._schema.field(n).type) for n in names]
        self._connection.register("samples", pa.table(arrays, names=names))
        try:
            chosen = ", ".join(f"{self._sql_of(rule.condition)} AS v{i}" for i, rule in enumerate(rules))
            return self._connection.execute(f"SELECT {chosen} FROM samples").fetchall()
        finally:
            self._connection.unregister("samples")

    def _sql_of(self, condition: sql.SqlCondition) -> str:
        """Return the condition as SQL over the registered rows. Cached: column types never change."""
        if condition.text not in self._sql:
            self._sql[condition.text] = condition.sql_for(self._connection)
        return self._sql[condition.text]

    def _ruling(
        self, rules: Sequence[Rule], row: Mapping[str, Any], values: Sequence[RuleValue], counts: RuleCounts
    ) -> Ruling:
        channels = row.get("channels")
        left = list(self._channels) if channels is None else list(channels)
        verdict: Verdict | None = None
        rejected_by: list[str] = []
        for rule, value in zip(rules, values, strict=True):
            if rule.channel is not None and rule.channel not in left:
                # a stage of that channel has not seen the row: a null says nothing
                if self._all_rules and value is False:
                    rejected_by.append(rule.name)
                continue
            counts.seen[rule.name] = counts.seen.get(rule.name, 0) + 1
            found = _of_value(rule, row, value)
            if found is None:
                continue
            if found.status == REJECTED:
                rejected_by.append(rule.name)
                if rule.channel is not None:
                    counts.lost[rule.name] = counts.lost.get(rule.name, 0) + 1
                    left.remove(rule.channel)
                    if left:
                        continue
            verdict = verdict or found
            if not self._all_rules or found.status == FAILED:
                break
        return Ruling(verdict, left if self._channels else None, tuple(rejected_by))


def _of_value(rule: Rule, row: Mapping[str, Any], value: RuleValue) -> Verdict | None:
    """Return the verdict that a rule's value gives a row; None if the rule keeps it."""
    if value is True or (value is None and rule.null == "keep"):
        return None
    if value is False or (value is None and rule.null == "reject"):
        return Verdict(REJECTED, rule.name, None)
    if value is None:
        return Verdict(FAILED, NO_VALUE, null_message(rule, row))
    return Verdict(FAILED, RULE_ERROR, f"rule '{rule.name}' ({rule.condition.text}): {value}")


COMPUTED = "it is null, as a division by 0 is, or any other result that is not finite"


def null_message(rule: Rule, row: Mapping[str, Any]) -> str:
    """Say why a rule was null: a column has no value, or the computed result is not finite."""
    nulls = sorted(name for name in rule.condition.columns if _has_no_value(row.get(name)))
    columns = f"column{'s' if len(nulls) > 1 else ''} {', '.join(nulls)}"
    why = f"{columns} {'have' if len(nulls) > 1 else 'has'} no value" if nulls else COMPUTED
    return f"rule '{rule.name}' ({rule.condition.text}): {why}"


def _has_no_value(value: Any) -> bool:
    return value is None or (isinstance(value, float) and not math.isfinite(value))
