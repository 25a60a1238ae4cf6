"""Rewrite conditions so that NaN and infinity count as null.

SQL computes with them: 0 / 0 is NaN, 1 / 0 and ln(0) are infinities, and NaN compares as larger than every
number, so `a / b > 2` is true if both are 0. In a rewritten condition every part of a floating type is null
where it would not be finite: columns, literals, casts, operators and functions. The tree of the parsed
expression is rewritten by the types that DuckDB finds for its parts, so that no list of functions is needed.
Elements of lists and structs are handled where they are extracted.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import duckdb

FLOATING = frozenset({"DOUBLE", "FLOAT"})
UNBOUNDED = FLOATING | {"DATE", "TIMESTAMP", "TIMESTAMP WITH TIME ZONE"}
"""The types of DuckDB with values that are not finite; parts of other types are not changed."""

PROPAGATING = frozenset({"+", "-", "*"})
"""Operators whose result is not finite if an operand is not: checking the result is enough."""

EXTREMES = {"least": "list_min", "greatest": "list_max"}
"""Functions that ignore nulls, and the same functions of a list. In a rewritten condition an argument that is
not finite makes the result null; otherwise `least(0 / 0, 3)` would be 3."""

TESTS = frozenset({"isnan", "isinf", "isfinite"})
"""Functions that test for NaN or infinity; their argument is not changed."""

VALUED = frozenset({"COLUMN_REF", "FUNCTION", "CAST", "CASE", "OPERATOR", "COLLATE"})
"""Classes of expressions that may have any type; comparisons and conjunctions are booleans."""

SIDES = ("left", "right", "input", "lower", "upper")
"""Under these keys are the operands of a comparison and of BETWEEN."""


def rewritten(tree: Mapping[str, Any], connection: duckdb.DuckDBPyConnection) -> str:
    """Return the expression `tree` as SQL in which no part is NaN or infinite.

    Args:
        tree: an expression as `json_serialize_sql` gives it.
        connection: one with the relation `samples`, which gives the columns their types; no row is read.

    Raises:
        duckdb.Error: a part of the expression does not fit the types of the columns.
    """
    parser = _Parser(connection)
    holder = {"tree": json.loads(json.dumps(tree))}
    slots = list(_slots(holder, "tree"))
    typed = [slot.node for slot in slots if slot.node is holder["tree"] or _may_be_unbounded(slot.node)]
    bound = connection.sql(parser.text(typed, "SELECT 1 FROM samples"))
    kinds = {id(node): str(kind) for node, kind in zip(typed, bound.types, strict=True)}
    for slot in reversed(slots):  # the inner parts first
        node = slot.node
        _cast_texts(node, kinds, parser)
        kind = kinds.get(id(node))
        if kind not in UNBOUNDED:
            continue
        if _name(node) in EXTREMES:
            slot.put(parser.extreme(node))
        elif not _passes(slot.parent, kinds):
            slot.put(parser.finite(node))
        kinds[id(slot.node)] = kind
    return parser.text([holder["tree"]], "SELECT 1").removeprefix("SELECT ")


class _Slot(NamedTuple):
    """A place of an expression in a tree: `holder[key]`, inside the expression `parent`."""

    holder: Any
    key: Any
    parent: dict[str, Any] | None

    @property
    def node(self) -> dict[str, Any]:
        return self.holder[self.key]

    def put(self, node: dict[str, Any]) -> None:
        self.holder[self.key] = node


def _slots(holder: Any, key: Any) -> Iterator[_Slot]:
    """Yield every expression below a place of a tree, outer before inner. Iterative, as trees may be deep."""
    waiting: list[tuple[Any, Any, dict[str, Any] | None]] = [(holder, key, None)]
    while waiting:
        holder, key, parent = waiting.pop()
        value = holder[key]
        if isinstance(value, dict) and "class" in value:
            yield _Slot(holder, key, parent)
            parent = value
        if isinstance(value, dict):
            waiting.extend((value, inner, parent) for inner in value if inner != "type_expr")
        elif isinstance(value, list):
            waiting.extend((value, place, parent) for place in range(len(value)))


def _may_be_unbounded(node: Mapping[str, Any]) -> bool:
    # a constant keeps its place, as its type may depend on it, unless it is infinite itself: 1e400
    return node["class"] in VALUED or (node["class"] == "CONSTANT" and _is_number_without_end(node))


def _is_number_without_end(constant: Mapping[str, Any]) -> bool:
    literal = constant["literal"]
    return literal["kind"] != "STRING" and not _is_finite_text(literal.get("text", ""))


def _is_finite_text(text: str) -> bool:
    """Return False if the text converts to NaN or infinity."""
    try:
        return math.isfinite(float(text))
    except ValueError:
        return True


def _passes(parent: Mapping[str, Any] | None, kinds: Mapping[int, str]) -> bool:
    """Whether the parent tests its operand itself, or is not finite if the operand is not."""
    name = "" if parent is None else _name(parent)
    kind = kinds.get(id(parent))
    return (
        name in TESTS
        or (name in PROPAGATING and kind in FLOATING)
        or (name in EXTREMES and kind in UNBOUNDED)
    )


def _name(node: Mapping[str, Any]) -> str:
    """Return the name of the function that `node` calls; empty if it is not a call."""
    return str(node.get("function_name", "")).lower()


def _cast_texts(node: dict[str, Any], kinds: Mapping[int, str], parser: _Parser) -> None:
    """Add the cast that a comparison of a string literal with a float implies: 'nan' becomes NaN there."""
    if node["class"] in ("COMPARISON", "BETWEEN"):
        holder: Any = node
        keys: list[Any] = [key for key in SIDES if key in node]
    elif node["type"] in ("COMPARE_IN", "COMPARE_NOT_IN"):
        holder, keys = node["children"], list(range(len(node["children"])))
    else:
        return
    found = {kinds.get(id(holder[key])) for key in keys} & UNBOUNDED
    if not found:
        return
    kind = "DOUBLE" if "DOUBLE" in found else sorted(map(str, found))[0]
    for key in keys:
        literal = holder[key].get("literal", {})
        if literal.get("kind") == "STRING" and not _is_finite_text(literal["text"]):
            holder[key] = parser.finite(parser.cast(holder[key], kind))


class _Parser:
    """Converts SQL to trees and back, by DuckDB's own functions."""

    def __init__(self, connection: duckdb.DuckDBPyConnection) -> None:
        self._connection = connection
        # the value in a list, filtered by isfinite: the first element is the value or null. Unlike CASE, this
        # contains the value only once, so that nested conditions do not grow exponentially
        self._finite = self._expression("list_filter([x], lambda value: isfinite(value))[1]")

    def finite(self, node: dict[str, Any]) -> dict[str, Any]:
        """Return an expression that is `node`, or null if it is not finite."""
        found = copy.deepcopy(self._finite)
        found["children"][0]["arguments"][0]["expression"]["arguments"][0]["expression"] = node
        return found

    def extreme(self, node: dict[str, Any]) -> dict[str, Any]:
        """Return an expression that is `node`, a call of one of `EXTREMES`, or null if an argument is not
        finite.
        """
        found = self._expression(
            "list_transform([[x]], lambda list: CASE WHEN len(list_filter(list, lambda value: NOT "
            f"isfinite(value))) = 0 THEN {EXTREMES[_name(node)]}(list) END)[1]"
        )
        outer = found["children"][0]["arguments"][0]["expression"]
        outer["arguments"][0]["expression"]["arguments"] = node["arguments"]
        return found

    def cast(self, node: dict[str, Any], kind: str) -> dict[str, Any]:
        """Return `node` cast to the type with the name `kind`."""
        return {**self._expression(f"CAST(x AS {kind})"), "child": node}

    def text(self, nodes: list[dict[str, Any]], around: str) -> str:
        """Return the query `around` as SQL, with these expressions as its select list."""
        document = self._document(around)
        document["statements"][0]["node"]["select_list"] = [{**node, "alias": ""} for node in nodes]
        query = "SELECT json_deserialize_sql(?::JSON)"
        return self._connection.execute(query, [json.dumps(document)]).fetchall()[0][0]

    def _expression(self, text: str) -> dict[str, Any]:
        return self._document(f"SELECT {text}")["statements"][0]["node"]["select_list"][0]

    def _document(self, query: str) -> dict[str, Any]:
        found = self._connection.execute("SELECT json_serialize_sql(?)", [query]).fetchall()
        return json.loads(found[0][0])
