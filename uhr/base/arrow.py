"""Arrow tables whose bytes do not depend on how they are divided into chunks."""

from __future__ import annotations

import hashlib

import pyarrow as pa


def table_hash(table: pa.Table) -> str:
    """SHA-256 (64 hex digits) of a table's schema and rows, independent of its chunks."""
    sink = _HashSink()
    step = 65536
    with pa.ipc.new_stream(pa.PythonFile(sink, mode="w"), table.schema) as writer:
        for start in range(0, table.num_rows, step):
            writer.write_batch(one_batch(table.slice(start, step)))
    return sink.hash.hexdigest()


def one_batch(table: pa.Table) -> pa.RecordBatch:
    """Copy a non-empty table into one record batch with offset zero, so that equal rows give equal bytes."""
    return pa.concat_batches(table.combine_chunks().to_batches())


class _HashSink:
    """A file that only hashes what is written to it."""

    closed = False

    def __init__(self) -> None:
        self.hash = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.hash.update(data)
        return len(data)

    def flush(self) -> None:
        """Do nothing: there is no buffer."""

    def close(self) -> None:
        """Do nothing: no file is open."""
