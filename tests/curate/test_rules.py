"""Rules: the first that is not true, in order, decides; a null never keeps or rejects."""

from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from uhr.curate.faults import NO_VALUE, RULE_ERROR
from uhr.curate.rules import Judge, Rule, RuleCounts
from uhr.manifests.schema import FAILED, REJECTED

SCHEMA = pa.schema([("a", pa.float64()), ("b", pa.int32()), ("s", pa.string())])
JUDGE = Judge(SCHEMA)


def rules(**texts: str) -> list[Rule]:
    return [Rule.parse(name, text) for name, text in texts.items()]


def judge(which: list[Rule], *rows: dict) -> tuple[list, dict[str, int]]:
    counts = RuleCounts()
    return [ruling.verdict for ruling in JUDGE.rulings(which, rows, counts)], counts.seen


VALUES = st.none() | st.floats(allow_nan=False, allow_infinity=False)


@given(rows=st.lists(st.fixed_dictionaries({"a": VALUES, "b": st.none() | st.integers(-9, 9)}), max_size=20))
def test_the_first_rule_that_is_not_true_decides(rows):
    which = rules(first="a >= 0", second="b < 5", third="a <= 100")
    verdicts, seen = judge(which, *rows)
    tests = [
        ("first", "a", lambda x: x >= 0),
        ("second", "b", lambda x: x < 5),
        ("third", "a", lambda x: x <= 100),
    ]
    counts = dict.fromkeys(("first", "second", "third"), 0)
    for row, verdict in zip(rows, verdicts, strict=True):
        expected = None
        for name, column, test in tests:
            counts[name] += 1
            if row[column] is None:
                expected = (FAILED, NO_VALUE)
            elif not test(row[column]):
                expected = (REJECTED, name)
            if expected:
                break
        assert (verdict[:2] if verdict else None) == expected
    assert {name: seen.get(name, 0) for name in counts} == counts


def test_a_null_says_which_column_had_no_value():
    verdicts, _ = judge(rules(r="a + b > 0 AND s <> 'x'"), {"a": 1.0, "b": None, "s": None})
    assert verdicts[0].error == "rule 'r' (a + b > 0 AND s <> 'x'): columns b, s have no value"


def test_a_null_out_of_values_is_a_fault_too():
    verdicts, _ = judge(rules(r="nullif(b, 0) > 0"), {"b": 0}, {"b": 1})
    assert (verdicts[0].status, verdicts[0].reason, verdicts[1]) == (FAILED, NO_VALUE, None)
    assert "it is null" in verdicts[0].error


def test_nulls_that_a_rule_deals_with_are_no_fault():
    verdicts, _ = judge(rules(r="coalesce(a, 1) > 0", q="s IS NULL OR s = 'x'"), {"a": None}, {"a": -1.0})
    assert [v and v.reason for v in verdicts] == [None, "r"]


def test_a_value_that_a_rule_cannot_convert_costs_its_row_only():
    which = rules(number="s::INTEGER > 3", other="b > 0")
    verdicts, _ = judge(
        which, {"s": "5", "b": 1}, {"s": "five", "b": 1}, {"s": "1", "b": 1}, {"s": "9", "b": 0}
    )
    assert [v and (v.status, v.reason) for v in verdicts] == [
        None,
        (FAILED, RULE_ERROR),
        (REJECTED, "number"),
        (REJECTED, "other"),
    ]
    assert "five" in verdicts[1].error
    assert "\n" not in verdicts[1].error


def test_without_rules_or_rows_nothing_is_decided():
    assert judge([], {"a": 1.0}) == ([None], {})
    assert judge(rules(r="a > 0")) == ([], {})


@pytest.mark.parametrize("text", ["true", "1 = 1"])
def test_a_rule_may_look_at_no_column(text):
    assert judge(rules(r=text), {}, {}) == ([None, None], {"r": 2})
