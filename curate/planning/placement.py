"""Decide which stages of a pipeline can run on this machine, and in which order."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from uhr.base.config import build
from uhr.base.errors import UserError, nearest, one_line
from uhr.curate.config import PipelineConfig, StageEntry, load
from uhr.curate.stage import SetStage, Stage
from uhr.curate.stages import LATER, stage_class
from uhr.manifests.schema import BASE, COLUMNS, VERDICT, Column

Kind = Literal["header", "pixel", "set"]

SOURCE: tuple[Column, ...] = tuple(column for column in BASE if not column.stage and column not in VERDICT)
"""Columns that every row has before the first stage."""


@dataclass(frozen=True)
class Candidate:
    """A stage that this machine can run; `kind` is the group of stages that it runs in."""

    entry: StageEntry
    stage: Stage | SetStage
    kind: Kind

    @property
    def label(self) -> str:
        return self.entry.label

    @property
    def adds(self) -> set[str]:
        return {column.name for column in self.stage.adds}


class Skipped(NamedTuple):
    """A stage that is skipped, the columns that are missing because of it, and the reason."""

    label: str
    adds: tuple[str, ...]
    why: str


def candidates(config: PipelineConfig) -> tuple[list[Candidate], list[Skipped]]:
    """Make the stages of a pipeline. Return them, and those that are skipped by `if_missing: skip`.

    Raises UserError if a stage is unknown, cannot be made, is missing and must not be skipped, or adds a
    column that another one adds.
    """
    found: list[Candidate] = []
    skipped: list[Skipped] = []
    for entry in config.stages:
        try:
            stage = _stage(entry, config.name)
        except _Missing as missing:
            if entry.if_missing == "fail":
                raise missing.error from None
            adds = tuple(entry.adds) or missing.adds
            skipped.append(Skipped(entry.label, adds, missing.error.what))
        else:
            kind = "set" if isinstance(stage, SetStage) else "header" if stage.reads == "header" else "pixel"
            found.append(Candidate(entry, stage, kind))
    _check_unique(found)
    return found, skipped


class _Missing(Exception):
    """A stage is missing: the error to raise if it must not be skipped, and its columns if they are known."""

    def __init__(self, error: UserError, adds: tuple[str, ...] = ()) -> None:
        super().__init__(str(error))
        self.error = error
        self.adds = adds


def _stage(entry: StageEntry, where: str) -> Stage | SetStage:
    try:
        cls = stage_class(entry.stage)
    except UserError as error:
        if entry.if_missing == "fail":
            raise
        if not _may_be_absent(entry, error):
            fix = f"{error.fix}; or name its columns: adds: [...]"
            raise UserError(error.what, fix) from None
        absent = ":" not in entry.stage
        raise _Missing(UserError("this version does not have it") if absent else error) from None
    stage = _instance(cls, entry, where)
    lack = stage.missing()
    if lack is not None:
        error = UserError(f"stage '{entry.label}' cannot run: {lack}")
        raise _Missing(error, tuple(column.name for column in stage.adds))
    return stage


def _may_be_absent(entry: StageEntry, error: UserError) -> bool:
    """Whether a stage that was not found may be skipped; False if its name was probably mistyped."""
    return bool(entry.adds) or entry.stage in LATER or isinstance(error.__cause__, ImportError)


def _instance(cls: type[Stage] | type[SetStage], entry: StageEntry, where: str) -> Stage | SetStage:
    if inspect.isabstract(cls):
        lacking = ", ".join(sorted(cls.__abstractmethods__))
        raise UserError(f"stage '{entry.label}': {cls.__name__} has no method {lacking}", "define it")
    params = build(cls.Params, entry.params, f"{where}: stage '{entry.label}'")
    try:
        return cls(params)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"stage '{entry.label}' cannot be made ({type(error).__name__}: {one_line(error)})",
            f"fix {cls.__name__}.__init__, which is called with its Params; --debug shows the whole trace",
        ) from error


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


def in_order(
    found: Sequence[Candidate], skipped: Sequence[Skipped], given: Sequence[Column] = ()
) -> tuple[list[Candidate], list[Skipped]]:
    """Order the stages: first header stages, then pixel stages, then set stages. Within each kind the order
    of the pipeline is kept. `given` are columns of the source besides SOURCE.

    A header stage that needs a column of a pixel stage runs after the pixel stages. A stage that needs a
    column of a skipped stage is skipped too if it has `if_missing: skip`.

    Raises UserError if a stage needs a column that no earlier stage adds.
    """
    left_out = list(skipped)
    ordered: list[Candidate] = []
    have = {column.name for column in (*SOURCE, *given)}
    waiting = list(found)
    for kind in ("header", "pixel", "set"):
        for candidate in [candidate for candidate in waiting if candidate.kind == kind]:
            lacking = [need for need in candidate.stage.needs if need not in have]
            if not lacking:
                ordered.append(candidate)
                have.update(candidate.adds)
            elif kind == "header" and any(c.kind == "pixel" and c.adds.intersection(lacking) for c in found):
                # it reads only the header but needs a column of a pixel stage: it runs with those
                waiting.append(replace(candidate, kind="pixel"))
            elif candidate.entry.if_missing == "skip" and (gone := _skipped_owner(lacking, left_out)):
                why = f"it needs {lacking[0]} of the skipped stage '{gone.label}'"
                left_out.append(Skipped(candidate.label, tuple(sorted(candidate.adds)), why))
            else:
                raise _unmet(candidate, lacking[0], found, left_out, have)
    return ordered, left_out


def _skipped_owner(columns: Sequence[str], skipped: Sequence[Skipped]) -> Skipped | None:
    return next((stage for stage in skipped for column in columns if column in stage.adds), None)


def _unmet(
    candidate: Candidate, need: str, found: Sequence[Candidate], skipped: Sequence[Skipped], have: set[str]
) -> UserError:
    what = f"stage '{candidate.label}' needs column '{need}'"
    for other in found:
        if need in other.adds:
            return UserError(
                f"{what}, which stage '{other.label}' adds only after it", f"put '{other.label}' first"
            )
    gone = _skipped_owner([need], skipped)
    if gone is not None:
        return UserError(
            f"{what} of the skipped stage '{gone.label}'", f"give '{candidate.label}' if_missing: skip too"
        )
    if need in COLUMNS and COLUMNS[need].stage:
        return UserError(f"{what}, which no stage adds", f"put stage '{COLUMNS[need].stage}' before it")
    close = nearest(need, have)
    return UserError(f"{what}, which no stage adds", f"did you mean {' or '.join(close)}?" if close else None)


def whole_tree(config: PipelineConfig) -> dict[str, Any]:
    """Return the pipeline as plain data for a YAML file: every key, and all parameters of every stage.

    A missing stage that is skipped has only the parameters that were set.
    """
    tree = config.model_dump(mode="json", exclude_none=True)
    tree["stages"] = [_whole_entry(entry, config.name) for entry in config.stages]
    return tree


def _whole_entry(entry: StageEntry, where: str) -> str | dict[str, Any]:
    tree = entry.model_dump(mode="json", exclude_defaults=True)
    try:
        cls = stage_class(entry.stage)
    except UserError:
        if entry.if_missing == "fail":
            raise
    else:
        params = build(cls.Params, entry.params, f"{where}: stage '{entry.label}'")
        tree |= params.model_dump(mode="json")
    return entry.stage if list(tree) == ["stage"] else tree


def resolve_preset_stages(preset: str) -> list[dict[str, Any]]:
    """Return for each stage of a preset whether it can run on this machine, and if not, why."""
    config = load(preset)
    lenient = [entry.model_copy(update={"if_missing": "skip"}) for entry in config.stages]
    _, skipped = in_order(*candidates(config.model_copy(update={"stages": lenient})))
    why = {stage.label: stage.why for stage in skipped}
    return [{"stage": e.label, "runs": e.label not in why, "why": why.get(e.label, "")} for e in lenient]
