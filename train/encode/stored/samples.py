"""Writes the manifest of encoded data: the slice's rows, and where each one is in its bucket."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from uhr.base.config import fingerprint
from uhr.manifests.info import Parent, Part, StageInfo
from uhr.manifests.manifest import Manifest
from uhr.manifests.places import place_of
from uhr.manifests.schema import ENCODING, FAILED, KEPT
from uhr.manifests.writer import Provenance, write_manifest
from uhr.train.encode.config import ENCODE_VERSION
from uhr.train.encode.request import EncodeRequest

ADDED = tuple(column.name for column in ENCODING)


def write_samples(request: EncodeRequest, result: pa.Table, attachments: Sequence[Part]) -> Manifest:
    """Write `manifest.json` and `samples/`: every selected row with all columns of the slice.

    Args:
        result: by sample_id, `reason` and `error` of the rows that failed, and the columns `ADDED`.
        attachments: the Parquet files with the tensors.
    """
    parent, config = request.manifest, request.config.model_dump(mode="json")
    kept = [field for field in parent.schema if field.name not in ADDED]
    schema = pa.schema([*kept, *(column.field() for column in ENCODING)])
    stage = StageInfo(
        name="encode",
        version=ENCODE_VERSION,
        fingerprint=fingerprint([ENCODE_VERSION, config, request.identity.hashes]),
        adds=list(ADDED),
    )
    provenance = Provenance(
        root=parent.root,
        origin=parent.origin,
        operation={
            "kind": "encode",
            "version": ENCODE_VERSION,
            "spec": request.identity.spec,
            "config": config,
        },
        parents=[Parent(id=parent.id, path=place_of(parent.path), role="encoded from")],
        stages=[*(each for each in parent.info.stages if each.name != stage.name), stage],
        rules=parent.info.rules,
        weights={**parent.info.weights, **request.identity.hashes},
        attachments=attachments,
    )
    return write_manifest(request.out, schema, _batches(parent, schema, result), provenance)


def _batches(parent: Manifest, schema: pa.Schema, result: pa.Table) -> Iterator[pa.RecordBatch]:
    """The selected rows, streamed from the slice's parts."""
    ids = result["sample_id"].combine_chunks()
    for batch in parent.rows():
        places = pc.call_function("index_in", [batch.column("sample_id")], pc.SetLookupOptions(ids))
        chosen = pc.call_function("is_valid", [places])
        found = result.take(places.filter(chosen)).combine_chunks()
        rows = batch.filter(chosen)
        failed = pc.call_function("is_valid", [found["reason"].combine_chunks()])
        columns = {name: rows.column(name) for name in rows.schema.names}
        columns |= {name: found[name].combine_chunks() for name in ("reason", "error", *ADDED)}
        columns["status"] = pc.call_function("if_else", [failed, pa.scalar(FAILED), pa.scalar(KEPT)])
        yield pa.RecordBatch.from_arrays(
            [columns[field.name].cast(field.type) for field in schema], schema=schema
        )
