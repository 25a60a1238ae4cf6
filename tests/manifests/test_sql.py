import pickle
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from uhr.base.errors import UserError
from uhr.manifests.schema import schema_of
from uhr.manifests.sql import SqlCondition, connect

from .conftest import COLUMNS

SCHEMA = schema_of(COLUMNS.values())

HOSTILE = [
    "COPY samples TO '/tmp/x.csv'",
    "1 = 1; DROP TABLE samples",
    "1 = 1); DROP TABLE samples; SELECT (1",
    "1 = 1; COPY samples TO '/tmp/x.csv'",
    "(SELECT true)",
    "EXISTS (SELECT 1 FROM read_csv('/etc/passwd'))",
    "width IN (SELECT 1)",
    "width > ANY (SELECT 1)",
    "width = ANY([1, 2])",
    "read_csv('/etc/passwd') IS NULL",
    "read_text('/etc/passwd') IS NULL",
    "read_blob('/etc/passwd') IS NULL",
    "glob('/*') IS NULL",
    "getenv('HOME') = '/root'",
    "current_setting('threads') = '1'",
    "query('SELECT 1') IS NULL",
    "random() < 0.5",
    "now() > '2020-01-01'",
    "current_date IS NULL",
    "nextval('x') = 1",
    "count(*) > 1",
    "max(width) > 1",
    "sum(width) FILTER (width > 1) > 1",
    "row_number() OVER () > 1",
    "lag(width) OVER (ORDER BY uri) > 1",
    "unnest([1, 2]) = 1",
    "width = ?",
    "width = $1",
    "width = $name",
    "*",
    "samples.*",
    "COLUMNS('w.*') > 1",
    "#1 = 1",
    "list_filter(box, x -> x > 1) IS NULL",
    "[x FOR x IN box] IS NULL",
    "main.abs(width) = 1",
    "GROUPING(width) = 1",
    "width > 1 -- and nothing else",
    "width > 1 /* hidden */",
    "/**/ width > 1",
    "width > 1) OR (height > 1",
    "width > 1) FROM samples WHERE (height > 1",
    "width > 1) AS verdict FROM samples UNION SELECT (true",
    "width > 1) AS a, (height > 1",
    "width > 1, height > 1",
    "width > 1 FROM samples",
    "width > 1 AS name",
    "width > 1 ORDER BY 1",
    "width > 1 LIMIT 1",
    "(width > 1",
    "width > 1)",
    "'unclosed",
    '"unclosed',
    "DEFAULT",
    "",
    "  \n ",
    "entropy > 4\0",
    "entropy > 4 AND caption = '\ud800'",
    "(" * 5_000 + "true" + ")" * 5_000,
    "true AND " * 5_000 + "true",
]


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: text[:40])
def test_what_is_not_one_plain_expression_is_refused_before_anything_runs(text: str) -> None:
    with pytest.raises(UserError, match="rule 'x'") as error:
        SqlCondition.parse(text, "rule 'x'").check(SCHEMA)
    assert error.value.fix


GOOD = {
    "entropy >= 4 AND flat_fraction <= 0.95": {"entropy", "flat_fraction"},
    "width BETWEEN 1 AND 2 OR height NOT IN (3, 4)": {"width", "height"},
    "caption ILIKE '%it''s -- no comment%'": {"caption"},
    "caption = '/* nor this */; SELECT 1'": {"caption"},
    "source_meta->>'$.camera' = 'X'": {"source_meta"},
    "regexp_matches(uri, '^a/.*[.]jpg$')": {"uri"},
    "CASE WHEN width > height THEN true ELSE false END": {"width", "height"},
    "coalesce(caption, '') <> '' AND license IS NOT NULL": {"caption", "license"},
    "greatest(width, height) / least(width, height) < 2.5": {"width", "height"},
    "box[3] * box[4] > 1e6": {"box"},
    "try_cast(license AS INTEGER) IS NULL": {"license"},
    "samples.entropy > 4": {"entropy"},
    '"entropy" > 4': {"entropy"},
    "NOT (width % 16 = 0)": {"width"},
    "true": set(),
}


@pytest.mark.parametrize("text", GOOD)
def test_a_condition_names_the_columns_it_looks_at(text: str) -> None:
    condition = SqlCondition.parse(text, "rule 'x'")
    condition.check(SCHEMA)
    assert condition.columns == GOOD[text]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("entropi >= 4", "did you mean entropy"),
        ("Entropy >= 4", "did you mean entropy"),
        ("entropy", "not true or false"),
        ("'kept'", "not true or false"),
        ("NULL", "not true or false"),
        ("entropy >= 'high'", "Could not convert"),
        ("status = 1", "a text, with a number"),
        ("status IN (1, 2)", "a text, with a number"),
        ("lower(width) = 'x' AND box", "box"),
        ("starts_with(width)", "starts_with"),
    ],
)
def test_wrong_names_and_types_are_found_without_a_row(text: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        SqlCondition.parse(text, "rule 'x'").check(SCHEMA)


@given(
    st.lists(st.tuples(st.none() | st.floats(0, 8), st.none() | st.floats(0, 1)), max_size=50),
    st.floats(0, 8),
    st.floats(0, 1),
)
def test_verdicts_follow_three_valued_logic_row_by_row(rows: list, low: float, high: float) -> None:
    table = pa.table({"e": pa.array([r[0] for r in rows], pa.float64()), "f": pa.array([r[1] for r in rows])})
    verdicts = SqlCondition.parse(f"e >= {low!r} AND f <= {high!r}", "rule 'x'").mask(
        table.cast(pa.schema([("e", pa.float64()), ("f", pa.float64())]))
    )

    def both(e: float | None, f: float | None) -> bool | None:
        sides = [None if e is None else e >= low, None if f is None else f <= high]
        return False if False in sides else None if None in sides else True

    assert verdicts.to_pylist() == [both(e, f) for e, f in rows]


@pytest.mark.parametrize(
    ("call", "hint"),
    [("lenght(uri)", "did you mean length? "), ("now()", ""), ("read_text(uri)", ""), ("count(*)", "")],
)
def test_a_function_that_is_not_allowed_names_only_those_that_it_may_have_meant(call: str, hint: str) -> None:
    with pytest.raises(UserError) as error:
        SqlCondition.parse(f"{call} > 1", "--where")
    assert error.value.fix == f"{hint}a condition may use the columns of one row"


@pytest.mark.parametrize("text", ["width >", "(width > 3", "author = 'ü' AND"])
def test_a_condition_that_ends_too_early_says_so(text: str) -> None:
    """And not what uhr has written behind it."""
    with pytest.raises(UserError, match=r"is not an SQL condition \(it ends too early\)"):
        SqlCondition.parse(text, "--where")


def test_a_fault_that_only_data_shows_names_the_condition() -> None:
    condition = SqlCondition.parse("CAST(caption AS INTEGER) > 1", "rule 'count'")
    condition.check(SCHEMA)
    with pytest.raises(UserError, match=r"rule 'count'.*CAST"):
        condition.mask(pa.table({"caption": ["3", "three"]}))


def test_verdicts_keep_the_order_of_many_rows() -> None:
    numbers = pa.array(range(500_000))
    verdicts = SqlCondition.parse("n % 7 = 0", "x").mask(pa.table({"n": numbers}))
    assert verdicts.to_numpy().tolist() == [n % 7 == 0 for n in range(500_000)]


@pytest.mark.parametrize(
    "query",
    [
        "SELECT * FROM read_text('{file}')",
        "SELECT * FROM read_csv('{file}')",
        "SELECT * FROM '{file}'",
        "SELECT * FROM glob('{file}')",
        "COPY samples TO '{file}'",
        "COPY (SELECT 1) TO '{file}.csv'",
        "EXPORT DATABASE '{file}.db'",
        "ATTACH '{file}.db'",
        "INSTALL httpfs",
        "LOAD httpfs",
        "SET enable_external_access = true",
        "SET threads = 3",
        "SELECT * FROM secret",
    ],
)
def test_a_locked_connection_reaches_nothing_but_its_relations(query: str, tmp_path: Path) -> None:
    file = tmp_path / "victim.csv"
    file.write_text("a,b\n1,2\n")
    secret = pa.table({"x": [1]})  # a Python variable that a query could name
    with connect(samples=pa.table({"x": [1]})) as connection:
        with pytest.raises(duckdb.Error):
            connection.sql(query.format(file=file)).fetchall()
        assert connection.sql("SELECT x FROM samples").fetchall() == [(1,)]
    assert file.read_text() == "a,b\n1,2\n"
    assert list(tmp_path.iterdir()) == [file]
    assert secret.num_rows == 1


WORDS = [
    "entropy",
    "uri",
    "4",
    "'a'",
    "(",
    ")",
    "AND",
    "OR",
    "NOT",
    ">",
    "=",
    ",",
    ";",
    "--",
    "/*",
    "SELECT",
    "FROM",
    "samples",
    "*",
    "::",
    "INTEGER",
    "IN",
    "CASE",
    "WHEN",
    "THEN",
    "END",
    "count",
    "[",
    "]",
    "->",
    "$$",
    '"',
    "?",
]


@given(st.text(max_size=30) | st.lists(st.sampled_from(WORDS), max_size=9).map(" ".join))
def test_any_text_is_either_a_safe_boolean_or_a_clear_error(text: str) -> None:
    try:
        condition = SqlCondition.parse(text, "rule 'x'")
        condition.check(SCHEMA)
    except UserError:
        return
    # a condition means the same wherever it is put: its negation too
    table = pa.Table.from_pylist([{"entropy": 5.0, "uri": "a"}, {}], schema=SCHEMA)
    try:
        verdicts = condition.mask(table).to_pylist()
        negated = SqlCondition.parse(f"NOT ({condition.text})", "rule 'x'").mask(table).to_pylist()
    except UserError:
        return
    assert negated == [None if verdict is None else not verdict for verdict in verdicts]


def test_a_condition_crosses_process_borders() -> None:
    condition = SqlCondition.parse("entropy >= 4", "rule 'x'")
    assert pickle.loads(pickle.dumps(condition)) == condition
