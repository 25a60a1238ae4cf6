import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from uhr.base.parquet_pages import OtherForm, PageFault, byte_strings

PLAIN = {"compression": "none", "use_dictionary": False, "write_statistics": False}
FORM = PLAIN | {"write_page_checksum": True}
VALUES = [b"one", b"", b"three" * 40, b"four"]


def file_of(values, nullable=True, **options):
    schema = pa.schema([pa.field("n", pa.int64()), pa.field("b", pa.binary(), nullable=nullable)])
    table = pa.table({"n": range(len(values)), "b": values}, schema=schema)
    sink = io.BytesIO()
    pq.write_table(table, sink, **FORM | options)
    return sink.getvalue()


def values_in(data, metadata=None, nullable=True):
    metadata = metadata or pq.read_metadata(io.BytesIO(data))
    file = memoryview(data)
    groups = (metadata.row_group(number) for number in range(metadata.num_row_groups))
    return [bytes(file[place]) for group in groups for place in byte_strings(file, group, 1, nullable)]


@given(
    st.lists(st.binary(max_size=300), min_size=1, max_size=40),
    st.integers(1, 50),
    st.integers(1, 50),
    st.integers(1, 400),
    st.booleans(),
)
def test_values_are_found_in_place_for_any_division_into_row_groups_and_pages(
    values, group, batch, page, nullable
):
    data = file_of(values, nullable, row_group_size=group, write_batch_size=batch, data_page_size=page)
    assert values_in(data, nullable=nullable) == values


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        ([b"one", None, b"three"], {}, "nulls"),
        (VALUES, {"compression": "zstd"}, "ZSTD"),
        (VALUES, {"use_dictionary": True}, "PLAIN"),
        (VALUES, {"column_encoding": {"b": "DELTA_BYTE_ARRAY"}}, "PLAIN"),
        (VALUES, {"data_page_version": "2.0"}, "version 1"),
        (VALUES, {"write_page_checksum": False}, "checksum"),
    ],
)
def test_other_forms_of_pages_are_refused(values, options, message):
    with pytest.raises(OtherForm, match=message):
        values_in(file_of(values, **options))


def test_another_column_type_is_refused():
    data = file_of(VALUES)
    group = pq.read_metadata(io.BytesIO(data)).row_group(0)
    with pytest.raises(OtherForm, match="INT64"):
        byte_strings(memoryview(data), group, 0, True)


def test_no_changed_byte_of_a_column_gives_other_values():
    # a checksum covers a page's values; the header before it has to be checked field by field
    data = file_of(VALUES)
    metadata = pq.read_metadata(io.BytesIO(data))
    chunk = metadata.row_group(0).column(1)
    refused = 0
    for at in range(chunk.data_page_offset, chunk.data_page_offset + chunk.total_compressed_size):
        for bit in range(8):
            changed = bytearray(data)
            changed[at] ^= 1 << bit
            try:
                assert values_in(bytes(changed), metadata) == VALUES
            except (PageFault, OtherForm):
                refused += 1
    assert refused >= 8 * (sum(map(len, VALUES)) + 4 * len(VALUES))
