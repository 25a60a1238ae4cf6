import math
from collections.abc import Callable

import duckdb
import pyarrow as pa
import pytest

from uhr.manifests.schema import BASE, COLUMNS, GROUPS, Column, patch_id, sample_id, schema_of
from uhr.manifests.verify.checks import outside_range


def test_every_column_says_what_it_means_and_is_named_once() -> None:
    names = [column.name for group in GROUPS.values() for column in group]
    assert len(names) == len(set(names)) == len(COLUMNS)
    assert all(column.meaning for column in COLUMNS.values())


def test_every_stated_range_of_a_number_is_one_that_verify_can_check() -> None:
    numeric = [c for c in COLUMNS.values() if pa.types.is_floating(c.type) or pa.types.is_integer(c.type)]
    assert all(outside_range(column) for column in numeric)


@pytest.mark.parametrize("type_", [pa.float64(), pa.float32(), pa.int32()])
@pytest.mark.parametrize(
    ("range_", "inside"),
    [
        ("[-1, 2]", lambda x: -1 <= x <= 2),
        ("[-1, 2)", lambda x: -1 <= x < 2),
        ("-1..2", lambda x: -1 <= x <= 2),
        ("> -1", lambda x: x > -1),
        (">= -1", lambda x: x >= -1),
    ],
)
def test_the_sql_of_a_range_is_true_for_what_is_outside_and_for_nan(
    range_: str, inside: Callable[[float], bool], type_: pa.DataType
) -> None:
    numbers = [-2, -1, 0, 2, 3]
    if pa.types.is_floating(type_):
        numbers += [math.nan, math.inf, -math.inf, -1.25, 1.75, 2.25]
    samples = pa.table({"x": pa.array([*numbers, None], type_)})
    outside = outside_range(Column("x", type_, "", range=range_))
    with duckdb.connect() as connection:
        connection.register("samples", samples)
        found = connection.sql(f"SELECT {outside} FROM samples").fetchall()
    assert [value for (value,) in found] == [*(not inside(x) for x in numbers), None]


def test_a_column_comes_back_from_its_field() -> None:
    for column in COLUMNS.values():
        assert Column.from_field(column.field()) == column
    assert Column.from_field(pa.field("foreign", pa.int8())) == Column("foreign", pa.int8(), "")


def test_a_schema_has_the_base_columns_first_and_each_column_once() -> None:
    schema = schema_of([COLUMNS["split"], COLUMNS["content_hash"]])
    assert schema.names == [*(column.name for column in BASE), "split"]


def test_ids_are_fixed_for_all_time() -> None:
    assert sample_id("a/b.jpg") == "4a51636246e7c418bb925ee98492950a"
    assert (
        patch_id("4a51636246e7c418bb925ee98492950a", (0, 16, 512, 256)) == "20c7911eeeb85f277c3958d1bb01220b"
    )


@pytest.mark.parametrize("make_id", [lambda n: sample_id(str(n)), lambda n: patch_id("x", (n, 0, 1, 1))])
def test_ids_differ(make_id: Callable[[int], str]) -> None:
    ids = {make_id(n) for n in range(10_000)}
    assert len(ids) == 10_000
    assert all(len(one) == 32 for one in ids)
