"""What `manifest.json` says: where a manifest comes from, what was done, and which parts it is made of."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
from pydantic import Field

from uhr.base.config import Config, fingerprint, read_versioned
from uhr.base.errors import UserError
from uhr.manifests.schema import SCHEMA_VERSION

FILE = "manifest.json"


class Part(Config):
    """One Parquet file of the manifest. `path` is relative to the manifest's folder, `bytes` its size."""

    path: str
    rows: int
    bytes: int
    sha256: str


class Parent(Config):
    """A manifest that this one was made of. `path` is where it stood then; `id` is what counts.

    A path that is not UTF-8 is written as `base.paths.path_text` does, here and in `ManifestInfo.root`.
    """

    id: str
    path: str
    role: str


class StageInfo(Config):
    """A stage of the run: which columns it adds, and whether it ran."""

    name: str
    version: int
    fingerprint: str
    adds: list[str]
    state: Literal["ran", "skipped"] = "ran"
    why: str = ""


class RuleInfo(Config):
    """A step of the funnel: of the `seen` samples still in at this rule, `rejected` were turned down."""

    name: str
    where: str
    state: Literal["evaluated", "not evaluated"] = "evaluated"
    why: str = ""
    seen: int = 0
    rejected: int = 0


class ManifestInfo(Config):
    """`manifest.json`. `id` depends on the content and on what was done alone: never on when, where or with
    which software versions it was made. The content of a curated manifest includes `source_version` (size and
    modification time of each source file) and what its stages were given: images copied with new times give
    another id.

    `operation` says what was done: {"kind": "curate", "pipeline": ...} or {"kind": "slice", "where": ...};
    `counts` holds rows, kept, rejected, failed and reasons; `source` what the listing met and did not open.
    """

    schema_version: int
    id: str
    created: str
    uhr: str
    root: str
    parents: list[Parent] = Field(default_factory=list)
    operation: dict[str, Any]
    stages: list[StageInfo] = Field(default_factory=list)
    rules: list[RuleInfo] = Field(default_factory=list)
    counts: dict[str, Any]
    source: dict[str, int] = Field(default_factory=dict)
    weights: dict[str, str] = Field(default_factory=dict)
    versions: dict[str, str] = Field(default_factory=dict)
    parts: list[Part]
    previews: list[Part] = Field(default_factory=list)


def content_id(
    schema: pa.Schema,
    operation: dict[str, Any],
    parents: Sequence[Parent],
    parts: Sequence[Part],
    previews: Sequence[Part],
) -> str:
    """The id of a manifest (64 hex digits): SHA-256 over what it holds and what was done to get it."""
    return fingerprint(
        {
            "schema_version": SCHEMA_VERSION,
            "schema": [[field.name, str(field.type)] for field in schema],
            "operation": operation,
            "parents": [[parent.id, parent.role] for parent in parents],
            "parts": [[part.rows, part.sha256] for part in parts],
            "previews": [[part.rows, part.sha256] for part in previews],
        }
    )


def is_manifest(path: Path) -> bool:
    """Whether a committed manifest stands in the folder `path`."""
    return (Path(path) / FILE).is_file()


def read_info(path: Path) -> ManifestInfo:
    """`manifest.json` of the folder `path`; a UserError where there is none that this version can read."""
    file = path / FILE
    if not file.is_file():
        if not path.exists():
            raise UserError(
                f"no manifest at {path}",
                "name the folder that `uhr curate run` or `uhr manifest slice` wrote",
            )
        if (path / "units").is_dir():
            raise UserError(f"{path} holds an unfinished curated set", "start the same run again: it goes on")
        if (path / "samples").is_dir():
            raise UserError(f"{path} holds an unfinished manifest", "start the command that writes it again")
        raise UserError(
            f"{path} holds no {FILE}", "name the folder that `uhr curate run` or `uhr manifest slice` wrote"
        )
    return read_versioned(ManifestInfo, file, SCHEMA_VERSION, "restore the file, or make it anew")
