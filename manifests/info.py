"""The content of `manifest.json`: origin, operation, stages, rules, counts and parts of a manifest."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import pyarrow as pa
from pydantic import AfterValidator, Field

from uhr.base.config import Config, LaterKeys, build, fingerprint, versioned_tree
from uhr.base.errors import UserError, one_line
from uhr.manifests.schema import SCHEMA_VERSION, STATUSES

FILE = "manifest.json"


def _inside(path: str) -> str:
    if path.startswith("/") or ".." in path.split("/"):
        raise ValueError("is not inside of the manifest's folder")
    return path


class Part(Config):
    """One Parquet file of the manifest. `path` is relative to the manifest's folder, `bytes` its size."""

    path: Annotated[str, AfterValidator(_inside)]
    rows: int
    bytes: int
    sha256: str


UNFINISHED = "results reused from the unfinished run"
"""The role of a parent that is no manifest: its id is that of the run's state at that time."""


class Parent(Config):
    """A manifest that this one was made from, identified by `id`; `path` is where it was at that time.

    A path that is not UTF-8 is escaped by `base.paths.path_text`, here and in `ManifestInfo.root`.
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


class RuleInfo(LaterKeys, Config):
    """A rule, with the number of samples that reached it (`seen`) and that it rejected (`rejected`).

    `null` is what becomes of a sample on which it has no value: reject or keep; empty is fail. The rule of a
    `channel` takes samples out of that channel only. `rows` is "patches" for a rule of patches, "images" for
    one of whole images where there are patches too, and empty elsewhere.
    """

    later: ClassVar[tuple[str, ...]] = ("null", "channel", "rows")

    name: str
    where: str
    state: Literal["evaluated", "not evaluated"] = "evaluated"
    why: str = ""
    seen: int = 0
    rejected: int = 0
    null: Literal["", "reject", "keep"] = ""
    channel: str = ""
    rows: Literal["", "images", "patches"] = ""

    @property
    def label(self) -> str:
        """The name, with the channel if the rule is of one."""
        return f"{self.name} (channel {self.channel})" if self.channel else self.name


class Redaction(Config):
    """What `forget` took out of a manifest: how many rows, when, why, and the id before.

    `tombstones` are SHA-256 hashes of what must not come back, as `selection.tombstones` makes them: of
    sample ids, uris with their sources, content hashes and URLs.
    """

    time: str
    rows: int
    reason: str = ""
    before: str
    tombstones: list[str] = Field(default_factory=list)


def _counted(counts: dict[str, Any]) -> dict[str, Any]:
    names = ("rows", *STATUSES)
    wrong = next((name for name in names if type(counts.get(name)) is not int), None)
    if wrong is not None or not isinstance(counts.get("reasons"), dict):
        raise ValueError(f"has no number of {wrong}" if wrong is not None else "has no reasons")
    return counts


class ManifestInfo(LaterKeys, Config):
    """The content of `manifest.json`.

    `id` depends only on the content and the operation, not on time, place or software versions. The content
    of a curated manifest includes `source_version` (size and modification time of each source file) and the
    parameters of its stages: images copied with new times give another id.

    `root` is where the source is. `origin` describes a source that is not the folder `root`, as
    `manifests.sources.build` reads it.

    `operation` is {"kind": "curate", "pipeline": ...}, {"kind": "slice", "where": ...} or {"kind": "encode",
    "config": ...}; `counts` has rows, kept, rejected, failed and reasons; `source` counts what the listing
    found and did not open; `weights` and `files` are hashes of the models, and of the other files (lists,
    policies, prompts) that decided values; `attachments` are Parquet files of other columns of the rows
    (latents, text embeddings), which readers of the manifest do not open. `coverage`: the number of rows with
    a value, by column. `redactions` are the times that samples were forgotten, oldest first.

    `schema_version` is that with which the manifest was written, and part of its id. `by_reference`: the
    parts have no columns but `sample_id`, `position` (among the rows of the first parent), and those that the
    slice adds; `Manifest` reads all others from the parent.
    """

    later: ClassVar[tuple[str, ...]] = ("by_reference", "redactions")

    schema_version: int
    id: str
    created: str
    uhr: str
    root: str
    origin: dict[str, Any] | None = None
    parents: list[Parent] = Field(default_factory=list)
    operation: dict[str, Any]
    stages: list[StageInfo] = Field(default_factory=list)
    rules: list[RuleInfo] = Field(default_factory=list)
    counts: Annotated[dict[str, Any], AfterValidator(_counted)]
    source: dict[str, int] = Field(default_factory=dict)
    weights: dict[str, str] = Field(default_factory=dict)
    files: dict[str, str] = Field(default_factory=dict)
    versions: dict[str, str] = Field(default_factory=dict)
    parts: Annotated[list[Part], Field(min_length=1)]
    previews: list[Part] = Field(default_factory=list)
    attachments: list[Part] = Field(default_factory=list)
    coverage: dict[str, int]
    by_reference: bool = False
    redactions: list[Redaction] = Field(default_factory=list)

    def measured_together(self, columns: Collection[str]) -> list[list[str]]:
        """Return the columns of each stage that ran and that writes one of `columns`. A row in which all
        columns of a stage are null was not measured by it, or it found nothing there.
        """
        ran = (stage for stage in self.stages if stage.state == "ran")
        return [stage.adds for stage in ran if not set(stage.adds).isdisjoint(columns)]


def _from_1(tree: dict[str, Any]) -> dict[str, Any]:
    """Version 1 did not record the coverage of columns."""
    return {**tree, "coverage": {}}


MIGRATIONS: Mapping[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: _from_1}
"""By version, a function that turns the content of its `manifest.json` into that of the next version."""


def content_id(
    schema: pa.Schema,
    operation: dict[str, Any],
    parents: Sequence[Parent],
    parts: Sequence[Part],
    previews: Sequence[Part],
    attachments: Sequence[Part] = (),
    schema_version: int = SCHEMA_VERSION,
) -> str:
    """Return the id of a manifest (64 hex digits): SHA-256 over its content and the operation."""
    content = {
        "schema_version": schema_version,
        "schema": [[field.name, str(field.type)] for field in schema],
        "operation": operation,
        "parents": [[parent.id, parent.role] for parent in parents],
        "parts": [[part.rows, part.sha256] for part in parts],
        "previews": [[part.rows, part.sha256] for part in previews],
    }
    if attachments:
        content["attachments"] = [[part.rows, part.sha256] for part in attachments]
    return fingerprint(content)


def is_manifest(path: Path) -> bool:
    """Whether the folder `path` contains a committed manifest."""
    return (Path(path) / FILE).is_file()


def check_outside_manifests(out: Path) -> None:
    """Raise UserError if the folder or file `out` is inside the folder of a manifest."""
    for above in Path(out).resolve().parents:
        if is_manifest(above):
            raise UserError(f"--out {out} is inside the manifest {above}", "name a place outside it")


def read_info(path: Path) -> ManifestInfo:
    """Read `manifest.json` in the folder `path`. Raises UserError if it is missing or cannot be read."""
    file = path / FILE
    if not file.is_file():
        if not path.exists():
            raise UserError(
                f"no manifest at {path}",
                "name the folder that `uhr curate run` or `uhr manifest slice` wrote",
            )
        if (path / "units").is_dir():
            raise UserError(f"{path} contains an unfinished run", "repeat the same command: it resumes")
        if (path / "samples").is_dir():
            raise UserError(f"{path} contains an unfinished manifest", "repeat the command that writes it")
        if path.is_file():
            raise UserError(f"{path} is a file, and no manifest", "name the folder that has manifest.json")
        raise UserError(
            f"{path} contains no {FILE}",
            "name the folder that `uhr curate run` or `uhr manifest slice` wrote",
        )
    try:
        return parse_info(file.read_bytes(), str(file))
    except OSError as error:
        raise UserError(f"{file} cannot be read ({one_line(error)})", _RESTORE) from None


def parse_info(data: bytes, where: str) -> ManifestInfo:
    """Read the bytes of a `manifest.json` of any version; `where` names it in errors.

    Raises UserError if it is damaged, or of a newer version.
    """
    tree = versioned_tree(data, where, SCHEMA_VERSION, _RESTORE)
    for version in range(tree["schema_version"], SCHEMA_VERSION):
        tree = MIGRATIONS[version](tree)
    try:
        return build(ManifestInfo, tree, where)
    except UserError as error:
        raise UserError(error.what, _RESTORE) from None


_RESTORE = "restore the file, or make the manifest again"
