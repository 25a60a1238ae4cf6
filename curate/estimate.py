"""What a run will take: a small sample of its images is measured, and the rest is extrapolated."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from uhr.base import parquet
from uhr.base.arrow import table_hash
from uhr.base.errors import UserError
from uhr.curate.config import PipelineConfig, fetching, load
from uhr.curate.faults import DOWNLOAD
from uhr.curate.planning.plan import CurationPlan
from uhr.curate.planning.planned import Pass
from uhr.curate.run.commit import UNITS, during_run
from uhr.curate.run.earlier.harvest import take
from uhr.curate.run.execution import Finished, passes_run
from uhr.curate.run.job import CurationRequest, run_file
from uhr.curate.run.parts import has_previews
from uhr.curate.run.rows import DECODING, PREVIEWS, VIEWS, Tally
from uhr.manifests.schema import KEPT, SOURCES, Column
from uhr.manifests.sources.base import Listing
from uhr.manifests.sources.blobs import size_of
from uhr.runtime.pool import Pool
from uhr.runtime.units import Limits
from uhr.runtime.worker import cores

TOKENS_PER_WORD = 4 / 3
"""Of English text, where no tokenizer counts them."""

TEXTS = ("caption", "translate")
"""The stages whose texts are counted in tokens."""


def plan_of(
    config: PipelineConfig, strict: bool, columns: Sequence[Column]
) -> tuple[CurationPlan, UserError | None]:
    """Return the plan of a pipeline, and the error because of which it cannot start if there is one.

    Then the plan has the stages that can run here, and names the others with the reason. `columns` are those
    of the source. Raises UserError if there is no such plan either.
    """
    try:
        return CurationPlan.of(config, strict, columns), None
    except UserError as error:
        entries = [entry.model_copy(update={"if_missing": "skip"}) for entry in config.stages]
        rules = {
            name: rule if isinstance(rule, str) else rule.model_copy(update={"required": False})
            for name, rule in config.rules.items()
        }
        try:
            lenient = config.model_copy(update={"stages": entries, "rules": rules})
            return CurationPlan.of(lenient, False, columns), error
        except UserError:
            raise error from None


def preset_fault(preset: str) -> str | None:
    """Say why a preset does not run on this machine, and what helps; None if it does, over images or a
    list of URLs.
    """
    _, fault = plan_of(fetching(load(preset)), False, SOURCES)
    return None if fault is None else str(fault)


def estimate(request: CurationRequest, listing: Listing, count: int) -> dict[str, Any]:
    """Run the pipeline over `count` images of a listing, drawn at random, in a temporary folder, and return
    what the whole run will take.

    `stages` has by stage the rows for which it is called, those whose results are `reused`, and the seconds,
    and the same of previews and of the views of models;
    `passes` the rows, and the seconds of the run with its workers, which are those of the slowest segment;
    `rules` how many rows of the sample were rejected; `bytes` what is read, or fetched, and written for
    previews and stored images; `tokens` those of captions. Numbers of the run are those of the
    sample times the share of all images.
    """
    # a host that fails says so in its rows
    config = request.plan.config.model_copy(update={"pause": 0})
    plan, total = replace(request.plan, config=config), listing.items.num_rows
    sample = listing.drawn(count, 0)
    pool = Pool("local", min(1, 1 if request.pool.workers is None else request.pool.workers))
    limits = plan.config.limits
    runner = pool.runner(Limits(limits.seconds, int(limits.memory)))
    scale = total / sample.items.num_rows
    with tempfile.TemporaryDirectory(prefix="uhr-measured-") as name:
        folder = Path(name)
        units = folder / UNITS
        units.mkdir()
        described = run_file(plan, sample, table_hash(sample.items))
        described.write(units)
        for path in request.reuse:
            take(path, units, request.retry)
        source = during_run(listing.source, folder, DOWNLOAD in request.retry)
        with passes_run(plan, units, sample.items, source, runner, described) as finished:
            rows = pa.Table.from_batches(finished.batches(), plan.schema)
            return {
                "measured": sample.items.num_rows,
                "of": total,
                "stages": _stages(plan, finished, scale),
                "passes": _passes(request, finished, scale),
                "rules": _rules(plan, finished),
                "bytes": _bytes(plan, finished, rows, scale),
                "tokens": _tokens(plan, rows, scale),
            }


def _stages(plan: CurationPlan, finished: Finished, scale: float) -> list[dict[str, Any]]:
    tally = finished.tally
    labels = dict.fromkeys(planned.label for each in plan.passes for planned in _called(each))
    labels |= dict.fromkeys(label for label in (DECODING, PREVIEWS, VIEWS) if tally.measured[label])
    return [
        {
            "stage": label,
            "measured": tally.measured[label],
            "seconds_each": _each(tally.microseconds[label], tally.measured[label]),
            "rows": round(tally.measured[label] * scale),
            "reused": round(tally.reused[label] * scale),
            "seconds": tally.microseconds[label] / 1e6 * scale,
        }
        for label in labels
    ]


def _called(this: Pass) -> list[Any]:
    return [planned for planned in this.stages if planned not in this.sets]


def _each(microseconds: int, rows: int) -> float | None:
    return microseconds / 1e6 / rows if rows else None


def _passes(request: CurationRequest, finished: Finished, scale: float) -> list[dict[str, Any]]:
    found = []
    workers = request.pool.workers if request.pool.workers is not None else cores()
    for this, units in zip(request.plan.passes, finished.units, strict=True):
        models = [
            (segment.resources.actors[1], {planned.label for planned in segment.stages})
            for segment in this.segments
        ]
        first = {planned.label for planned in _called(this) if planned not in this.batches}
        first |= {DECODING, PREVIEWS, VIEWS}
        tally = Tally.empty()
        for unit in range(units.count):
            tally = tally.plus(Tally.of_unit(units, unit))
        seconds = [
            sum(tally.microseconds[label] for label in labels) / 1e6 * scale / max(1, count)
            for count, labels in [(workers, first), *models]
        ]
        found.append({"rows": round(units.rows * scale), "seconds": max(seconds)})
    return found


def _rules(plan: CurationPlan, finished: Finished) -> list[dict[str, Any]]:
    found = []
    for rule in plan.rules:
        seen = finished.seen.get(rule.name, 0)
        rejected = (finished.lost if rule.channel else finished.rejected).get(rule.name, 0)
        found.append({"rule": rule.name, "seen": seen, "rejected": rejected})
    return found


def _bytes(plan: CurationPlan, finished: Finished, rows: pa.Table, scale: float) -> dict[str, int]:
    whole, kept = 0, 0
    for row in rows.to_pylist():
        if row["parent_id"] is not None or row["content_hash"] is None:
            continue
        size = row.get("file_size") or size_of(row["source_version"] or "")
        whole += size
        kept += size if row["status"] == KEPT or plan.config.pixels == "all" else 0
    previews = 0
    for number, units in enumerate(finished.units):
        for unit in range(units.count) if has_previews(plan, number) else ():
            shown = parquet.read(units.part(unit), ["_jpeg"])["_jpeg"].drop_null()
            previews += sum(map(len, shown.to_pylist()))
    stored = 0 if plan.config.pixels in (None, "none") else kept
    return {
        name: round(size * scale)
        for name, size in (
            ("read", whole * _share_called(plan, finished)),
            ("previews", previews),
            ("stored", stored),
        )
    }


def _share_called(plan: CurationPlan, finished: Finished) -> float:
    """The share of the images for which a stage is called: of the others all results are reused."""
    tally, labels = finished.tally, [planned.label for planned in plan.passes[0].frames]
    called = max((tally.measured[label] for label in labels), default=0)
    seen = max((tally.measured[label] + tally.reused[label] for label in labels), default=0)
    return called / seen if any(tally.reused[label] for label in labels) else 1.0


def _tokens(plan: CurationPlan, rows: pa.Table, scale: float) -> dict[str, dict[str, Any]]:
    """Return by column of captions the texts and tokens of the run, and whether a tokenizer counted them."""
    found = {}
    for planned in plan.stages:
        if planned.stage.name not in TEXTS:
            continue
        column = planned.stage.params.column
        texts = [text for text in rows[column].to_pylist() if text is not None]
        counts = _counted(rows.to_pydict(), column)
        tokens = sum(counts) if counts is not None else sum(len(t.split()) for t in texts) * TOKENS_PER_WORD
        found[column] = {
            "texts": round(len(texts) * scale),
            "tokens": round(tokens * scale),
            "counted": counts is not None,
        }
    return found


def _counted(columns: Mapping[str, list[Any]], column: str) -> list[int] | None:
    for kind in ("t5", "clip"):
        if (counts := columns.get(f"{column}_{kind}_tokens")) is not None:
            return [count for count in counts if count is not None]
    return None
