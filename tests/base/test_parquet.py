import io
import os

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from uhr.base import parquet
from uhr.base.parquet import regrouped, row_batches, write


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


def test_rows_are_read_batch_by_batch_and_no_more_of_the_file_than_that(tmp_path, monkeypatch):
    path = tmp_path / "previews.parquet"
    cells = [os.urandom(10_000) for _ in range(300)]
    write(path, pa.table({"jpeg": cells}), row_group_size=10)
    read = [0]

    class Counted(io.FileIO):
        def readinto(self, buffer):
            count = super().readinto(buffer)
            read[0] += count
            return count

        def read(self, size=-1):
            data = super().read(size)
            read[0] += len(data)
            return data

    monkeypatch.setattr(parquet, "open", Counted, raising=False)
    found = []
    for number, batch in enumerate(row_batches(path, 10), 1):
        found += batch["jpeg"].to_pylist()
        assert 100_000 * number <= read[0] < 100_000 * (number + 2)
    assert found == cells
