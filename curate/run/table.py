"""A DuckDB table with every row of a run, for stages over the set and for the passes after the first."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from uhr.base import parquet
from uhr.base.errors import UserError, one_line
from uhr.base.paths import plain_folder
from uhr.curate.planning.plan import CurationPlan
from uhr.curate.planning.planned import PlannedStage
from uhr.curate.rules import Judge, RuleCounts, Ruling
from uhr.curate.stage import SetStage, Workspace
from uhr.manifests.schema import CHILD_COUNT, KEPT, VERDICT, Column
from uhr.manifests.sql import finite_column, literal, quoted

BATCH_ROWS = 16_384
MEMORY = "1GiB"
"""Memory limit of DuckDB; the rest is spilled to files in the units' folder."""

SPILLED = "commit.duckdb.tmp"
"""The folder of the spilled files, and of those of set stages."""

_PATCH_ORDER = "parent_id IS NOT NULL, box[2], box[1], box[4], box[3]"
"""An image, followed by its patches from the top left."""


class SampleTable:
    """Context manager of a DuckDB table `samples` with every row; deleted when the block ends."""

    def __init__(self, folder: Path, plan: CurationPlan) -> None:
        self._folder = folder
        self._plan = plan
        self._patches = any(each.of_patches for each in plan.passes)
        self._verdict = [column.name for column in (*VERDICT, *plan.verdict_columns)]
        self._types = {field.name: field.type for field in plan.schema}
        # in named sources the same uri may occur more than once
        named = ["source_name"] if "source_name" in self._types else []
        self._order = ", ".join(["uri", *named, *([_PATCH_ORDER] if self._patches else [])])

    def __enter__(self) -> SampleTable:
        self._clear()
        with contextlib.ExitStack() as stack:
            # in memory: DuckDB resolves links in the name of a database file, and parses options in it
            self._spilled = stack.enter_context(plain_folder(self._folder)) / SPILLED
            self._connection = stack.enter_context(duckdb.connect(":memory:"))
            for setting in (
                f"memory_limit = '{MEMORY}'",
                f"temp_directory = '{self._spilled}'",
                "enable_progress_bar = false",
            ):
                self._connection.execute(f"SET {setting}")
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        self._clear()

    def _clear(self) -> None:
        """Remove the spilled files of a run that was killed."""
        shutil.rmtree(self._folder / SPILLED, ignore_errors=True)

    def load_parts(self, parts: Sequence[Path], schema: pa.Schema) -> None:
        """Take over the rows of the first pass, each of which is in one part."""
        with parquet.dataset(parts, schema) as staged:
            self._connection.register("staged", staged)
            self._connection.execute("CREATE TABLE samples AS SELECT * FROM staged")
            self._connection.unregister("staged")

    def load(self, schema: pa.Schema, batches: Iterator[pa.RecordBatch]) -> None:
        """Take over the rows of the first pass."""
        self._create("samples", schema, batches)

    def merge(self, schema: pa.Schema, batches: Iterator[pa.RecordBatch], new: Sequence[str]) -> None:
        """Add the columns `new` of a later pass to the rows that it was about, and replace their verdicts."""
        self._create("fresh", schema, batches)
        run = self._connection.execute
        have = self._columns("samples")
        columns = ", ".join(f"fresh.{quoted(name)}" for name in new if name not in have)
        # images may have a column that is new for patches: a row that is not in the pass keeps its value
        verdict = ", ".join(
            f"CASE WHEN fresh.sample_id IS NULL THEN samples.{n} ELSE fresh.{n} END AS {n}"
            for n in [*self._verdict, *(quoted(name) for name in new if name in have)]
        )
        others = ", ".join(f"samples.{quoted(n)}" for n in have if n not in {*self._verdict, *new})
        joined = "samples LEFT JOIN fresh USING (sample_id)"
        chosen = ", ".join(part for part in (others, verdict, columns) if part)
        run(f"CREATE TABLE more AS SELECT {chosen} FROM {joined}")
        run("DROP TABLE samples")
        run("DROP TABLE fresh")
        run("ALTER TABLE more RENAME TO samples")

    def add_patches(self, schema: pa.Schema, batches: Iterator[pa.RecordBatch]) -> None:
        """Add the rows of patches, and the number of patches and the verdicts of the images they are cut
        from.
        """
        self._create("cut", schema, batches)
        run = self._connection.execute
        have = set(self._columns("samples"))
        for field in schema:
            if field.name not in have:
                run(f"ALTER TABLE samples ADD COLUMN {quoted(field.name)} {self._type_of('cut', field.name)}")
        changed = ", ".join(f"{n} = cut.{n}" for n in (CHILD_COUNT.name, *self._verdict))
        run(f"UPDATE samples SET {changed} FROM cut WHERE samples.sample_id = cut.sample_id")
        run("INSERT INTO samples BY NAME SELECT * FROM cut WHERE parent_id IS NOT NULL")
        run("DROP TABLE cut")

    def items(self, names: Sequence[str], of_patches: bool) -> pa.Table:
        """Return the columns `names` of the rows that are still kept, images or patches, sorted."""
        where = f"status = '{KEPT}'" + self._scope(of_patches)
        chosen = ", ".join(map(quoted, names))
        query = f"SELECT {chosen} FROM samples WHERE {where} ORDER BY {self._order}"
        table = self._connection.sql(query).to_arrow_table()
        schema = pa.schema([(name, self._types[name]) for name in names])
        return pa.table([_as(table[n], schema.field(n).type) for n in names], schema=schema)

    def annotate(self, planned: PlannedStage[SetStage], of_patches: bool) -> None:
        """Add the columns of a set stage. They are null in rows that it did not see.

        Raises UserError if the stage fails or does not give its declared columns.
        """
        run = self._connection.execute
        where = f"status = '{KEPT}'" + self._scope(of_patches)
        if planned.channel is not None:
            where += f" AND list_contains(channels, {literal(planned.channel)})"
        run(f"CREATE OR REPLACE TEMP VIEW live AS SELECT * FROM samples WHERE {where}")
        self._compute(planned)
        self._check_result(planned)
        run("DROP VIEW live")
        have = set(self._columns("samples"))
        own = [column for column in planned.stage.adds if column.name not in have]
        columns = ", ".join(map(_result_column, own))
        again = [column.name for column in planned.stage.adds if column.name in have]
        kept = ", ".join(f"coalesce(answer.{quoted(n)}, samples.{quoted(n)}) AS {quoted(n)}" for n in again)
        rest = f"samples.* EXCLUDE ({', '.join(map(quoted, again))})" if again else "samples.*"
        chosen = ", ".join(part for part in (rest, kept, columns) if part)
        run(f"CREATE TABLE more AS SELECT {chosen} FROM samples LEFT JOIN answer USING (sample_id)")
        run("DROP TABLE samples")
        run("DROP TABLE answer")
        run("ALTER TABLE more RENAME TO samples")

    def _compute(self, planned: PlannedStage[SetStage]) -> None:
        """Make the table `answer`, of what a set stage returns."""
        connection = self._connection
        try:
            workspace = Workspace(self._spilled / "stage", planned.label)
            workspace.folder.mkdir(parents=True, exist_ok=True)
            answer = planned.stage.compute(connection.table("live"), workspace)
            if isinstance(answer, str):
                connection.execute(f"CREATE OR REPLACE TABLE answer AS {answer}")
            else:
                connection.register("computed", answer.to_arrow_table() if _is_relation(answer) else answer)
                connection.execute("CREATE OR REPLACE TABLE answer AS SELECT * FROM computed")
                connection.unregister("computed")
            shutil.rmtree(workspace.folder, ignore_errors=True)
        except UserError:
            raise
        except duckdb.Error as error:
            raise UserError(f"stage '{planned.label}': {one_line(error)}", "fix its query") from None
        except Exception as error:
            what = f"stage '{planned.label}' failed ({type(error).__name__}: {one_line(error)})"
            raise UserError(what, "fix its method compute; --debug shows the whole trace") from error

    def _check_result(self, planned: PlannedStage[SetStage]) -> None:
        names = {row[0] for row in self._connection.execute("DESCRIBE answer").fetchall()}
        declared = {"sample_id", *(column.name for column in planned.stage.adds)}
        if names != declared:
            raise UserError(
                f"stage '{planned.label}' gives columns {sorted(names)}, not {sorted(declared)}",
                "fix its query",
            )
        query = "SELECT count(*) - count(DISTINCT sample_id) FROM answer"
        twice = self._connection.execute(query).fetchone()
        if twice is None or twice[0]:
            raise UserError(f"stage '{planned.label}' gives a sample more than once", "fix its query")

    def apply_rules(self, planned: PlannedStage[SetStage], of_patches: bool, counts: RuleCounts) -> None:
        """Evaluate the rules that follow a set stage on the kept rows, and write the verdicts."""
        if not planned.rules:
            return
        columns = {"sample_id", *(column.name for column in self._plan.verdict_columns)}
        columns.update(*(rule.condition.columns for rule in planned.rules))
        chosen = ", ".join(map(quoted, sorted(columns)))
        run = self._connection.execute
        listed = ", ".join(f"{name} {self._type_of('samples', name)}" for name in self._verdict)
        run(f"CREATE TABLE changes (sample_id VARCHAR, {listed})")
        where = f"status = '{KEPT}'" + self._scope(of_patches)
        query = f"SELECT {chosen} FROM samples WHERE {where} ORDER BY {self._order}"
        schema = pa.schema([self._plan.schema.field(name) for name in sorted(columns)])
        judge = Judge(self._plan.schema, self._plan.channels, self._plan.config.all_rules)
        for batch in self._connection.cursor().sql(query).to_arrow_reader(BATCH_ROWS):
            rows = pa.Table.from_batches([batch]).cast(schema).to_pylist()
            rulings = judge.rulings(planned.rules, rows, counts)
            self._change(zip(rows, rulings, strict=True))
        changed = ", ".join(f"{name} = changes.{name}" for name in self._verdict)
        run(f"UPDATE samples SET {changed} FROM changes WHERE samples.sample_id = changes.sample_id")
        run("DROP TABLE changes")

    def _change(self, rulings: Iterable[tuple[Mapping[str, Any], Ruling]]) -> None:
        """Note the verdicts of the rows that have one now, and the channels of all."""
        rows = []
        for row, ruling in rulings:
            verdict = ruling.verdict
            if verdict is None and ruling.channels is None:
                continue
            status, reason, error = (KEPT, None, None) if verdict is None else verdict
            known = {
                "status": status,
                "reason": reason,
                "error": error,
                "rejected_by": [*(row.get("rejected_by") or ()), *ruling.rejected_by] or None,
            }
            known["channels"] = (ruling.channels or []) if verdict is None else []
            rows.append({"sample_id": row["sample_id"], **{name: known[name] for name in self._verdict}})
        if rows:
            fields = [("sample_id", pa.string()), *((name, self._types[name]) for name in self._verdict)]
            self._connection.register("rows_to_change", pa.Table.from_pylist(rows, schema=pa.schema(fields)))
            self._connection.execute("INSERT INTO changes SELECT * FROM rows_to_change")
            self._connection.unregister("rows_to_change")

    def counts(self) -> dict[str, int]:
        """Return the number of rows by reason."""
        query = "SELECT reason, count(*) FROM samples WHERE reason IS NOT NULL GROUP BY reason"
        return dict(self._connection.execute(query).fetchall())

    def rows(self) -> int:
        """Return the number of rows."""
        return len(self._connection.table("samples"))

    def batches(self, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        """Yield every row with the columns of `schema`, sorted; patches follow their image."""
        columns = ", ".join(map(quoted, schema.names))
        query = f"SELECT {columns} FROM samples ORDER BY {self._order}"
        for batch in self._connection.sql(query).to_arrow_reader(BATCH_ROWS):
            table = pa.Table.from_batches([batch])
            arrays = [_as(table[field.name], field.type) for field in schema]
            yield from pa.table(arrays, schema=schema).to_batches()

    def _create(self, name: str, schema: pa.Schema, batches: Iterator[pa.RecordBatch]) -> None:
        self._connection.register("staged", pa.RecordBatchReader.from_batches(schema, batches))
        self._connection.execute(f"CREATE TABLE {name} AS SELECT * FROM staged")
        self._connection.unregister("staged")

    def _scope(self, of_patches: bool) -> str:
        if not self._patches:
            return ""
        return f" AND parent_id IS {'NOT ' if of_patches else ''}NULL"

    def _columns(self, table: str) -> list[str]:
        return [row[0] for row in self._connection.execute(f"DESCRIBE {table}").fetchall()]

    def _type_of(self, table: str, column: str) -> str:
        rows = self._connection.execute(f"DESCRIBE {table}").fetchall()
        return next(row[1] for row in rows if row[0] == column)


def _is_relation(answer: object) -> bool:
    return isinstance(answer, duckdb.DuckDBPyRelation)


def _as(column: pa.ChunkedArray, type_: pa.DataType) -> pa.ChunkedArray:
    """Return a column of DuckDB in the type of the schema, which may have other names of list elements."""
    return column if column.type == type_ else column.cast(type_)


def _result_column(column: Column) -> str:
    """SQL for a set stage's column; null if its value is not finite, as in the columns of other stages."""
    if pa.types.is_floating(column.type):
        return f"{finite_column(column.name)} AS {quoted(column.name)}"
    return f"answer.{quoted(column.name)}"
