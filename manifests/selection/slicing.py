"""Slice a manifest: select rows in four steps of fixed order: status, where, sample, split.

Whether a row is drawn, and its split, depend only on (seed, sample_id): not on row order, the machine or
other rows. A sample of N + 1 rows contains the sample of N rows with the same seed. A row stays in its split
when the set grows.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from uhr.base.config import Config
from uhr.base.console import Advance, warn
from uhr.base.errors import UserError
from uhr.base.files import saving
from uhr.base.paths import path_text
from uhr.base.run_folder import RunFolder, all_or_nothing
from uhr.manifests.info import Parent, is_manifest
from uhr.manifests.manifest import Manifest
from uhr.manifests.parts import LAYOUT
from uhr.manifests.schema import COLUMNS
from uhr.manifests.sql import SqlCondition
from uhr.manifests.writer import Provenance, write_manifest

SPLIT = COLUMNS["split"]


class SliceOptions(Config):
    """The options of a slice. `split` has shares by name, which add up to 1; `sample` is a number of rows."""

    status: Literal["kept", "rejected", "failed", "any"] = "kept"
    where: str | None = None
    sample: int | None = None
    split: dict[str, float] | None = None
    seed: int = 0

    def operation(self) -> dict[str, Any]:
        """Return the operation, which is part of the id. It has no seed if nothing is drawn."""
        drawn = self.sample is not None or self.split is not None
        steps = self.model_dump(exclude_none=True, exclude=set() if drawn else {"seed"})
        return {"kind": "slice", **steps}


def parse_split(text: str) -> dict[str, float]:
    """Parse `train=0.9,val=0.1` into shares by name. Raises UserError if it is invalid."""
    fix = "write it as train=0.9,val=0.1, adding up to 1"
    shares: dict[str, float] = {}
    for item in text.split(","):
        match = re.fullmatch(r"\s*([A-Za-z][\w-]*)\s*=\s*([0-9.eE+-]+)\s*", item)
        try:
            name, share = (match[1], float(match[2])) if match else ("", 0.0)
        except ValueError:
            name, share = "", 0.0
        if not name or name in shares or not 0 < share <= 1:
            raise UserError(f"--split '{text}': '{item.strip()}' is not a share, or repeats a name", fix)
        shares[name] = share
    if abs(sum(shares.values()) - 1) > 1e-6:
        raise UserError(f"--split '{text}' adds up to {sum(shares.values()):g}", fix)
    return shares


def slice_manifest(
    parent: Manifest, out: Path, options: SliceOptions, advance: Advance = lambda n=1, note=None: None
) -> Manifest:
    """Write a slice of `parent` to `out`.

    It has all columns, the previews of its rows, the parent's stages, rules and weights, and a reference to
    the parent.

    Raises UserError if no rows or fewer than `sample` are left, if a split is empty, or if `out` is inside a
    manifest or contains anything but the leftovers of a slice that was killed.
    """
    condition = None
    if options.where is not None:
        condition = SqlCondition.parse(options.where, "--where")
        condition.check(parent.schema)
    rows = _read(parent, options, condition)
    mask = _draw(parent, options, rows)
    labels = None
    if options.split is not None:
        labels = _labels(options.split, _unit(rows["split_key"]), mask)
    schema = parent.schema
    if labels is not None:
        if SPLIT.name in schema.names:
            schema = schema.remove(schema.get_field_index(SPLIT.name))
        schema = schema.append(SPLIT.field())
    chosen = rows["sample_id"].filter(pa.array(mask)).to_pylist()
    fix = "free space there, then repeat the command"
    with saving(out, fix), all_or_nothing(Path(out)):
        _claim(out)
        provenance = Provenance(
            root=parent.root,
            operation=options.operation(),
            parents=[Parent(id=parent.id, path=path_text(parent.path.resolve()), role="slice of")],
            stages=parent.info.stages,
            rules=parent.info.rules,
            weights=parent.info.weights,
        )
        batches = _batches(parent, schema, rows["sample_id"], mask, labels, advance)
        previews = parent.preview_batches(chosen) if parent.info.previews else None
        return write_manifest(out, schema, batches, provenance, previews)


def _claim(out: Path) -> None:
    for above in Path(out).resolve().parents:
        if is_manifest(above):
            raise UserError(f"--out {out} is inside the manifest {above}", "name a folder outside it")
    RunFolder(out, LAYOUT).claim()


def _read(
    parent: Manifest, options: SliceOptions, condition: SqlCondition | None
) -> dict[str, pa.ChunkedArray]:
    """Return for every row its id, whether status and condition select it, and its random keys.

    The keys are the first 64 bits of SHA-256("seed:sample:id") and of SHA-256("seed:split:id"). Patches are
    split by the id of their parent, so that no image is in two splits.
    """
    status = "true" if options.status == "any" else f"status = '{options.status}'"
    key = "('0x' || sha256('{}:{}:' || {})[1:16])::UBIGINT"
    split_by = "coalesce(parent_id, sample_id)"
    query = f"""
        SELECT sample_id, {status} AS by_status, {{where}} AS by_where,
               {key.format(options.seed, "sample", "sample_id") if options.sample else 0} AS sample_key,
               {key.format(options.seed, "split", split_by) if options.split else 0} AS split_key
        FROM samples"""
    try:
        with parent.connect() as connection:
            where = condition.sql_for(connection) if condition else "true"
            rows = connection.sql(query.format(where=where)).to_arrow_table()
    except duckdb.Error as error:
        if condition is None:
            raise
        raise condition.error_from(error) from None
    return {name: rows[name] for name in rows.column_names}


def _draw(parent: Manifest, options: SliceOptions, rows: Mapping[str, pa.ChunkedArray]) -> np.ndarray:
    """Return which rows are in the slice, bool [rows]."""
    by_status = rows["by_status"].to_numpy()
    by_where = pc.fill_null(rows["by_where"], False).to_numpy()
    mask = by_status & by_where
    left = int(mask.sum())
    counts = f"{len(mask)} rows, {int(by_status.sum())} of status {options.status}"
    if options.where is not None:
        nulls = int((by_status & rows["by_where"].is_null().to_numpy()).sum())
        counts += f", {left} of them where {options.where}" + (f" ({nulls} are null there)" if nulls else "")
        if nulls and left:
            seen = int(by_status.sum())
            warn(f"--where {options.where} is null on {nulls:,} of {seen:,} rows, and they are left out")
    if left == 0:
        raise UserError(f"nothing is left of {parent.path} ({counts})", "loosen --where, or see --status any")
    if options.sample is None:
        return mask
    if options.sample < 1:
        raise UserError(f"--sample {options.sample}", "draw at least 1")
    if options.sample > left:
        raise UserError(
            f"--sample {options.sample} is more than the {left} rows that are left ({counts})", "draw fewer"
        )
    places = np.flatnonzero(mask)
    ids = rows["sample_id"].filter(pa.array(mask)).to_numpy().astype("S")
    keys = rows["sample_key"].to_numpy()[places].astype(np.uint64)
    first = np.lexsort((ids, keys))[: options.sample]
    mask = np.zeros_like(mask)
    mask[places[first]] = True
    return mask


def _unit(keys: pa.ChunkedArray) -> np.ndarray:
    """Turn 64-bit keys into numbers in [0, 1), from their first 53 bits, which a float represents exactly."""
    return (keys.to_numpy().astype(np.uint64) >> np.uint64(11)).astype(np.float64) / 2.0**53


def _labels(split: Mapping[str, float], draws: np.ndarray, mask: np.ndarray) -> pa.Array:
    """Return the split of every row, string [rows]: the share of [0, 1) that its draw falls into."""
    names = list(split)
    bounds = np.cumsum([split[name] for name in names])[:-1]
    codes = np.searchsorted(bounds, draws, side="right")
    sizes = np.bincount(codes[mask], minlength=len(names))
    for name, size in zip(names, sizes, strict=True):
        if size == 0:
            fix = "give it a larger share, another --seed, or a larger slice"
            raise UserError(f"--split {name}={split[name]:g} of {int(mask.sum())} rows came out empty", fix)
    return pa.DictionaryArray.from_arrays(pa.array(codes, pa.int32()), pa.array(names)).cast(pa.string())


def _batches(
    parent: Manifest,
    schema: pa.Schema,
    ids: pa.ChunkedArray,
    mask: np.ndarray,
    labels: pa.Array | None,
    advance: Advance,
) -> Iterator[pa.RecordBatch]:
    """Yield the selected rows, streamed from the parent's parts."""
    start = 0
    for batch in parent.rows():
        here = slice(start, start + batch.num_rows)
        same = ids.slice(start, batch.num_rows).equals(pa.chunked_array([batch.column("sample_id")]))
        assert same, "the query gave the rows in another order than the parts have them"
        if labels is not None:
            if SPLIT.name in batch.schema.names:
                batch = batch.drop_columns([SPLIT.name])
            batch = pa.RecordBatch.from_arrays([*batch.columns, labels[here]], schema=schema)
        yield batch.filter(pa.array(mask[here]))
        advance(here.stop - start)
        start = here.stop
