"""Rules: named SQL booleans over columns, the only thing that turns a sample down."""

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
    """A sample stays where `condition` is true."""

    name: str
    condition: sql.Condition

    @classmethod
    def parse(cls, name: str, text: str) -> Rule:
        """Errors: a name that is a kind of fault, a text that is no condition."""
        if name in KINDS:
            raise UserError(
                f"rule '{name}' is called like a kind of fault", "give it a name that `reason` can tell apart"
            )
        return cls(name, sql.Condition.parse(text, f"rule '{name}'"))


class Verdict(NamedTuple):
    """What ended a sample's way: status, reason (rule or kind of fault) and, where it failed, the error in
    words.
    """

    status: str
    reason: str
    error: str | None


Outcome = bool | None | str
"""A rule on one row: true, false, null, or the words of the error that it raised."""


class Judge:
    """Evaluates rules over rows, all of them in one query. One per process: it keeps a connection open."""

    def __init__(self, schema: pa.Schema) -> None:
        self._schema = schema
        self._connection = sql.connect(threads=1)
        self._sql: dict[str, str] = {}

    def verdicts(
        self, rules: Sequence[Rule], rows: Sequence[Mapping[str, Any]], seen: dict[str, int]
    ) -> list[Verdict | None]:
        """Per row the first rule, in order, that is not true; None where all are. Adds to `seen` how many
        rows each rule was asked about.
        """
        asked = self.outcomes(rules, rows)
        return [self._first(rules, row, outcome, seen) for row, outcome in zip(rows, asked, strict=True)]

    def outcomes(self, rules: Sequence[Rule], rows: Sequence[Mapping[str, Any]]) -> list[tuple[Outcome, ...]]:
        """Every rule on every row."""
        if not rules or not rows:
            return [() for _ in rows]
        try:
            return self._query(rules, rows)
        except duckdb.Error as error:
            if len(rows) == 1 and len(rules) == 1:
                return [(one_line(error),)]
        # somewhere in the batch a value does not convert: find out where, so that it costs its row only
        return [tuple(self.outcomes([rule], [row])[0][0] for rule in rules) for row in rows]

    def _query(self, rules: Sequence[Rule], rows: Sequence[Mapping[str, Any]]) -> list[tuple[Outcome, ...]]:
        names = (
            sorted(frozenset().union(*(rule.condition.columns for rule in rules))) or self._schema.names[:1]
        )
        arrays = [pa.array([row.get(n) for row in rows], self._schema.field(n).type) for n in names]
        self._connection.register("samples", pa.table(arrays, names=names))
        try:
            chosen = ", ".join(f"{self._over(rule.condition)} AS v{i}" for i, rule in enumerate(rules))
            return self._connection.execute(f"SELECT {chosen} FROM samples").fetchall()
        finally:
            self._connection.unregister("samples")

    def _over(self, condition: sql.Condition) -> str:
        """The condition as SQL over the registered rows; the types of columns never change."""
        if condition.text not in self._sql:
            self._sql[condition.text] = condition.over(self._connection)
        return self._sql[condition.text]

    def _first(
        self, rules: Sequence[Rule], row: Mapping[str, Any], outcomes: Sequence[Outcome], seen: dict[str, int]
    ) -> Verdict | None:
        for rule, outcome in zip(rules, outcomes, strict=True):
            seen[rule.name] = seen.get(rule.name, 0) + 1
            if outcome is True:
                continue
            if outcome is False:
                return Verdict(REJECTED, rule.name, None)
            if outcome is None:
                return Verdict(FAILED, NO_VALUE, null_words(rule, row))
            return Verdict(FAILED, RULE_ERROR, f"rule '{rule.name}' ({rule.condition.text}): {outcome}")
        return None


COMPUTED = "it is null, as a division by 0 is, or any other result that is not finite"


def null_words(rule: Rule, row: Mapping[str, Any]) -> str:
    """Why a rule was null: columns without a value, or what it computes from them."""
    nulls = sorted(name for name in rule.condition.columns if _has_no_value(row.get(name)))
    columns = f"column{'s' if len(nulls) > 1 else ''} {', '.join(nulls)}"
    why = f"{columns} {'have' if len(nulls) > 1 else 'has'} no value" if nulls else COMPUTED
    return f"rule '{rule.name}' ({rule.condition.text}): {why}"


def _has_no_value(value: Any) -> bool:
    return value is None or (isinstance(value, float) and not math.isfinite(value))
