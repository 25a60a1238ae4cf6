"""SQL conditions: the only place where a user's text becomes SQL that is executed.

A condition is parsed first, and only expressions over the columns of one row are allowed: a rule, a slice and
`Manifest.table(where=...)` cannot read or write files, and have the same result in every run.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import duckdb
import pyarrow as pa

from uhr.base.errors import UserError, nearest, one_line, unknown
from uhr.manifests import finite

LONGEST = 20_000
"""The largest number of characters of a condition: far more than anyone writes, and far fewer than the
parser's limit."""

_EXPRESSIONS = "BETWEEN CASE CAST COLLATE COLUMN_REF COMPARISON CONJUNCTION CONSTANT FUNCTION OPERATOR TYPE"
_OPERATORS = """
    OPERATOR_NOT OPERATOR_IS_NULL OPERATOR_IS_NOT_NULL COMPARE_IN COMPARE_NOT_IN OPERATOR_COALESCE
    OPERATOR_NULLIF OPERATOR_TRY ARRAY_EXTRACT ARRAY_SLICE STRUCT_EXTRACT
"""
# pure functions of one row. All others are rejected: aggregates, clocks, random numbers, files, settings
_FUNCTIONS = """
    + - * / // % ^ ** & | << >> || ~ ->> ^@ @> ~~ !~~ ~~* !~~* ~~~
    like_escape not_like_escape ilike_escape not_ilike_escape
    abs ceil ceiling floor round trunc sign sqrt cbrt exp ln log log2 log10 pow power mod
    least greatest isnan isinf isfinite if ifnull nullif
    lower upper length strlen trim ltrim rtrim contains starts_with ends_with prefix suffix substring substr
    left right replace position instr strpos split_part string_split concat concat_ws levenshtein
    regexp_matches regexp_full_match regexp_extract md5 sha256
    list_value list_contains list_has_any list_has_all array_contains len array_length list_extract
    json_valid json_type json_exists json_contains json_array_length json_extract json_extract_string
"""
EXPRESSIONS = frozenset(_EXPRESSIONS.split())
OPERATORS = frozenset(_OPERATORS.split())
FUNCTIONS = frozenset(_FUNCTIONS.split())
NUMBERS = frozenset({"INTEGER", "DECIMAL", "DOUBLE", "FLOAT", "BIGINT", "HUGEINT", "NUMERIC"})

NAMES = {
    "SUBQUERY": "a subquery",
    "WINDOW": "a window function",
    "STAR": "a star",
    "PARAMETER": "a parameter",
    "LAMBDA": "a lambda or '->' (write '->>')",
    "POSITIONAL_REFERENCE": "a positional reference",
    "DEFAULT": "DEFAULT",
    "GROUPING_FUNCTION": "GROUPING",
}


def quoted(name: str) -> str:
    """Return a column name as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """Return a text as SQL."""
    return "'" + text.replace("'", "''") + "'"


def finite_column(name: str) -> str:
    """Return SQL for the column as a double, null if it is not finite."""
    value = f"{quoted(name)}::DOUBLE"
    return f"CASE WHEN isfinite({value}) THEN {value} END"


def connect(threads: int | None = None, **relations: Any) -> duckdb.DuckDBPyConnection:
    """Open a connection to Arrow tables or datasets, by name. Rows keep their order.

    It is denied access to files, extensions, Python variables and settings. More relations can be registered.
    """
    # relations are registered with the cursor alone, and other cursors do not see them
    connection = _database(threads, os.getpid()).cursor()
    for name, relation in relations.items():
        connection.register(name, relation)
    return connection


@functools.cache
def _database(threads: int | None, process: int) -> duckdb.DuckDBPyConnection:
    """Open the locked in-memory database of `connect`. It takes 30 ms, a cursor of it 0.01 ms.

    `process` is the id of this process: threads of a database do not survive a fork.
    """
    database = duckdb.connect(":memory:")
    # a database that is open when the interpreter ends may abort the process
    atexit.register(database.close)
    # an integer divided by 0 is null, as is any other number divided by 0 (`finite.py`)
    database.execute("SET GLOBAL error_on_division_by_zero = false")
    # a condition rewritten by `finite.py` is up to three times as deep
    database.execute("SET GLOBAL max_expression_depth = 3000")
    if threads is not None:
        database.execute(f"SET GLOBAL threads = {threads:d}")
    for name in (
        "enable_external_access",
        "python_enable_replacements",
        "autoinstall_known_extensions",
        "autoload_known_extensions",
        "allow_community_extensions",
    ):
        database.execute(f"SET GLOBAL {name} = false")
    database.execute("SET GLOBAL lock_configuration = true")
    return database


@dataclass(frozen=True)
class SqlCondition:
    """One SQL boolean expression over the columns of one row. Made by `parse`.

    `where` names its origin in errors ("rule 'entropy'"); `columns` are those in the text, as written; `tree`
    is the expression as parsed by DuckDB.
    """

    text: str
    where: str
    columns: frozenset[str]
    tree: Mapping[str, Any] = field(repr=False, compare=False)

    @classmethod
    def parse(cls, text: str, where: str) -> SqlCondition:
        """Parse `text`. Raises UserError, with `where` in its message, if it is not an allowed condition."""
        text = text.strip()
        if not text:
            raise UserError(f"{where}: the condition is empty", "write one such as entropy >= 4")
        if len(text) > LONGEST:
            raise UserError(f"{where}: {len(text):,} characters", f"keep a condition below {LONGEST:,}")
        if not text.isprintable() and any("\ud800" <= c <= "\udfff" or c == "\0" for c in text):
            raise UserError(f"{where}: {text!a} contains bytes that are not text", "remove them")
        if any(kind == duckdb.token_type.comment for _, kind in duckdb.tokenize(text)):
            raise UserError(f"{where}: '{text}' contains a comment", "remove it")
        # with and without parentheses: only one whole expression parses as both, not "a) OR (b" or "a, b"
        try:
            with connect() as parser:
                tree = _only_expression(parser, f"SELECT ({text}\n) AS verdict FROM samples", text, where)
                _only_expression(parser, f"SELECT {text}\n", text, where)
            for node in _nodes(tree):
                _check(node, text, where)
        except RecursionError:
            raise _too_deep(where) from None
        named = [node["column_names"] for node in _nodes(tree) if node["class"] == "COLUMN_REF"]
        columns = frozenset(path[1] if path[0] == "samples" and path[1:] else path[0] for path in named)
        return cls(text, where, columns, tree)

    def sql_for(self, connection: duckdb.DuckDBPyConnection) -> str:
        """Return the condition as SQL for queries of `connection`, whose relation `samples` has the columns.

        In it, a part that would be NaN or infinite is null, and so is everything that is computed from that
        part. Raises duckdb.Error if the condition does not fit the types of the columns.
        """
        try:
            return f"({finite.rewritten(self.tree, connection)})"
        except RecursionError:
            raise _too_deep(self.where) from None

    def check_columns(self, schema: pa.Schema) -> None:
        """Raise UserError, with the nearest names, if the condition has a column that is not in `schema`."""
        for name in sorted(self.columns.difference(schema.names)):
            raise self.unknown_column(name, schema)

    def unknown_column(self, name: str, schema: pa.Schema) -> UserError:
        """Return the error for a name that no column has: a mistyped column, or a text without quotes."""
        error = unknown("column", name, schema.names, self.where)
        if f'"{name}"' not in self.text and not self._is_compared_with_text(name, schema):
            return error
        text = name.strip("\u2018\u2019\u201c\u201d`").replace("'", "''")
        fix = f"if it is a text, write '{text}' in single quotes"
        close = nearest(name, schema.names)
        return UserError(error.what, f"{fix}; or did you mean {' or '.join(close)}?" if close else fix)

    def _is_compared_with_text(self, name: str, schema: pa.Schema) -> bool:
        """Whether the condition compares this name with a text column, or passes both to one function:
        `status = kept`, `contains(caption, lake)`.
        """
        for node in _nodes(self.tree):
            operands = _operands(node)
            if any(part["class"] == "COLUMN_REF" and part["column_names"] == [name] for part in operands):
                found = {inner["column_names"][-1] for inner in _nodes(operands) if "column_names" in inner}
                if any(_is_text(other, schema) for other in found):
                    return True
        return False

    def check(self, schema: pa.Schema) -> None:
        """Raise UserError unless the condition is a boolean over the columns of `schema`."""
        self.check_columns(schema)
        for node in _nodes(self.tree):
            column = _text_against_number(node, schema)
            if column is not None:
                raise UserError(
                    f"{self.where}: '{self.text}' compares {column}, a text, with a number", "quote the value"
                )
        # one row of nulls: constants that do not convert ("entropy >= 'high'") fail here too, before any run
        self.mask(pa.Table.from_pylist([{}], schema=schema))

    def mask(self, table: pa.Table) -> pa.ChunkedArray:
        """Evaluate the condition for the rows of `table`: true, false or null, bool [rows].

        Raises UserError if it does not fit the columns, or is not a boolean.
        """
        with connect(samples=table) as connection:
            try:
                relation = connection.sql(f"SELECT {self.sql_for(connection)} AS verdict FROM samples")
                if str(relation.types[0]) != "BOOLEAN":
                    kind = str(relation.types[0]).strip('"')
                    raise UserError(
                        f"{self.where}: '{self.text}' is {kind}, not true or false",
                        "compare it with a value",
                    )
                return relation.to_arrow_table().column(0)
            except duckdb.Error as error:
                raise self.error_from(error) from None

    def error_from(self, error: duckdb.Error) -> UserError:
        """Turn DuckDB's error into a UserError of one line."""
        first = str(error).strip().splitlines()[0]
        return UserError(f"{self.where}: '{self.text}': {first}", "fix the condition")


def _too_deep(where: str) -> UserError:
    return UserError(f"{where}: the condition is nested too deeply", "write it in several conditions")


def _operands(node: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the operands of a comparison or operator, or the arguments of a call."""
    if node["class"] not in ("COMPARISON", "BETWEEN", "FUNCTION", "OPERATOR"):
        return []
    parts = [node[key] for key in finite.SIDES if key in node] + list(node.get("children", ()))
    return parts + [argument["expression"] for argument in node.get("arguments", ())]


def _is_text(name: str, schema: pa.Schema) -> bool:
    return name in schema.names and pa.types.is_string(schema.field(name).type)


def _only_expression(
    parser: duckdb.DuckDBPyConnection, query: str, text: str, where: str
) -> Mapping[str, Any]:
    """Return the tree of the one expression that `query` selects. Raises UserError if it is anything else."""
    answer = parser.execute("SELECT json_serialize_sql(?)", [query]).fetchone()
    assert answer is not None
    parsed: dict[str, Any] = json.loads(answer[0])
    if parsed["error"]:
        message = one_line(parsed.get("error_message", ""))
        # what was not expected is behind the text, where the user has written nothing
        end = len(query[: query.index(text)].encode()) + len(f"{text}\n".encode())
        message = "it ends too early" if int(parsed.get("position", 0)) >= end else message
        raise UserError(
            f"{where}: '{text}' is not an SQL condition ({message})", "write one boolean expression"
        )
    statements = parsed["statements"]
    node = statements[0]["node"] if len(statements) == 1 else {}
    beyond = ("where_clause", "group_expressions", "having", "sample", "qualify", "modifiers")
    if (
        node.get("type") != "SELECT_NODE"
        or len(node["select_list"]) != 1
        or node["cte_map"]["map"]
        or any(node.get(part) for part in beyond)
    ):
        raise UserError(f"{where}: '{text}' is more than one condition", "write one boolean expression")
    return node["select_list"][0]


def _nodes(tree: Any) -> Iterator[Mapping[str, Any]]:
    """Yield every expression in the tree, under any key, so that none escapes the check."""
    if isinstance(tree, dict):
        if "class" in tree:
            yield tree
        for value in tree.values():
            yield from _nodes(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from _nodes(value)


def _check(node: Mapping[str, Any], text: str, where: str) -> None:
    kind, type_ = node["class"], node["type"]
    if kind not in EXPRESSIONS or (kind == "OPERATOR" and type_ not in OPERATORS):
        name = NAMES.get(type_, NAMES.get(kind, f"'{type_.lower()}'"))
        raise UserError(f"{where}: '{text}' contains {name}", "a condition may use the columns of one row")
    if kind == "FUNCTION":
        name = node["function_name"]
        if name.lower() not in FUNCTIONS or node.get("schema") or node.get("catalog"):
            close = nearest(name, (known for known in FUNCTIONS if known[0].isalpha()), least=0.75)
            hint = f"did you mean {' or '.join(close)}? " if close else ""
            raise UserError(
                f"{where}: '{text}' calls {name}, which is not allowed in a condition",
                f"{hint}a condition may use the columns of one row",
            )
        if node.get("filter") or node.get("distinct") or node.get("order_bys", {}).get("orders"):
            raise UserError(f"{where}: '{text}' gives {name} a clause of an aggregate", "remove it")


def _text_against_number(node: Mapping[str, Any], schema: pa.Schema) -> str | None:
    """Return the text column that this expression compares with a number, which fails at the first text."""
    sides = [node.get(key) for key in ("left", "right", "input", "lower", "upper")]
    if node["class"] == "OPERATOR" and node["type"] in ("COMPARE_IN", "COMPARE_NOT_IN"):
        sides = node["children"]
    elif node["class"] not in ("COMPARISON", "BETWEEN"):
        return None
    numbers = any(side and side.get("literal", {}).get("kind") in NUMBERS for side in sides)
    for side in sides:
        if numbers and side and side["class"] == "COLUMN_REF":
            name = side["column_names"][-1]
            if _is_text(name, schema):
                return name
    return None
