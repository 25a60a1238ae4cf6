"""Decide which stages of a pipeline can run on this machine."""

from __future__ import annotations

import inspect
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from uhr.base.config import build
from uhr.base.errors import UserError, one_line, unknown
from uhr.curate.config import PipelineConfig, StageEntry
from uhr.curate.stage import BaseStage, BatchStage, ExpandStage, FrameStage, Resources, SetStage, examples
from uhr.curate.stages import stage_class
from uhr.manifests.schema import BASE, COLUMNS, VERDICT, Column

Kind = Literal["header", "pixel", "batch", "set", "expand"]

SOURCE: tuple[Column, ...] = tuple(column for column in BASE if not column.stage and column not in VERDICT)
"""Columns that every row has before the first stage."""


@dataclass(frozen=True)
class Candidate:
    """A stage that this machine can run; `kind` is the group of stages that it runs in."""

    entry: StageEntry
    stage: BaseStage
    kind: Kind

    @property
    def label(self) -> str:
        return self.entry.label

    @property
    def adds(self) -> set[str]:
        return {column.name for column in self.stage.adds}


class Skipped(NamedTuple):
    """A stage that is skipped, the columns that are missing because of it, the reason, and its fix."""

    label: str
    adds: tuple[str, ...]
    why: str
    fix: str | None = None

    def __str__(self) -> str:
        return self.why if self.fix is None else f"{self.why}: {self.fix}"


def candidates(
    entries: Sequence[StageEntry], where: str, channels: Sequence[str] = (), inner: bool = False
) -> tuple[list[Candidate], list[Skipped]]:
    """Make the stages of a pipeline. Return them, and those that are skipped by `if_missing: skip`.

    inner: whether they are those of patches.

    Raises UserError if a stage is unknown, cannot be made, is missing and must not be skipped, adds a column
    that another one adds, or is of an unknown channel.
    """
    found: list[Candidate] = []
    skipped: list[Skipped] = []
    for entry in entries:
        if entry.channel is not None and entry.channel not in channels:
            raise unknown("channel", entry.channel, channels, f"{where}: stage '{entry.label}'")
        try:
            stage = _stage(entry, where, inner)
        except _Missing as missing:
            if entry.if_missing == "fail":
                raise missing.error from None
            adds = tuple(entry.adds) or missing.adds
            skipped.append(Skipped(entry.label, adds, missing.error.what, missing.error.fix))
        else:
            found.append(Candidate(entry, stage, kind_of(stage)))
    _check_unique(found)
    return found, skipped


def kind_of(stage: BaseStage) -> Kind:
    """Return the group of stages that a stage runs in."""
    if isinstance(stage, FrameStage):
        return "header" if stage.reads == "header" else "pixel"
    kinds: dict[type[BaseStage], Kind] = {BatchStage: "batch", SetStage: "set", ExpandStage: "expand"}
    return next(kind for base, kind in kinds.items() if isinstance(stage, base))


class _Missing(Exception):
    """A stage is missing: the error to raise if it must not be skipped, and its columns if they are known."""

    def __init__(self, error: UserError, adds: tuple[str, ...] = ()) -> None:
        super().__init__(str(error))
        self.error = error
        self.adds = adds


def _stage(entry: StageEntry, where: str, inner: bool) -> BaseStage:
    try:
        cls = stage_class(entry.stage)
    except UserError as error:
        # a name that no stage has was mistyped, whatever the entry says
        if entry.if_missing == "fail" or not isinstance(error.__cause__, ImportError):
            raise
        raise _Missing(error) from None
    stage = _instance(cls, entry, where)
    lack = stage.missing()
    if lack is not None:
        fix = None
        if unnamed := stage.unnamed():
            lack = lack.partition(";")[0]
            fix = f"set {examples(unnamed)} in its entry" if inner else _settings(entry.label, unnamed)
        error = UserError(f"stage '{entry.label}' cannot run: {lack}", fix)
        raise _Missing(error, tuple(column.name for column in stage.adds))
    return stage


def _settings(label: str, unnamed: Mapping[str, str]) -> str:
    """Write examples of parameters of a stage as options of the command line."""
    return " or ".join(f"--set {shlex.quote(f'stages.{label}.{k}={v}')}" for k, v in unnamed.items())


def _instance(cls: type[BaseStage], entry: StageEntry, where: str) -> BaseStage:
    lacking = ", ".join(sorted(cls.__abstractmethods__)) if inspect.isabstract(cls) else ""
    if lacking:
        raise UserError(f"stage '{entry.label}': {cls.__name__} has no method {lacking}", "define it")
    what = f"{where}: stage '{entry.label}'"
    params = build(cls.Params, entry.params, what)
    for key, base in (("resources", BatchStage), ("stages", ExpandStage), ("rules", ExpandStage)):
        if getattr(entry, key) and not issubclass(cls, base):
            raise UserError(f"{what} has '{key}', which only a {base.__name__} has", "remove it")
    try:
        stage = cls(params)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"stage '{entry.label}' cannot be made ({type(error).__name__}: {one_line(error)})",
            f"fix {cls.__name__}.__init__, which is called with its Params; --debug shows the whole trace",
        ) from error
    if isinstance(stage, BatchStage) and entry.resources:
        tree = stage.resources.model_dump(mode="json") | entry.resources
        stage.resources = build(Resources, tree, f"{what}: resources")
    return stage


def _check_unique(found: Sequence[Candidate]) -> None:
    owners = {name.lower(): "the source" for name, column in COLUMNS.items() if not column.stage}
    for candidate in found:
        for column in candidate.stage.adds:
            key = column.name.lower()  # SQL names are not case-sensitive
            if key in owners:
                what = f"stage '{candidate.label}' adds column '{column.name}'"
                raise UserError(f"{what}, which {_by(owners[key])} adds too", "leave one of them out")
            owners[key] = candidate.label


def _by(owner: str) -> str:
    return owner if owner == "the source" else f"stage '{owner}'"


def whole_tree(config: PipelineConfig) -> dict[str, Any]:
    """Return the pipeline as plain data for a YAML file: every key, and all parameters of every stage.

    A missing stage that is skipped has only the parameters that were set.
    """
    tree = config.model_dump(mode="json", exclude_none=True)
    tree["stages"] = [_whole_entry(entry, config.name) for entry in config.stages]
    return tree


def _whole_entry(entry: StageEntry, where: str) -> str | dict[str, Any]:
    tree = entry.model_dump(mode="json", exclude_defaults=True)
    if entry.stages:
        tree["stages"] = [_whole_entry(inner, where) for inner in entry.stages]
    try:
        cls = stage_class(entry.stage)
    except UserError:
        if entry.if_missing == "fail":
            raise
    else:
        params = build(cls.Params, entry.params, f"{where}: stage '{entry.label}'")
        tree |= params.model_dump(mode="json")
    return entry.stage if list(tree) == ["stage"] else tree
