"""Rules: named SQL booleans over columns, the only thing that rejects a sample."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import duckdb
import pyarrow as pa

from uhr.base.errors import UserError, one_line
from uhr.curate.faults import KINDS, NO_VALUE, RULE_ERROR
from uhr.manifests import sql
from uhr.manifests.schema import FAILED, REJECTED


@dataclass(frozen=True)
class Rule:
    """Keeps the samples for which `condition` is true."""

    name: str
    condition: sql.SqlCondition

    @classmethod
    def parse(cls, name: str, text: str) -> Rule:
        """Make a rule from its name and its SQL.

        Raises UserError if `name` is a kind of fault, or if `text` is not a condition.
        """
        if name in KINDS:
            raise UserError(
                f"rule '{name}' has the name of a kind of fault",
                "rename it: `reason` could mean the rule or the fault",
            )
        return cls(name, sql.SqlCondition.parse(text, f"rule '{name}'"))


class Verdict(NamedTuple):
    """The final status of a sample, the reason (a rule's name or a kind of fault), and the error message if
    it failed.
    """

    status: str
    reason: str
    error: str | None


RuleValue = bool | None | str
"""The value of a rule for one row: true, false, null, or the message of the error that it raised."""


class Judge:
    """Evaluates rules over rows, all rules in one query. One per process: it keeps a connection open."""

    def __init__(self, schema: pa.Schema) -> None:
        self._schema = schema
        self._connection = sql.connect(threads=1)
        self._sql: dict[str, str] = {}

    def verdicts(
        self, rules: Sequence[Rule], rows: Sequence[Mapping[str, Any]], seen: dict[str, int]
    ) -> list[Verdict | None]:
        """Return for each row the verdict of the first rule that is not true; None if all rules are.

        Adds to `seen` the number of rows that reached each rule.
        """
        values = self.evaluate(rules, rows)
        return [self._verdict(rules, row, found, seen) for row, found in zip(rows, values, strict=True)]

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

    def _verdict(
        self,
        rules: Sequence[Rule],
        row: Mapping[str, Any],
        values: Sequence[RuleValue],
        seen: dict[str, int],
    ) -> Verdict | None:
        for rule, value in zip(rules, values, strict=True):
            seen[rule.name] = seen.get(rule.name, 0) + 1
            if value is True:
                continue
            if value is False:
                return Verdict(REJECTED, rule.name, None)
            if value is None:
                return Verdict(FAILED, NO_VALUE, null_message(rule, row))
            return Verdict(FAILED, RULE_ERROR, f"rule '{rule.name}' ({rule.condition.text}): {value}")
        return None


COMPUTED = "it is null, as a division by 0 is, or any other result that is not finite"


def null_message(rule: Rule, row: Mapping[str, Any]) -> str:
    """Say why a rule was null: a column has no value, or the computed result is not finite."""
    nulls = sorted(name for name in rule.condition.columns if _has_no_value(row.get(name)))
    columns = f"column{'s' if len(nulls) > 1 else ''} {', '.join(nulls)}"
    why = f"{columns} {'have' if len(nulls) > 1 else 'has'} no value" if nulls else COMPUTED
    return f"rule '{rule.name}' ({rule.condition.text}): {why}"


def _has_no_value(value: Any) -> bool:
    return value is None or (isinstance(value, float) and not math.isfinite(value))
