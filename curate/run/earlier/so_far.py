"""The rows that an unfinished run has so far, as a manifest in another folder, for reports."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pyarrow as pa

from uhr.base.errors import UserError
from uhr.base.paths import text_path
from uhr.curate.run.earlier.harvest import PartRows, units_here
from uhr.curate.run.earlier.run_file import RunFile
from uhr.curate.run.rows import PREVIEW, UNDONE, Tally
from uhr.manifests.manifest import Manifest
from uhr.manifests.parts import PREVIEW_SCHEMA
from uhr.manifests.schema import BASE, VERDICT, Column, schema_of
from uhr.manifests.sql import quoted
from uhr.manifests.writer import Provenance, write_manifest
from uhr.runtime.units import UnitPlan

_ORDER = "uri, source_name, parent_id IS NOT NULL, box"


def so_far(out: Path | str, folder: Path) -> Manifest:
    """Write the rows of the finished tasks of the unfinished run in a folder or at an address to `folder`. A
    row that is not rejected yet counts as kept.

    Raises UserError if `out` contains no unfinished run, or one that has no row yet.
    """
    units = units_here(out)
    if not RunFile.exists(units):
        raise UserError(f"{out} contains no manifest, and no unfinished run that can be read")
    run = RunFile.read(units)
    numbers = itertools.takewhile(lambda number: UnitPlan.exists(units, number), itertools.count(1))
    passes = [UnitPlan.open(units, number) for number in numbers]
    tables, tally = [], Tally.empty()
    for plan in passes:
        rows = PartRows(plan, run, ())
        if rows.schema is not None:
            tables.append(pa.concat_tables(rows.tables(range(plan.count), lambda n: None)))
        begun = Tally.empty()
        for unit in plan.finished():
            begun = begun.plus(_of_unit(plan, unit))
        tally = begun.after(tally)
    if not tables:
        raise UserError(f"the run in {out} has no row yet", "wait for its first unit")
    with duckdb.connect() as connection:
        whole = _merged(connection, tables)
        return _write(folder, run, whole, tally, passes[0].rows)


def _of_unit(plan: UnitPlan, unit: int) -> Tally:
    tally = Tally.of_part(plan.part(unit))
    for segment in range(1, plan.segments):
        if not plan.part(unit, segment).exists():
            break
        tally = Tally.of_part(plan.part(unit, segment)).after(tally)
    return tally


def _merged(connection: duckdb.DuckDBPyConnection, tables: list[pa.Table]) -> pa.Table:
    """Join the rows of all passes: each row with the verdict of its last one."""
    first = tables[0]
    have = list(first.schema.names)
    connection.register("pass0", first)
    connection.execute("CREATE TABLE rows AS SELECT * FROM pass0")
    for number, table in enumerate(tables[1:], 1):
        connection.register(f"pass{number}", table)
        names = [name for name in table.schema.names if name != "sample_id"]
        for name in names:
            if name not in have:
                kind = connection.sql(f"SELECT {quoted(name)} FROM pass{number}").types[0]
                connection.execute(f"ALTER TABLE rows ADD COLUMN {quoted(name)} {kind}")
                have.append(name)
        verdict = {column.name for column in VERDICT}
        values = {n: f"coalesce(new.{quoted(n)}, rows.{quoted(n)})" for n in names}
        values |= {n: f"new.{n}" for n in verdict}
        later = ", ".join(f"{quoted(name)} = {value}" for name, value in values.items())
        run = connection.execute
        run(f"UPDATE rows SET {later} FROM pass{number} AS new WHERE rows.sample_id = new.sample_id")
        run(
            f"INSERT INTO rows BY NAME SELECT * FROM pass{number} "
            "WHERE sample_id NOT IN (SELECT sample_id FROM rows)"
        )
    fields = {field.name: field for table in reversed(tables) for field in table.schema}
    order = _ORDER if "source_name" in have else _ORDER.replace("source_name, ", "")
    found = connection.sql(f"SELECT * FROM rows WHERE status <> '{UNDONE}' ORDER BY {order}").to_arrow_table()
    schema = pa.schema([fields[name] for name in have])
    return pa.table([found[name].cast(fields[name].type) for name in have], schema=schema)


def _write(folder: Path, run: RunFile, rows: pa.Table, tally: Tally, total: int) -> Manifest:
    shown = [name for name in rows.schema.names if not name.startswith("_")]
    base = {column.name: column for column in BASE}
    schema = schema_of([Column.from_field(rows.schema.field(n)) for n in shown if n not in base])
    for name in base.keys() - set(shown):
        rows = rows.append_column(name, pa.nulls(rows.num_rows, base[name].type))
    whole = pa.table([rows[field.name].cast(field.type) for field in schema], schema=schema)
    have = set(schema.names)
    stages = [stage for stage in run.stages if stage.state == "skipped" or have.issuperset(stage.adds)]
    rules = [
        rule.model_copy(
            update={
                "seen": tally.seen[rule.name],
                "rejected": (tally.lost if rule.channel else tally.rejected)[rule.name],
            }
        )
        for rule in run.rules
    ]
    provenance = Provenance(
        root=text_path(run.root),
        origin=run.origin,
        operation={
            "kind": "curate",
            "pipeline": run.pipeline,
            "unfinished": {"rows": rows.num_rows, "files": total},
        },
        stages=stages,
        rules=rules,
    )
    return write_manifest(folder, schema, whole.to_batches(), provenance, _previews(rows))


def _previews(rows: pa.Table) -> Iterator[pa.RecordBatch]:
    table = rows.select(["sample_id", *(field.name for field in PREVIEW)]).filter(rows["_jpeg"].is_valid())
    yield from table.rename_columns(PREVIEW_SCHEMA.names).cast(PREVIEW_SCHEMA).to_batches()
