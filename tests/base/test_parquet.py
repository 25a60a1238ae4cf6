import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from uhr.base.parquet import regrouped


@given(st.lists(st.integers(0, 9), max_size=8), st.integers(1, 7))
def test_regrouped_rows_are_the_same_in_tables_of_one_size_and_one_chunk(sizes, rows):
    numbers = iter(range(sum(sizes)))
    tables = [pa.table({"n": pa.array([next(numbers) for _ in range(size)], pa.int64())}) for size in sizes]
    found = list(regrouped(tables, rows))
    assert [row["n"] for table in found for row in table.to_pylist()] == list(range(sum(sizes)))
    assert [table.num_rows for table in found[:-1]] == [rows] * (len(found) - 1)
    assert all(0 < table.num_rows <= rows for table in found)
    assert all(table["n"].num_chunks == 1 for table in found)


def test_regrouping_keeps_at_most_one_group_and_one_table_in_memory():
    """A set is never in memory as a whole."""
    read = []

    def tables():
        for number in range(9):
            read.append(number)
            yield pa.table({"n": [number]})

    groups = regrouped(tables(), 2)
    for end in (2, 4, 6):
        assert next(groups)["n"].to_pylist() == [end - 2, end - 1]
        assert len(read) == end


def test_regrouping_keeps_the_metadata_of_a_schema():
    schema = pa.schema([pa.field("n", pa.int64(), metadata={"unit": "px"})], metadata={"a": "b"})
    (found,) = regrouped([pa.table({"n": [1]}, schema=schema), pa.table({"n": [2]}, schema=schema)], 2)
    assert found.schema.equals(schema, check_metadata=True)
