"""Write a manifest: its Parquet parts, and `manifest.json` last, which commits it."""

from __future__ import annotations

import datetime
import platform
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

import uhr
from uhr.base import parquet
from uhr.base.console import Advance
from uhr.base.errors import UserError
from uhr.base.files import write_json
from uhr.base.paths import path_text
from uhr.manifests import parts as part_files
from uhr.manifests.info import (
    FILE,
    ManifestInfo,
    Parent,
    Part,
    Redaction,
    RuleInfo,
    StageInfo,
    content_id,
    is_manifest,
)
from uhr.manifests.manifest import Manifest
from uhr.manifests.schema import SCHEMA_VERSION, STATUSES
from uhr.manifests.selection.reference import joined, own_fields


@dataclass(frozen=True)
class Provenance:
    """Where the rows of a manifest come from and how they were made, as `manifest.json` records it.

    root: where the source is: the folder that uris are relative to, if it is one
    origin: the description of the source; None if it is the folder `root`
    operation: what was done; part of the manifest's id, so it must not contain paths or times
    source: counts of what is in the source folder besides the rows
    weights: hashes of the models that wrote columns, by name
    files: hashes of the other files that decided values, by stage and name
    versions: of software, besides uhr, Python, pyarrow and duckdb
    attachments: Parquet files that were written into the folder before (`ManifestInfo.attachments`)
    redactions: as in `ManifestInfo`
    """

    root: Path | str
    operation: dict[str, Any]
    origin: dict[str, Any] | None = None
    parents: Sequence[Parent] = ()
    stages: Sequence[StageInfo] = ()
    rules: Sequence[RuleInfo] = ()
    source: Mapping[str, int] = field(default_factory=dict)
    weights: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    attachments: Sequence[Part] = ()
    redactions: Sequence[Redaction] = ()

    @classmethod
    def derived(
        cls, parent: Manifest, operation: dict[str, Any], parents: Sequence[Parent], **changes: Any
    ) -> Provenance:
        """Return the provenance of a manifest with rows of `parent`: the same source, stages, rules, weights,
        files and redactions.
        """
        info = parent.info
        same = cls(
            root=parent.root,
            origin=parent.origin,
            operation=operation,
            parents=parents,
            stages=info.stages,
            rules=info.rules,
            weights=info.weights,
            files=info.files,
            redactions=info.redactions,
        )
        return replace(same, **changes)

    def fields(self) -> dict[str, Any]:
        """Return the fields of `ManifestInfo` that do not depend on the rows."""
        return {
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "uhr": uhr.__version__,
            "root": path_text(self.root),
            "origin": self.origin,
            "parents": list(self.parents),
            "operation": self.operation,
            "stages": list(self.stages),
            "rules": list(self.rules),
            "source": dict(self.source),
            "weights": dict(self.weights),
            "files": dict(self.files),
            "versions": {**_versions(), **self.versions},
            "attachments": list(self.attachments),
            "redactions": list(self.redactions),
        }


def write_manifest(
    out: Path | str,
    schema: pa.Schema,
    batches: Iterable[pa.RecordBatch],
    provenance: Provenance,
    previews: Iterable[pa.RecordBatch] | None = None,
    parent: Manifest | None = None,
) -> Manifest:
    """Write and commit a manifest to the folder `out`. It becomes visible in the last step.

    The same content gives the same bytes and the same id. Leftovers of a commit that was killed are removed
    first.

    Args:
        schema: the columns of the rows.
        batches: the rows, sorted by uri. They are streamed, as are the previews.
        previews: rows of `parts.PREVIEW_SCHEMA` in the same order.
        parent: of a manifest by reference, the first of its parents. The rows have the columns of
            `reference.stored_schema`: those of the manifest that the parent does not have, or has with other
            values.

    Raises UserError if `out` already contains a manifest.
    """
    out = Path(out)
    if is_manifest(out):
        raise UserError(f"{out} already contains a manifest", "name another folder with --out")
    names = {*schema.names, *(() if parent is None else parent.schema.names)}
    for stage in provenance.stages:
        missing = set(stage.adds).difference(names) if stage.state == "ran" else set()
        assert not missing, f"stage {stage.name} says it adds {sorted(missing)}, which the schema lacks"
    part_files.clear_leftovers(out)
    counts = RowCounts(parent)
    parts = part_files.write_samples(out, schema, counts.watch(batches))
    shown = [] if previews is None else part_files.write_previews(out, previews)
    # the schema as it is read back: Parquet renames the fields inside lists
    read_back = parquet.schema_of(out / parts[0].path)
    info = ManifestInfo(
        schema_version=SCHEMA_VERSION,
        id=content_id(
            read_back, provenance.operation, provenance.parents, parts, shown, provenance.attachments
        ),
        counts=counts.verdicts(),
        parts=parts,
        previews=shown,
        coverage=dict(counts.coverage),
        by_reference=parent is not None,
        **provenance.fields(),
    )
    write_json(out / FILE, info.model_dump(mode="json"))
    return Manifest(out, info, parent)


def advancing(batches: Iterable[pa.RecordBatch], advance: Advance) -> Iterator[pa.RecordBatch]:
    """Yield the batches, and report the rows of each when the next one is requested."""
    for batch in batches:
        yield batch
        advance(batch.num_rows)


class RowCounts:
    """Counts the verdicts, and the values of each column, of the rows that pass through `watch`.

    parent: that of a manifest by reference, which has the verdicts that the rows do not have.
    """

    def __init__(self, parent: Manifest | None = None) -> None:
        self._parent = parent
        self.statuses: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self.coverage: Counter[str] = Counter()

    def watch(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        last = ""
        for batch in batches:
            rows = self._with_verdicts(batch)
            if batch.num_rows:
                uris = rows.column("uri")
                assert uris[0].as_py() >= last, f"rows out of order: {uris[0]} after {last}"
                last = uris[-1].as_py()
            for name, counter in (("status", self.statuses), ("reason", self.reasons)):
                for entry in rows.column(name).value_counts().to_pylist():
                    counter[entry["values"]] += entry["counts"]
            added = batch.schema if self._parent is None else own_fields(batch.schema)
            for each in added:
                self.coverage[each.name] += batch.num_rows - batch.column(each.name).null_count
            yield batch

    def _with_verdicts(self, batch: pa.RecordBatch) -> pa.RecordBatch | pa.Table:
        if self._parent is None:
            return batch
        missing = [name for name in ("uri", "status", "reason") if name not in batch.schema.names]
        return joined(pa.Table.from_batches([batch]), self._parent, missing, "a manifest by reference")

    def verdicts(self) -> dict[str, Any]:
        """Return the counts of `ManifestInfo`: rows, each status, and reasons, the most frequent first."""
        strange = set(self.statuses).difference(STATUSES)
        assert not strange, f"status {strange}"
        reasons = {name: n for name, n in self.reasons.items() if name is not None}
        ordered = dict(sorted(reasons.items(), key=lambda entry: (-entry[1], entry[0])))
        by_status = {status: self.statuses[status] for status in STATUSES}
        return {"rows": self.statuses.total(), **by_status, "reasons": ordered}


def _versions() -> dict[str, str]:
    versions = {"pyarrow": pa.__version__, "duckdb": duckdb.__version__}
    return {"python": platform.python_version(), **{name: str(version) for name, version in versions.items()}}
