"""Extract the thresholds of a rule: comparisons of a column with a number, such as `entropy >= 4`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from uhr.base.errors import UserError
from uhr.manifests.info import RuleInfo
from uhr.manifests.sql import SqlCondition

SIGNS = {
    "COMPARE_GREATERTHAN": ">",
    "COMPARE_GREATERTHANOREQUALTO": ">=",
    "COMPARE_LESSTHAN": "<",
    "COMPARE_LESSTHANOREQUALTO": "<=",
    "COMPARE_EQUAL": "=",
}
TURNED = {">": "<", ">=": "<=", "<": ">", "<=": ">=", "=": "="}


@dataclass(frozen=True)
class Threshold:
    """A column, compared with a number: `sign` is one of > >= < <= =."""

    column: str
    sign: str
    value: float


def condition_of(rule: RuleInfo) -> SqlCondition | None:
    """Parse the rule's condition; None if this version cannot (the rule may be of another version)."""
    try:
        return SqlCondition.parse(rule.where, f"rule '{rule.name}'")
    except UserError:
        return None  # the report then shows the rule's text alone


def thresholds(condition: SqlCondition) -> list[Threshold]:
    """Return the comparisons that must all be true; other parts (OR, arithmetic) are ignored."""
    return list(_walk(condition.tree))


def _walk(node: Mapping[str, Any]) -> Iterator[Threshold]:
    if node["type"] == "CONJUNCTION_AND":
        for child in node["children"]:
            yield from _walk(child)
    elif node["class"] == "COMPARISON" and node["type"] in SIGNS:
        sign = SIGNS[node["type"]]
        left, right = node["left"], node["right"]
        for column, value, turned in ((left, right, sign), (right, left, TURNED[sign])):
            yield from _threshold(column, turned, value)
    elif node["class"] == "BETWEEN":
        yield from _threshold(node["input"], ">=", node["lower"])
        yield from _threshold(node["input"], "<=", node["upper"])


def _threshold(column: Mapping[str, Any], sign: str, value: Mapping[str, Any]) -> Iterator[Threshold]:
    if column["class"] != "COLUMN_REF" or value["class"] != "CONSTANT":
        return
    try:
        number = float(value.get("literal", {}).get("text", ""))
    except ValueError:
        return  # compared with a text
    if not math.isfinite(number):
        return  # 'nan' or 1e400
    yield Threshold(column["column_names"][-1], sign, number)
