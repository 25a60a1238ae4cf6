"""The columns of the parts that tasks write, and how the parts of a unit are joined into rows.

A pass is given by its `number`, a segment by its place in the pass; 0 is that of the CPU.
"""

from __future__ import annotations

import pyarrow as pa

from uhr.base import parquet
from uhr.curate.planning.plan import CurationPlan
from uhr.curate.run.rows import PREVIEW
from uhr.manifests.schema import BASE, VERDICT, schema_of
from uhr.runtime.units import UnitPlan

_SAMPLE = pa.field("sample_id", pa.string())


def frame_schema(plan: CurationPlan, number: int) -> pa.Schema:
    """Return the columns of a part of the first segment of a pass.

    In the first pass and where patches are cut these are all columns that the rows have by then; elsewhere
    only those that the segment writes, and the verdict.
    """
    this = plan.passes[number]
    own = this.columns([*((this.expand,) if this.expand is not None else ()), *this.frames])
    if number == 0 or this.expand is not None:
        measured = {column.name for column in own}
        before = {c.name: c for c in (*plan.given, *(plan.inherited if number else ()))}
        given = [column for name, column in before.items() if name not in measured]
        return schema_of([*given, *own, *plan.verdict_columns])
    return _narrow(plan, [column.field() for column in own])


def segment_schema(plan: CurationPlan, number: int, segment: int) -> pa.Schema:
    """Return the columns of a part of a segment of models: those that it writes, and the verdict."""
    this = plan.passes[number]
    stages = this.segments[segment - 1].stages
    return _narrow(plan, [column.field() for column in this.columns(stages)])


def _narrow(plan: CurationPlan, fields: list[pa.Field]) -> pa.Schema:
    return pa.schema([_SAMPLE, *fields, *(c.field() for c in (*VERDICT, *plan.verdict_columns))])


def has_previews(plan: CurationPlan, number: int) -> bool:
    """Whether the parts of the first segment of a pass have columns of previews."""
    return number == 0 or plan.passes[number].expand is not None


def item_columns(plan: CurationPlan, number: int) -> list[str]:
    """Return the columns that the items of a later pass need: what identifies a row, and what its stages and
    rules read."""
    this = plan.passes[number]
    own = {column.name for column in this.columns(this.stages)}
    needs = {need for planned in this.stages for need in planned.stage.needs}
    if this.expand is not None:
        # of its items, which are images, the columns that its patches get too
        own -= {column.name for each in plan.passes[:number] for column in each.columns(each.stages)}
        own -= {column.name for column in plan.given}
        needs.update(column.name for column in plan.inherited)
    needs.update(*(rule.condition.columns for rule in this.rules))
    always = {column.name for column in BASE} - {column.name for column in VERDICT}
    always |= {"width", "height", *(column.name for column in (*plan.verdict_columns, *plan.given))}
    return [name for name in plan.schema.names if name in (needs | always) - own]


def unit_rows(plan: CurationPlan, units: UnitPlan, number: int, unit: int, segments: int) -> pa.Table:
    """Return the rows of a unit after the first `segments` segments of a pass: the columns of all of their
    parts, and the verdicts of the last one. Their order is that of the parts.
    """
    schema = frame_schema(plan, number)
    table = parquet.read(units.part(unit), schema.names)
    verdict = {column.name for column in (*VERDICT, *plan.verdict_columns)}
    for segment in range(1, segments):
        part = parquet.read(units.part(unit, segment), segment_schema(plan, number, segment).names)
        for field in part.schema:
            if field.name in verdict:
                place = table.schema.get_field_index(field.name)
                table = table.set_column(place, field, part[field.name])
            elif field.name != "sample_id":
                table = table.append_column(field, part[field.name])
    return table


def previews_of(part: pa.Table) -> pa.Table:
    """Return the rows of a part that have a preview: `sample_id` and the columns of PREVIEW."""
    names = ["sample_id", *(field.name for field in PREVIEW)]
    return part.select(names).filter(part["_jpeg"].is_valid())
