"""A pipeline, checked and put in order before anything runs.

Header stages come first, then pixel stages, then set stages; each rule fires right after the stage that
completes its columns, so that what the header settles is never decoded. Whatever cannot be evaluated here is
named, with the reason.
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
from uhr.manifests.manifest import StageInfo
from uhr.manifests.schema import COLUMNS, SCHEMA_VERSION, Column, schema_of
from uhr.manifests.sql import Condition

ENGINE_VERSION = 2
"""Raised when the engine itself would give other rows for the same pipeline."""

PIXEL_UNIT, HEADER_UNIT = (8, 64), (256, 4096)
"""Least and most images per unit where stages need pixels, and where none does: at most a minute of work,
and not so little that writing the part is what takes the time.
"""


S = TypeVar("S", Stage, SetStage)


@dataclass(frozen=True)
class Step(Generic[S]):
    """A stage, and the rules that fire right after it."""

    label: str
    stage: S
    rules: tuple[Rule, ...] = ()


class Idle(NamedTuple):
    """A rule that cannot be evaluated here, and why."""

    name: str
    where: str
    why: str


@dataclass(frozen=True)
class Plan:
    """What a run does, in this order: `first` (rules over the source's own columns), `header`, `pixel`,
    `sets`.
    """

    config: PipelineConfig
    first: tuple[Rule, ...]
    header: tuple[Step[Stage], ...]
    pixel: tuple[Step[Stage], ...]
    sets: tuple[Step[SetStage], ...]
    skipped: tuple[Skipped, ...]
    idle: tuple[Idle, ...]

    @classmethod
    def of(cls, config: PipelineConfig, strict: bool = False) -> Plan:
        """The checked plan; with `strict` whatever would be skipped is an error.

        Errors: an unknown stage or parameter, a column that two stages add or none does, an order in which a
        stage comes before what it needs, a rule that is no boolean over columns.
        """
        found, skipped = candidates(config)
        found, skipped = in_order(found, skipped)
        if strict and skipped:
            raise UserError(
                f"--strict: {skipped[0].label} would be skipped ({skipped[0].why})", "leave --strict out"
            )
        if not any(isinstance(candidate.stage, Stage) for candidate in found):
            raise UserError(f"{config.name}: no stage can run here", "name at least the stage header")
        rules, idle = _rules(config, found, skipped)
        return cls._put_together(config, found, rules, skipped, idle)

    @classmethod
    def _put_together(
        cls,
        config: PipelineConfig,
        found: Sequence[Candidate],
        rules: Sequence[Rule],
        skipped: Sequence[Skipped],
        idle: Sequence[Idle],
    ) -> Plan:
        fired: list[list[Rule]] = [[] for _ in found]
        first: list[Rule] = []
        for rule in rules:
            place = _completed_at(rule, found)
            (first if place < 0 else fired[place]).append(rule)
        header: list[Step[Stage]] = []
        pixel: list[Step[Stage]] = []
        sets: list[Step[SetStage]] = []
        for candidate, own in zip(found, fired, strict=True):
            if isinstance(candidate.stage, SetStage):
                sets.append(Step(candidate.label, candidate.stage, tuple(own)))
            else:
                steps = header if candidate.kind == "header" else pixel
                steps.append(Step(candidate.label, candidate.stage, tuple(own)))
        return cls(
            config, tuple(first), tuple(header), tuple(pixel), tuple(sets), tuple(skipped), tuple(idle)
        )

    @property
    def steps(self) -> tuple[Step[Any], ...]:
        return (*self.header, *self.pixel, *self.sets)

    @property
    def rules(self) -> Iterator[Rule]:
        """The rules that are evaluated, in the order in which they fire."""
        yield from self.first
        for step in self.steps:
            yield from step.rules

    @property
    def schema(self) -> pa.Schema:
        """Of the manifest: the base columns, then what each stage adds, in the order of the stages."""
        return schema_of(column for step in self.steps for column in _own_columns(step))

    def unit_size(self, rows: int) -> int:
        """Images per unit: fewer in a small set, so that every worker has some and the progress bar
        moves.
        """
        if self.config.unit is not None:
            return self.config.unit
        least, most = PIXEL_UNIT if self.pixel else HEADER_UNIT
        return min(most, max(least, rows // 64))

    @property
    def fingerprint(self) -> str:
        """Equal where the same input gives the same rows: not the engine, the workers or the size of
        units.
        """
        tree = self.config.model_dump(mode="json", exclude={"name", "description", "stages", "rules", "unit"})
        return fingerprint(
            {
                "versions": [SCHEMA_VERSION, ENGINE_VERSION],
                "stages": [[step.label, step.stage.fingerprint()] for step in self.steps],
                "rules": [[rule.name, rule.condition.text] for rule in self.rules],
                "not evaluated": [[idle.name, idle.where] for idle in self.idle],
                **tree,
            }
        )

    def resolved(self) -> dict[str, object]:
        """The pipeline with every default in it, as plain data: what lineage keeps, and what gives this plan
        again.
        """
        tree = self.config.model_dump(mode="json", exclude={"unit"})
        params = {step.label: step.stage.params.model_dump(mode="json") for step in self.steps}
        labels = [entry.label for entry in self.config.stages]
        tree["stages"] = [
            entry | params.get(label, {}) for entry, label in zip(tree["stages"], labels, strict=True)
        ]
        return tree

    def facts(self) -> dict[str, object]:
        """The plan for machines: stages in the order in which they run, each with the rules that fire after
        it.
        """

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
                for kind, steps in kinds
                for s in steps
            ],
            "skipped": [skipped._asdict() for skipped in self.skipped],
            "not_evaluated": [idle._asdict() for idle in self.idle],
            "fingerprint": self.fingerprint,
        }

    def stage_infos(self) -> list[StageInfo]:
        """For `manifest.json`: what ran, and what was skipped."""
        ran = [
            StageInfo(
                name=step.label,
                version=step.stage.version,
                fingerprint=step.stage.fingerprint(),
                adds=[column.name for column in step.stage.adds],
            )
            for step in self.steps
        ]
        left_out = [
            StageInfo(name=s.label, version=0, fingerprint="", adds=list(s.adds), state="skipped", why=s.why)
            for s in self.skipped
        ]
        return ran + left_out


def _own_columns(step: Step[Any]) -> list[Column]:
    """A stage's columns, each told which stage it comes from."""
    return [replace(column, stage=column.stage or step.label) for column in step.stage.adds]


def _completed_at(rule: Rule, found: Sequence[Candidate]) -> int:
    """The place of the last stage that the rule waits for; -1 where the source's own columns are enough."""
    owners = {column.name: place for place, candidate in enumerate(found) for column in candidate.stage.adds}
    return max((owners[name] for name in rule.condition.columns if name in owners), default=-1)


def _rules(
    config: PipelineConfig, found: Sequence[Candidate], skipped: Sequence[Skipped]
) -> tuple[list[Rule], list[Idle]]:
    columns = [*SOURCE, *(column for candidate in found for column in candidate.stage.adds)]
    known = {column.name: column for column in columns}
    absent = {name: stage for stage in skipped for name in stage.adds if name not in known}
    schema = pa.schema([column.field() for column in known.values()])
    rules: list[Rule] = []
    idle: list[Idle] = []
    for name, text in config.rules.items():
        rule = Rule.parse(name, text)
        _check_columns(rule.condition, [*known, *absent])
        lacking = next((absent[c] for c in sorted(rule.condition.columns) if c in absent), None)
        if lacking is not None:
            idle.append(Idle(name, text, f"stage '{lacking.label}' was skipped: {lacking.why}"))
        else:
            rule.condition.check(schema)
            rules.append(rule)
    return rules, idle


def _check_columns(condition: Condition, known: list[str]) -> None:
    for name in sorted(condition.columns.difference(known)):
        if name in COLUMNS and COLUMNS[name].stage:
            stage = COLUMNS[name].stage
            raise UserError(
                f"{condition.where}: no stage adds column '{name}'", f"put stage '{stage}' into the pipeline"
            )
        raise condition.unknown_column(name, known)
