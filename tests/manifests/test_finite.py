"""Conditions: NaN and infinity are no values, wherever they come from."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from uhr.base.errors import UserError
from uhr.manifests.manifest import Manifest
from uhr.manifests.sql import SqlCondition

NAN, INF = math.nan, math.inf
NUMBERS = [0.0, -0.0, 1.0, -1.0, 0.5, 3.0, 700.0, 1e200, 1e308, -1e308, 1e-308, NAN, INF, -INF, None]
COLUMNS = {"a": pa.float64(), "b": pa.float64(), "n": pa.int64()}

BAD = object()
"""What a value is that is not finite: null to all but `least` and `greatest`, which do not leave it out."""


class Unclear(Exception):
    """A comparison of two numbers that differ in their last digits alone."""


def checked(compute: Callable[..., float], *values: Any) -> Any:
    """The oracle of every function: null of a null, BAD of what Python refuses or finds not to be finite."""
    if any(value is None for value in values):
        return None
    try:
        found = compute(*values)
    except (ValueError, OverflowError, ZeroDivisionError):
        return BAD
    return found if math.isfinite(found) else BAD


def value(item: Any) -> Any:
    return None if item is BAD else item


FUNCTIONS: dict[str, tuple[int, Callable[..., float]]] = {
    "sqrt({})": (1, math.sqrt),
    "ln({})": (1, math.log),
    "log({})": (1, math.log10),
    "log2({})": (1, math.log2),
    "log10({})": (1, math.log10),
    "exp({})": (1, math.exp),
    "abs({})": (1, abs),
    "({} / {})": (2, lambda x, y: x / y),
    "({} % {})": (2, math.fmod),
    "pow({}, {})": (2, math.pow),
    "({} ** {})": (2, math.pow),
    "({} ^ {})": (2, math.pow),
}
PASSING: dict[str, Callable[..., float]] = {
    "-({})": lambda x: -x,
    "({} + {})": lambda x, y: x + y,
    "({} - {})": lambda x, y: x - y,
    "({} * {})": lambda x, y: x * y,
}
"""Operators whose result is BAD where an operand is."""

Part = tuple[str, Callable[[dict[str, Any]], Any]]


def column(name: str) -> Part:
    def of(row: dict[str, Any]) -> Any:
        found = row[name]
        return BAD if isinstance(found, float) and not math.isfinite(found) else found

    return name, of


def literal(text: str, number: Any) -> Part:
    return text, lambda row: number


def call(template: str, parts: list[Part]) -> Part:
    compute = FUNCTIONS[template][1]
    text = template.format(*(part[0] for part in parts))
    return text, lambda row: checked(compute, *(value(part[1](row)) for part in parts))


def passing(template: str, parts: list[Part]) -> Part:
    def of(row: dict[str, Any]) -> Any:
        values = [part[1](row) for part in parts]
        if None in values:
            return None
        return BAD if BAD in values else checked(PASSING[template], *values)

    return template.format(*(part[0] for part in parts)), of


def extreme(name: str, parts: list[Part]) -> Part:
    def of(row: dict[str, Any]) -> Any:
        values = [part[1](row) for part in parts]
        known = [one for one in values if one is not None]
        if BAD in values:
            return None
        return (max if name == "greatest" else min)(known) if known else None

    return f"{name}({', '.join(part[0] for part in parts)})", of


def first(parts: list[Part]) -> Part:
    def of(row: dict[str, Any]) -> Any:
        return next((one for one in (value(part[1](row)) for part in parts) if one is not None), None)

    return f"coalesce({', '.join(part[0] for part in parts)})", of


def choice(parts: tuple[Part, Part, Part]) -> Part:
    test, yes, no = parts
    text = f"CASE WHEN {test[0]} THEN {yes[0]} ELSE {no[0]} END"
    return text, lambda row: value((yes if test[1](row) else no)[1](row))


LITERALS = [("0::DOUBLE", 0.0), ("2.5::DOUBLE", 2.5), ("-3::DOUBLE", -3.0), ("1e300", 1e300)]
LITERALS += [("'nan'::DOUBLE", BAD), ("'-inf'::FLOAT", BAD), ("1e400", BAD)]

LEAVES = st.sampled_from([column(name) for name in COLUMNS] + [literal(*pair) for pair in LITERALS])


def comparisons(numbers: st.SearchStrategy[Part]) -> st.SearchStrategy[Part]:
    def build(sign: str, left: Part, right: Part) -> Part:
        def of(row: dict[str, Any]) -> bool | None:
            one, two = value(left[1](row)), value(right[1](row))
            if one is None or two is None:
                return None
            if one != two and math.isclose(one, two, rel_tol=1e-9):
                raise Unclear
            return {"<": one < two, ">=": one >= two, "=": one == two, "<>": one != two}[sign]

        return f"({left[0]} {sign} {right[0]})", of

    return st.builds(build, st.sampled_from(["<", ">=", "=", "<>"]), numbers, numbers)


def larger(inner: st.SearchStrategy[Part]) -> st.SearchStrategy[Part]:
    def several(least: int, most: int) -> st.SearchStrategy[list[Part]]:
        return st.lists(inner, min_size=least, max_size=most)

    calls = st.sampled_from(sorted(FUNCTIONS)).flatmap(
        lambda name: several(FUNCTIONS[name][0], FUNCTIONS[name][0]).map(lambda parts: call(name, parts))
    )
    return st.one_of(
        calls,
        st.sampled_from(sorted(PASSING)).flatmap(
            lambda name: several(name.count("{}"), name.count("{}")).map(lambda parts: passing(name, parts))
        ),
        st.builds(extreme, st.sampled_from(["least", "greatest"]), several(2, 3)),
        several(2, 3).map(first),
        st.tuples(comparisons(inner), inner, inner).map(choice),
    )


CONDITIONS = comparisons(st.recursive(LEAVES, larger, max_leaves=8))
ROWS = st.fixed_dictionaries(
    {"a": st.sampled_from(NUMBERS), "b": st.sampled_from(NUMBERS), "n": st.sampled_from([0, 1, -2, 7, None])}
)


@given(CONDITIONS, st.lists(ROWS, min_size=1, max_size=8))
def test_a_condition_is_what_python_computes_with_null_for_all_that_is_not_finite(condition, rows) -> None:
    text, of = condition
    try:
        expected = [of(row) for row in rows]
    except Unclear:
        assume(False)
    table = pa.table({n: pa.array([row[n] for row in rows], kind) for n, kind in COLUMNS.items()})
    parsed = SqlCondition.parse(text, "rule 'x'")
    parsed.check(table.schema)
    assert parsed.mask(table).to_pylist() == expected


TABLE = pa.table(
    {
        "zero": [0.0],
        "nan": [NAN],
        "inf": [INF],
        "small": pa.array([NAN], pa.float32()),
        "list": [[NAN, 1.0]],
        "pair": [{"x": NAN}],
        "text": ["nan"],
        "whole": [0],
        "day": pa.array([0], pa.date32()),
    }
)


@pytest.mark.parametrize(
    "text",
    [
        "zero / zero > 2",
        "zero / 0 > 2",
        "1 / zero > 2",
        "ln(zero - 1) > 2",
        "ln(zero) < 2",
        "sqrt(zero - 1) > 2",
        "pow(zero - 1, 0.5) > 2",
        "zero % zero > 2",
        "whole % 0 = 0",
        "whole // whole = 0",
        "exp(1000) > zero",
        "zero < exp(1000)",
        "nan > 2",
        "NOT nan < 2",
        "small > 2",
        "inf > 2",
        "nan <> 2",
        "nan IS DISTINCT FROM 2 AND nan > 2",
        "nan BETWEEN 0 AND 9",
        "zero BETWEEN nan AND 9",
        "zero < 'nan'",
        "zero IN (1, 'nan')",
        "zero < text::DOUBLE",
        "zero < TRY_CAST(text AS FLOAT)",
        "zero < 'inf'::FLOAT",
        "zero < DOUBLE 'nan'",
        "zero < 1e400",
        "least(nan, 3) > 2",
        "greatest(-1e400, 3) > 2",
        "greatest(zero / zero, 3) > 2",
        "list[1] > 2",
        "list_extract(list, 1) > 2",
        "pair.x > 2",
        "CASE WHEN zero = 0 THEN nan END > 2",
        "if(zero = 0, nan, 1) > 2",
        "TRY(zero / zero) > 2",
        "abs(nan) > 2",
        "sign(nan) = 0",
        "1 / (1 / zero) = 0",
        "(zero / zero)::VARCHAR = 'nan'",
        "(1 / zero)::INTEGER > 2",
        "concat('x', nan) = 'xnan' AND nan > 2",
        "day < 'infinity'",
    ],
)
def test_a_part_that_is_not_finite_makes_a_condition_null(text: str) -> None:
    condition = SqlCondition.parse(text, "rule 'x'")
    condition.check(TABLE.schema)
    found = condition.mask(TABLE).to_pylist()
    assert found in ([None], [False])
    assert found == [None] or " AND " in text


def test_a_test_for_nan_is_evaluated_and_a_null_can_be_handled() -> None:
    for text in (
        "isnan(nan)",
        "isinf(1 / zero)",
        "NOT isfinite(zero / zero)",
        "nan IS NULL",
        "zero / zero IS NULL",
        "coalesce(zero / zero, 7) = 7",
        "text = 'nan'",
        "nan > 2 OR zero = 0",
    ):
        assert SqlCondition.parse(text, "rule 'x'").mask(TABLE).to_pylist() == [True], text


def test_what_holds_no_float_is_run_as_it_was_written() -> None:
    table = pa.table({"s": ["a \"b\" 'c'"], "j": ['{"x": {"y": 5}}'], "l": [["p", "q"]], "i": [2**62]})
    for text in (
        "s = 'a \"b\" ''c'''",
        "s LIKE 'a%' AND s NOT LIKE 'b%' AND s ILIKE 'A%' ESCAPE '\\'",
        "s ~~~ 'a*' AND s ^@ 'a'",
        "j ->> '$.x.y' = '5' AND json_extract(j, '$.x.y')::INTEGER = 5",
        "list_contains(l, 'q') AND l[1:1] = ['p'] AND 'p' IN ('p', s)",
        "i = 4611686018427387904 AND i // 2 = 2305843009213693952 AND i & 1 = 0 AND i >> 61 = 2",
        "s COLLATE NOCASE = 'A \"B\" ''C''' AND length(s) = 9 AND s[1] = 'a'",
        "(i IS NOT NULL) AND NOT (s IS NULL) AND i::HUGEINT * 8 > 36893488147419103231",
        "regexp_matches(s, '^a.*c') AND concat_ws('-', s, i) <> '' AND i NOT BETWEEN 1 AND 2",
    ):
        assert SqlCondition.parse(text, "rule 'x'").mask(table).to_pylist() == [True], text


def test_a_condition_nested_beyond_reason_is_one_error() -> None:
    text = "a"
    for _ in range(2000):
        text = f"1/({text})"
    with pytest.raises(UserError, match=r"nested too deeply|is not an SQL condition"):
        SqlCondition.parse(f"{text} > 1", "rule 'x'").check(TABLE.schema)
    # far deeper than anything written by hand, and no work that grows with a power of the depth
    text = "zero + 4"
    for _ in range(20):
        text = f"1 / ({text})"
    assert SqlCondition.parse(f"{text} > 3", "rule 'x'").mask(TABLE).to_pylist() == [True]


def test_rows_of_a_manifest_that_hold_nan_are_no_part_of_a_slice(
    make: Callable[..., Manifest], make_row: Callable[..., dict[str, Any]], tmp_path, capsys
) -> None:
    from uhr.cli import main

    values = [6.5, NAN, INF, -INF, 7.0, None]
    rows = [make_row(40 + n, entropy=entropy, status="kept", reason=None) for n, entropy in enumerate(values)]
    parent = make(tmp_path / "set", rows)
    assert parent.table(["entropy"], where="entropy > 1").column(0).to_pylist() == [6.5, 7.0]
    arguments = ["manifest", "slice", str(parent.path), "--where", "entropy / 1 > 1"]
    assert main([*arguments, "--out", str(tmp_path / "slice")]) == 0
    printed = capsys.readouterr()
    assert "2 rows" in printed.out
    assert "4 of 6 rows" in printed.err
    assert main([*arguments[:3], "--where", "entropy > 9", "--out", str(tmp_path / "none")]) == 1
    assert "(4 are null there)" in capsys.readouterr().err
