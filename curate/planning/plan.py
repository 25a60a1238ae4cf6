"""A pipeline, checked and put in order before anything runs.

Header stages come first, then pixel stages, then set stages. Each rule is evaluated right after the stage
that adds the last of its columns, so that an image rejected by its header is never decoded. Rules that cannot
be evaluated are listed with the reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, NamedTuple, TypeVar

import pyarrow as pa

from uhr.base.config import fingerprint
from uhr.base.errors import UserError
from uhr.curate.config import PipelineConfig
from uhr.curate.planning.placement import SOURCE, Candidate, Skipped, candidates, in_order
from uhr.curate.rules import Rule
from uhr.curate.stage import SetStage, Stage
from uhr.manifests.info import StageInfo
from uhr.manifests.schema import COLUMNS, SCHEMA_VERSION, Column, schema_of
from uhr.manifests.sql import SqlCondition

ENGINE_VERSION = 2
"""Increase it when the code outside the stages gives other rows for the same pipeline."""

PIXEL_UNIT, HEADER_UNIT = (8, 64), (256, 4096)
"""The smallest and the largest number of images per unit: the first pair if a stage needs pixels, the second
if none does. A unit takes at most about a minute, and enough time that writing its part is a small share of
it.
"""


S = TypeVar("S", Stage, SetStage)


@dataclass(frozen=True)
class PlannedStage(Generic[S]):
    """A stage, and the rules that are evaluated right after it."""

    label: str
    stage: S
    rules: tuple[Rule, ...] = ()


class IdleRule(NamedTuple):
    """A rule that cannot be evaluated here, and the reason."""

    name: str
    where: str
    why: str


@dataclass(frozen=True)
class CurationPlan:
    """The stages and rules of a run, in this order: `first` (rules over the source's own columns), `header`,
    `pixel`, `sets`. `skipped` and `idle` are the stages and rules that cannot run.
    """

    config: PipelineConfig
    first: tuple[Rule, ...]
    header: tuple[PlannedStage[Stage], ...]
    pixel: tuple[PlannedStage[Stage], ...]
    sets: tuple[PlannedStage[SetStage], ...]
    skipped: tuple[Skipped, ...]
    idle: tuple[IdleRule, ...]
    given: tuple[Column, ...] = ()
    """Columns that the source has, besides those of every manifest."""

    @classmethod
    def of(cls, config: PipelineConfig, strict: bool = False, given: Sequence[Column] = ()) -> CurationPlan:
        """Check a pipeline and put it in order. `given` are the columns of the source (`Source.columns`).

        Raises UserError if a stage or parameter is unknown, if two stages add the same column or none adds a
        column that is needed, if a stage comes before one that it needs, if a rule is not a boolean over
        columns, or if `strict` is set and a stage would be skipped.
        """
        found, skipped = candidates(config)
        found, skipped = in_order(found, skipped, given)
        if strict and skipped:
            raise UserError(
                f"--strict: {skipped[0].label} would be skipped ({skipped[0].why})", "leave --strict out"
            )
        if not any(isinstance(candidate.stage, Stage) for candidate in found):
            raise UserError(f"{config.name}: no stage can run here", "name at least the stage header")
        rules, idle = _rules(config, found, skipped, given)
        return replace(cls._put_together(config, found, rules, skipped, idle), given=tuple(given))

    @classmethod
    def _put_together(
        cls,
        config: PipelineConfig,
        found: Sequence[Candidate],
        rules: Sequence[Rule],
        skipped: Sequence[Skipped],
        idle: Sequence[IdleRule],
    ) -> CurationPlan:
        fired: list[list[Rule]] = [[] for _ in found]
        first: list[Rule] = []
        for rule in rules:
            place = _completed_at(rule, found)
            (first if place < 0 else fired[place]).append(rule)
        header: list[PlannedStage[Stage]] = []
        pixel: list[PlannedStage[Stage]] = []
        sets: list[PlannedStage[SetStage]] = []
        for candidate, own in zip(found, fired, strict=True):
            if isinstance(candidate.stage, SetStage):
                sets.append(PlannedStage(candidate.label, candidate.stage, tuple(own)))
            else:
                stages = header if candidate.kind == "header" else pixel
                stages.append(PlannedStage(candidate.label, candidate.stage, tuple(own)))
        return cls(
            config, tuple(first), tuple(header), tuple(pixel), tuple(sets), tuple(skipped), tuple(idle)
        )

    @property
    def stages(self) -> tuple[PlannedStage[Any], ...]:
        return (*self.header, *self.pixel, *self.sets)

    @property
    def rules(self) -> Iterator[Rule]:
        """The rules that are evaluated, in this order."""
        yield from self.first
        for planned in self.stages:
            yield from planned.rules

    @property
    def schema(self) -> pa.Schema:
        """The manifest's schema: the base columns, then those of the source and of each stage, in order."""
        own = [column for planned in self.stages for column in _own_columns(planned)]
        return schema_of([*self.given, *own])

    def unit_size(self, rows: int) -> int:
        """Return the number of images per unit. It is smaller for a small set, so that all workers get
        units."""
        if self.config.unit is not None:
            return self.config.unit
        least, most = PIXEL_UNIT if self.pixel else HEADER_UNIT
        return min(most, max(least, rows // 64))

    @property
    def fingerprint(self) -> str:
        """Hash of everything that affects the rows (64 hex digits). The runner, the workers and the size of
        units do not."""
        left_out = {"name", "description", "stages", "rules", "unit", "sources"}
        tree = self.config.model_dump(mode="json", exclude=left_out)
        return fingerprint(
            {
                "versions": [SCHEMA_VERSION, ENGINE_VERSION],
                "stages": [[planned.label, planned.stage.fingerprint()] for planned in self.stages],
                "rules": [[rule.name, rule.condition.text] for rule in self.rules],
                "not evaluated": [[idle.name, idle.where] for idle in self.idle],
                **tree,
            }
        )

    def resolved(self) -> dict[str, object]:
        """Return the pipeline with all defaults, as plain data. It is recorded in the lineage, and makes the
        same plan.
        """
        tree = self.config.model_dump(mode="json", exclude={"unit", "sources"})
        params = {planned.label: planned.stage.params.model_dump(mode="json") for planned in self.stages}
        labels = [entry.label for entry in self.config.stages]
        tree["stages"] = [
            entry | params.get(label, {}) for entry, label in zip(tree["stages"], labels, strict=True)
        ]
        return tree

    def facts(self) -> dict[str, object]:
        """Return the plan as plain data for `--json`: the stages in order, each with the rules after it."""

        def named(rules: Iterable[Rule]) -> list[dict[str, str]]:
            return [{"rule": rule.name, "where": rule.condition.text} for rule in rules]

        kinds = (("header", self.header), ("pixels", self.pixel), ("set", self.sets))
        return {
            "pipeline": self.config.name,
            "before_reading": named(self.first),
            "stages": [
                {
                    "stage": s.label,
                    "reads": kind,
                    "adds": [c.name for c in s.stage.adds],
                    "rules": named(s.rules),
                }
                for kind, stages in kinds
                for s in stages
            ],
            "skipped": [skipped._asdict() for skipped in self.skipped],
            "not_evaluated": [idle._asdict() for idle in self.idle],
            "fingerprint": self.fingerprint,
        }

    def stage_infos(self) -> list[StageInfo]:
        """Return the stages that run and those that are skipped, for `manifest.json`."""
        ran = [
            StageInfo(
                name=planned.label,
                version=planned.stage.version,
                fingerprint=planned.stage.fingerprint(),
                adds=[column.name for column in planned.stage.adds],
            )
            for planned in self.stages
        ]
        left_out = [
            StageInfo(name=s.label, version=0, fingerprint="", adds=list(s.adds), state="skipped", why=s.why)
            for s in self.skipped
        ]
        return ran + left_out


def _own_columns(planned: PlannedStage[Any]) -> list[Column]:
    """Return a stage's columns with `stage` set."""
    return [replace(column, stage=column.stage or planned.label) for column in planned.stage.adds]


def _completed_at(rule: Rule, found: Sequence[Candidate]) -> int:
    """Return the index of the last stage whose columns the rule needs; -1 if it needs no stage."""
    owners = {column.name: place for place, candidate in enumerate(found) for column in candidate.stage.adds}
    return max((owners[name] for name in rule.condition.columns if name in owners), default=-1)


def _rules(
    config: PipelineConfig, found: Sequence[Candidate], skipped: Sequence[Skipped], given: Sequence[Column]
) -> tuple[list[Rule], list[IdleRule]]:
    columns = [*SOURCE, *given, *(column for candidate in found for column in candidate.stage.adds)]
    known = {column.name: column for column in columns}
    absent = {name: stage for stage in skipped for name in stage.adds if name not in known}
    schema = pa.schema([column.field() for column in known.values()])
    rules: list[Rule] = []
    idle: list[IdleRule] = []
    for name, text in config.rules.items():
        rule = Rule.parse(name, text)
        _check_columns(rule.condition, [*known, *absent])
        lacking = next((absent[c] for c in sorted(rule.condition.columns) if c in absent), None)
        if lacking is not None:
            idle.append(IdleRule(name, text, f"stage '{lacking.label}' was skipped: {lacking.why}"))
        else:
            rule.condition.check(schema)
            rules.append(rule)
    return rules, idle


def _check_columns(condition: SqlCondition, known: list[str]) -> None:
    for name in sorted(condition.columns.difference(known)):
        if name in COLUMNS and COLUMNS[name].stage:
            stage = COLUMNS[name].stage
            raise UserError(
                f"{condition.where}: no stage adds column '{name}'", f"put stage '{stage}' into the pipeline"
            )
        raise condition.unknown_column(name, known)
