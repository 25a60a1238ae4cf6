"""Make the manifest of a run whose units are finished: set stages and their rules over all rows, then commit.

The rows are never in memory as a whole. They are streamed from the staged parts or, if there are set stages,
from a DuckDB table, which spills to disk.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from uhr.base import parquet
from uhr.base.console import Advance
from uhr.base.errors import UserError, one_line
from uhr.base.files import or_half_written
from uhr.base.lock import NAME as LOCK
from uhr.base.paths import plain_folder
from uhr.base.run_folder import FolderLayout, all_or_nothing
from uhr.curate.planning.plan import CurationPlan, PlannedStage
from uhr.curate.rules import Judge, Verdict
from uhr.curate.run.rows import PREVIEW, Tally
from uhr.curate.stage import SetStage
from uhr.manifests import parts as part_files
from uhr.manifests.info import FILE, RuleInfo
from uhr.manifests.manifest import Manifest
from uhr.manifests.parts import PREVIEW_SCHEMA
from uhr.manifests.schema import KEPT, REJECTED, Column
from uhr.manifests.sources.base import Listing
from uhr.manifests.sql import finite_column, quoted
from uhr.manifests.writer import Provenance, write_manifest
from uhr.runtime import units as unit_files
from uhr.runtime.units import UnitPlan

BATCH_ROWS = 16_384
MEMORY = "1GiB"
"""Memory limit of DuckDB; the rest is spilled to files in the units' folder."""

SPILLED = "commit.duckdb.tmp"
"""The folder of the spilled files."""

UNITS = "units"

FETCHED = "fetched"
"""The folder in OUT with what a source fetched during the run."""

LAYOUT = FolderLayout(
    "the manifest",
    (*part_files.LAYOUT.names, UNITS, FETCHED),
    (FILE, UNITS),
    {
        **part_files.LAYOUT.inside,
        UNITS: or_half_written(f"{LOCK}|{unit_files.FILES}"),
        f"{UNITS}/{SPILLED}": re.compile(".*"),
    },
)


def commit(
    out: Path,
    plan: CurationPlan,
    units: UnitPlan,
    tally: Tally,
    listing: Listing,
    operation: dict[str, Any],
    advance: Advance,
) -> Manifest:
    """Write the manifest of a run whose units are all finished. `operation` says what was done, as in
    `Provenance`.
    """
    parts = [units.part(unit) for unit in range(units.count)]
    seen = dict(tally.seen)
    rejected = dict(tally.rejected)
    with _SampleTable(units.folder) as table, all_or_nothing(out):
        if plan.sets:
            table.load(parts, plan)
            for planned in plan.sets:
                table.annotate(planned)
                table.apply_rules(planned, plan, seen, rejected)
            batches = table.batches(plan.schema)
        else:
            batches = _staged(parts, plan.schema)
        provenance = Provenance(
            root=listing.source.place,
            origin=listing.source.origin,
            operation=operation,
            stages=plan.stage_infos(),
            rules=_funnel(plan, seen, rejected),
            source={**listing.not_opened, "broken_sidecars": tally.broken_sidecars},
            versions=_versions(),
        )
        previews = _previews(parts) if plan.config.preview and plan.pixel else None
        return write_manifest(out, plan.schema, _counted(batches, advance), provenance, previews)


def _funnel(plan: CurationPlan, seen: dict[str, int], rejected: dict[str, int]) -> list[RuleInfo]:
    evaluated = [
        RuleInfo(
            name=r.name, where=r.condition.text, seen=seen.get(r.name, 0), rejected=rejected.get(r.name, 0)
        )
        for r in plan.rules
    ]
    idle = [RuleInfo(name=i.name, where=i.where, state="not evaluated", why=i.why) for i in plan.idle]
    return evaluated + idle


def _staged(parts: list[Path], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """Yield the rows of the staged parts. They are sorted by uri, as units are cut from the sorted list."""
    for part in parts:
        yield from parquet.read(part, schema.names).to_batches()


def _previews(parts: list[Path]) -> Iterator[pa.RecordBatch]:
    names = ["sample_id", *(field.name for field in PREVIEW)]
    for part in parts:
        table = parquet.read(part, names)
        table = table.filter(pc.field("_jpeg").is_valid())
        yield from table.rename_columns(PREVIEW_SCHEMA.names).cast(PREVIEW_SCHEMA).to_batches()


def _counted(batches: Iterator[pa.RecordBatch], advance: Advance) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        yield batch
        advance(batch.num_rows)


def _versions() -> dict[str, str]:
    """Return the versions of the packages that compute the columns."""
    found = {}
    for name in ("numpy", "opencv-python-headless", "pillow", "numba"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def _result_column(column: Column) -> str:
    """SQL for a set stage's column; null if its value is not finite, as in the columns of other stages."""
    if pa.types.is_floating(column.type):
        return f"{finite_column(column.name)} AS {quoted(column.name)}"
    return f"answer.{quoted(column.name)}"


class _SampleTable:
    """Context manager of a DuckDB table `samples` with every row; deleted when the block ends."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __enter__(self) -> _SampleTable:
        self._clear()
        with contextlib.ExitStack() as stack:
            # in memory: DuckDB resolves links in the name of a database file, and parses options in it
            spilled = stack.enter_context(plain_folder(self._folder)) / SPILLED
            self._connection = stack.enter_context(duckdb.connect(":memory:"))
            for setting in (
                f"memory_limit = '{MEMORY}'",
                f"temp_directory = '{spilled}'",
                "enable_progress_bar = false",
            ):
                self._connection.execute(f"SET {setting}")
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        self._clear()

    def _clear(self) -> None:
        """Remove the spilled files of a commit that was killed."""
        shutil.rmtree(self._folder / SPILLED, ignore_errors=True)

    def load(self, parts: list[Path], plan: CurationPlan) -> None:
        late = {column.name for planned in plan.sets for column in planned.stage.adds}
        schema = pa.schema([field for field in plan.schema if field.name not in late])
        with parquet.dataset(parts, schema) as staged:
            self._connection.register("staged", staged)
            self._connection.execute("CREATE TABLE samples AS SELECT * FROM staged")
            self._connection.unregister("staged")

    def annotate(self, planned: PlannedStage[SetStage]) -> None:
        """Add the columns of a set stage. They are null in rows that are not kept.

        Raises UserError if the stage's query fails or does not select its declared columns.
        """
        run = self._connection.execute
        run(f"CREATE OR REPLACE TEMP VIEW live AS SELECT * FROM samples WHERE status = '{KEPT}'")
        try:
            run(f"CREATE OR REPLACE TABLE answer AS {planned.stage.query()}")
        except duckdb.Error as error:
            raise UserError(f"stage '{planned.label}': {one_line(error)}", "fix its query") from None
        self._check_result(planned)
        run("DROP VIEW live")
        columns = ", ".join(map(_result_column, planned.stage.adds))
        joined = "samples LEFT JOIN answer USING (sample_id)"
        run(f"CREATE TABLE more AS SELECT samples.*, {columns} FROM {joined}")
        run("DROP TABLE samples")
        run("DROP TABLE answer")
        run("ALTER TABLE more RENAME TO samples")

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

    def apply_rules(
        self,
        planned: PlannedStage[SetStage],
        plan: CurationPlan,
        seen: dict[str, int],
        rejected: dict[str, int],
    ) -> None:
        """Evaluate the rules that follow a set stage on the kept rows, and write the verdicts.

        Adds to `seen` and `rejected`, the counts by rule.
        """
        if not planned.rules:
            return
        columns = {"sample_id"}.union(*(rule.condition.columns for rule in planned.rules))
        chosen = ", ".join(map(quoted, sorted(columns)))
        run = self._connection.execute
        run("CREATE TABLE changes (sample_id VARCHAR, status VARCHAR, reason VARCHAR, error VARCHAR)")
        query = f"SELECT {chosen} FROM samples WHERE status = '{KEPT}' ORDER BY uri"
        schema = pa.schema([plan.schema.field(name) for name in sorted(columns)])
        judge = Judge(plan.schema)
        for batch in self._connection.cursor().sql(query).to_arrow_reader(BATCH_ROWS):
            rows = pa.Table.from_batches([batch]).cast(schema).to_pylist()
            verdicts = judge.verdicts(planned.rules, rows, seen)
            self._change(
                [(row["sample_id"], v) for row, v in zip(rows, verdicts, strict=True) if v], rejected
            )
        update = "status = changes.status, reason = changes.reason, error = changes.error"
        run(f"UPDATE samples SET {update} FROM changes WHERE samples.sample_id = changes.sample_id")
        run("DROP TABLE changes")

    def _change(self, verdicts: list[tuple[str, Verdict]], rejected: dict[str, int]) -> None:
        for _, verdict in verdicts:
            if verdict.status == REJECTED:
                rejected[verdict.reason] = rejected.get(verdict.reason, 0) + 1
        if verdicts:
            columns = list(zip(*((sample, *verdict) for sample, verdict in verdicts), strict=True))
            rows = pa.table([pa.array(c, pa.string()) for c in columns], names=["a", "b", "c", "d"])
            self._connection.register("rows_to_change", rows)
            self._connection.execute("INSERT INTO changes SELECT * FROM rows_to_change")
            self._connection.unregister("rows_to_change")

    def batches(self, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        """Yield every row with the columns of `schema`, sorted by uri."""
        columns = ", ".join(map(quoted, schema.names))
        query = f"SELECT {columns} FROM samples ORDER BY uri"
        for batch in self._connection.sql(query).to_arrow_reader(BATCH_ROWS):
            yield from pa.Table.from_batches([batch]).cast(schema).to_batches()
