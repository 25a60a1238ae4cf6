"""A pipeline, checked and put in order before anything runs.

It is a list of passes (`passes.py`). In a pass, header stages come first, then pixel stages, then the
segments of models, then set stages. Each rule is evaluated right after the stage that adds the last of its
columns, so that an image rejected by its header is never decoded. Rules that cannot be evaluated are listed
with the reason.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa

from uhr.base.config import fingerprint
from uhr.base.errors import UserError
from uhr.curate.config import PipelineConfig, RuleEntry, Rules
from uhr.curate.planning.channels import IdleRule, closed_channels
from uhr.curate.planning.passes import cut
from uhr.curate.planning.placement import SOURCE, Candidate, Skipped, candidates
from uhr.curate.planning.planned import ModelSegment, Pass, PlannedStage, inherited_columns, own_columns
from uhr.curate.rules import Rule
from uhr.curate.stage import BaseStage, BatchStage, ExpandStage, FrameStage
from uhr.curate.stages import is_inherited, stage_adding
from uhr.manifests.info import StageInfo
from uhr.manifests.schema import (
    CHANNELS,
    CHILD_COUNT,
    REJECTED_BY,
    SCHEMA_VERSION,
    Column,
    schema_of,
)
from uhr.manifests.sql import SqlCondition

ENGINE_VERSION = 2
"""Increase it when the code outside the stages gives other rows for the same pipeline."""

PIXEL_UNIT, HEADER_UNIT = (8, 64), (256, 4096)
"""The smallest and the largest number of images per unit: the first pair if a stage needs pixels, the second
if none does. A unit takes at most about a minute, and enough time that writing its part is a small share of
it.
"""

MODEL_UNIT, NATIVE_UNIT = 32, 8
"""Images per unit where models score them; the second if a model looks at whole images, which are in memory
for all images of a unit. It does not depend on the size of the set, since batches are cut inside units.
"""


@dataclass(frozen=True)
class CurationPlan:
    """The passes of a run. `skipped` and `idle` are the stages and rules that cannot run."""

    config: PipelineConfig
    passes: tuple[Pass, ...]
    skipped: tuple[Skipped, ...]
    idle: tuple[IdleRule, ...]
    given: tuple[Column, ...] = ()
    """Columns that the source has, besides those of every manifest."""

    closed: tuple[str, ...] = ()
    """The channels that are left out, because a required rule of theirs cannot be evaluated."""

    entries: dict[str, BaseStage] = field(default_factory=dict, compare=False)

    @classmethod
    def of(cls, config: PipelineConfig, strict: bool = False, given: Sequence[Column] = ()) -> CurationPlan:
        """Check a pipeline and cut it into passes. `given` are the columns of the source (`Source.columns`).

        Raises UserError if a stage or parameter is unknown, if two stages add the same column or none adds a
        column that is needed, if a stage comes before one that it needs, if a rule is not a boolean over
        columns, if `strict` is set and a stage would be skipped, or if a stage over the set cannot use what
        the models of others write.
        """
        plan = _Planner(config, given).plan(strict)
        sets = [planned for each in plan.passes for planned in each.sets]
        weights = plan.weight_hashes() if sets else {}
        for planned in sets:
            planned.stage.check_models(planned.label, weights)
        return plan

    @property
    def first(self) -> tuple[Rule, ...]:
        """The rules over the source's own columns."""
        return self.passes[0].first

    @property
    def header(self) -> tuple[PlannedStage[FrameStage], ...]:
        """The header stages of the first pass."""
        return self.passes[0].header

    @property
    def stages(self) -> tuple[PlannedStage[Any], ...]:
        return tuple(planned for each in self.passes for planned in each.stages)

    @property
    def rules(self) -> Iterator[Rule]:
        """The rules that are evaluated, in this order."""
        for each in self.passes:
            yield from each.rules

    @property
    def channels(self) -> tuple[str, ...]:
        return tuple(name for name in self.config.channels if name not in self.closed)

    @property
    def schema(self) -> pa.Schema:
        """The manifest's schema: the base columns, then those of the source and of each stage, in order."""
        found = {column.name: column for planned in self.stages for column in own_columns(planned)}
        given = [column for column in self.given if column.name not in found]
        return schema_of([*given, *found.values(), *self.verdict_columns])

    @property
    def inherited(self) -> tuple[Column, ...]:
        """The columns that patches have from their image: of the source those that no stage measured, and
        those of stages that are about the file.
        """
        frames = [planned for each in self.passes if not each.of_patches for planned in each.frames]
        return (*filter(is_inherited, self.given), *inherited_columns(frames))

    @property
    def verdict_columns(self) -> tuple[Column, ...]:
        """The columns besides those of every manifest that verdicts write."""
        return (*((CHANNELS,) if self.channels else ()), *((REJECTED_BY,) if self.config.all_rules else ()))

    @property
    def needs_pixels(self) -> bool:
        return any(each.pixel or each.views or each.expand for each in self.passes)

    def unit_size(self, rows: int) -> int:
        """Return the number of images per unit. It is smaller for a small set, so that all workers get
        units."""
        if self.config.unit is not None:
            return self.config.unit
        if any(each.segments for each in self.passes):
            native = any(
                view.shortest is view.longest is None for p in self.passes for view in p.views.values()
            )
            return NATIVE_UNIT if native else MODEL_UNIT
        least, most = PIXEL_UNIT if self.needs_pixels else HEADER_UNIT
        return min(most, max(least, rows // 64))

    @property
    def fingerprint(self) -> str:
        """Hash of everything that affects the rows (64 hex digits). The runner, the workers and, without
        models, the size of units do not."""
        apart = {"name", "description", "stages", "rules", "unit", "sources", "channels", "pause"}
        apart |= {"pixels"} if self.config.pixels is None else set()
        tree = self.config.model_dump(mode="json", exclude=apart)
        if any(each.segments for each in self.passes):
            tree["unit"] = self.unit_size(0)
        if len(self.passes) > 1 or self.passes[0].segments:
            tree["passes"] = [[planned.label for planned in each.stages] for each in self.passes]
        if self.channels:
            # also those without rules: `channels` names them, and they keep rows
            tree["channels"] = list(self.channels)
        if bound := [[planned.label, planned.channel] for planned in self.stages if planned.channel]:
            tree["bound"] = bound
        measured = [column.name for column in self.inherited if column.stage]
        if measured and any(each.expand for each in self.passes):
            tree["inherited"] = measured
        return fingerprint(
            {
                "versions": [SCHEMA_VERSION, ENGINE_VERSION],
                "stages": [[planned.label, planned.stage.fingerprint()] for planned in self.stages],
                "rules": [rule.key() for rule in self.rules],
                "not evaluated": [[idle.name, idle.where] for idle in self.idle],
                **tree,
            }
        )

    def resolved(self) -> dict[str, object]:
        """Return the pipeline with all defaults, as plain data. It is recorded in the lineage, and makes the
        same plan.
        """
        apart = {"unit", "sources", "pause"} | ({"pixels"} if self.config.pixels is None else set())
        tree = self.config.model_dump(mode="json", exclude=apart)
        tree["stages"] = [self._resolved(entry) for entry in tree["stages"]]
        return tree

    def _resolved(self, entry: dict[str, Any]) -> dict[str, Any]:
        stage = self.entries.get(entry["name"] or entry["stage"])
        inner = [self._resolved(each) for each in entry.get("stages", ())]
        params = {} if stage is None else stage.params.model_dump(mode="json")
        return entry | params | ({"stages": inner} if inner else {})

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
            StageInfo(name=s.label, version=0, fingerprint="", adds=list(s.adds), state="skipped", why=str(s))
            for s in self.skipped
        ]
        return ran + left_out

    def weight_hashes(self) -> dict[str, str]:
        """Return the hash of all weights that stages load, by stage and name."""
        return {
            f"{planned.label}/{name}": found
            for planned in self.stages
            for name, found in planned.stage.weight_hashes().items()
        }

    def file_hashes(self) -> dict[str, str]:
        """Return the hash of all other files that decide values, by stage and name."""
        return {
            f"{planned.label}/{name}": found
            for planned in self.stages
            for name, found in planned.stage.contents().items()
        }

    @property
    def hiding(self) -> tuple[str, ...]:
        """Columns that have a value for images of which neither preview nor bytes are stored."""
        stages = [planned.stage for planned in self.stages]
        return tuple(s.hides for s in stages if isinstance(s, FrameStage) and s.hides is not None)


def _same(one: Column, two: Column) -> bool:
    """Whether two columns have one meaning, whatever the names of the stages that add them."""
    return replace(one, stage="") == replace(two, stage="")


class _Planner:
    """Makes the plan of one pipeline."""

    def __init__(self, config: PipelineConfig, given: Sequence[Column]) -> None:
        self.config = config
        self.given = tuple(given)
        self.skipped: list[Skipped] = []
        self.idle: list[IdleRule] = []
        self.entries: dict[str, BaseStage] = {}
        self.names: set[str] = set()
        self.after_expand: tuple[Rule, ...] = ()

    def plan(self, strict: bool) -> CurationPlan:
        config = self.config
        found, skipped = candidates(config.stages, config.name, tuple(config.channels))
        # a column of the source that a stage adds is measured anew
        added = {column.name for each in found for column in each.stage.adds}
        expand = found[-1] if found and found[-1].kind == "expand" else None
        added |= set() if expand is None else {CHILD_COUNT.name}
        self.given = tuple(column for column in self.given if column.name not in added)
        outer = found if expand is None else found[:-1]
        if (wrong := next((each for each in outer if each.kind == "expand"), None)) is not None:
            raise UserError(
                f"{config.name}: stage '{wrong.label}' cuts patches and is not the last one", "put it last"
            )
        source = (*SOURCE, *self.given)
        cuts, skipped = cut(outer, skipped, {column.name for column in source})
        closed, idle = closed_channels(config, skipped)
        self.idle += idle
        channels = [(name, rules) for name, rules in config.channels.items() if name not in closed]
        passes = self._rows(cuts, skipped, source, [(None, config.rules), *channels], expand)
        if expand is not None:
            of_images = {column.name: column for column in (*self.given, *self._columns(cuts))}
            frames = [planned for each in passes for planned in each.frames]
            passes += self._patches(expand, of_images, inherited_columns(frames))
        if strict and self.skipped:
            raise UserError(
                f"--strict: {self.skipped[0].label} would be skipped ({self.skipped[0].why})",
                "leave --strict out",
            )
        if config.pixels not in (None, "none") and "content_hash" not in added:
            raise UserError(f"{config.name}: pixels needs the column content_hash", "add the stage decode")
        if not any(each.frames or each.segments for each in passes):
            raise UserError(f"{config.name}: no stage can run here", "name at least the stage header")
        return CurationPlan(
            config, tuple(passes), tuple(self.skipped), tuple(self.idle), self.given, closed, self.entries
        )

    def _patches(
        self, expand: Candidate, outer: dict[str, Column], inherited: Sequence[Column]
    ) -> list[Pass]:
        """Return the passes of the patches; the first one cuts them. `inherited` are the columns of stages on
        images that patches have too.
        """
        entry = expand.entry
        before = {*outer, *(column.name for column in SOURCE)}
        lacking = [need for need in expand.stage.needs if need not in before]
        if lacking:
            what = f"stage '{expand.label}' needs column '{lacking[0]}', which no stage adds"
            raise UserError(what, "put the stage that adds it before it")
        where = f"{self.config.name}: stage '{expand.label}'"
        found, skipped = candidates(entry.stages, where, inner=True)
        if (wrong := next((each for each in found if each.kind == "expand"), None)) is not None:
            raise UserError(f"{where}: '{wrong.label}' cuts patches of patches", "leave it out")
        for column in (column for each in found for column in each.stage.adds):
            if column.name in outer and not _same(outer[column.name], column):
                what = f"{where} adds column '{column.name}', which images have with another meaning"
                raise UserError(what, "rename it")
        own = {column.name for each in found for column in each.stage.adds}
        taken = [column for column in inherited if column.name not in own]
        source = (*SOURCE, *filter(is_inherited, self.given), *taken, *expand.stage.adds)
        cuts, skipped = cut(found, skipped, {column.name for column in source})
        rules_of_images = self.after_expand
        passes = self._rows(cuts or [[]], skipped, source, [(None, entry.rules)], None)
        self.entries[expand.label] = expand.stage
        planned = PlannedStage(expand.label, expand.stage, rules_of_images)
        assert isinstance(expand.stage, ExpandStage)
        of_patches = [replace(each, of_patches=True) for each in passes]
        return [replace(of_patches[0], expand=planned), *of_patches[1:]]

    def _rows(
        self,
        cuts: Sequence[Sequence[Candidate]],
        skipped: Sequence[Skipped],
        source: Sequence[Column],
        rule_sets: Sequence[tuple[str | None, Rules]],
        expand: Candidate | None,
    ) -> list[Pass]:
        """Return the passes of one table of rows, with the rules of its rule sets."""
        ordered = [candidate for each in cuts for candidate in each]
        self.skipped += skipped
        self.entries |= {candidate.label: candidate.stage for candidate in ordered}
        known = {c.name: c for c in [*source, *(c for each in ordered for c in each.stage.adds)]}
        if expand is not None:
            known[CHILD_COUNT.name] = CHILD_COUNT
        fired: dict[int, list[Rule]] = {}
        owners = {column.name: at for at, each in enumerate(ordered) for column in each.stage.adds}
        owners |= {CHILD_COUNT.name: len(ordered)}
        for rule in self._rules(rule_sets, known, skipped):
            place = max((owners[name] for name in rule.condition.columns if name in owners), default=-1)
            fired.setdefault(place, []).append(rule)
        passes, place = [], 0
        for number, each in enumerate(cuts):
            planned = [
                PlannedStage(c.label, c.stage, tuple(fired.get(place + at, ())), c.entry.channel)
                for at, c in enumerate(each)
            ]
            passes.append(_pass(each, planned, tuple(fired.get(-1, ())) if number == 0 else ()))
            place += len(each)
        self.after_expand = tuple(fired.get(len(ordered), ())) if expand is not None else ()
        return passes

    def _columns(self, cuts: Sequence[Sequence[Candidate]]) -> list[Column]:
        return [column for each in cuts for candidate in each for column in candidate.stage.adds]

    def _rules(
        self,
        rule_sets: Sequence[tuple[str | None, Rules]],
        known: dict[str, Column],
        skipped: Sequence[Skipped],
    ) -> Iterator[Rule]:
        absent = {name: stage for stage in skipped for name in stage.adds if name not in known}
        schema = pa.schema([column.field() for column in known.values()])
        planned = pa.schema([*schema, *(pa.field(name, pa.null()) for name in absent)])
        for channel, rules in rule_sets:
            for name, entry in rules.items():
                entry = RuleEntry(where=entry) if isinstance(entry, str) else entry
                rule = Rule.parse(name, entry.where, entry.null, channel)
                if name in self.names:
                    raise UserError(f"there are two rules '{name}'", "rename one: `reason` names the rule")
                self.names.add(name)
                _check_columns(rule.condition, planned)
                lacking = next((absent[c] for c in sorted(rule.condition.columns) if c in absent), None)
                if lacking is not None:
                    why = f"stage '{lacking.label}' was skipped: {lacking.why}"
                    if entry.required and channel is None:
                        what = f"rule '{name}' is required, and {why}"
                        fix = "name the model of the stage; `uhr curate stages` describes it"
                        raise UserError(what, lacking.fix or fix)
                    self.idle.append(IdleRule(name, entry.where, why))
                else:
                    rule.condition.check(schema)
                    yield rule


def _pass(each: Sequence[Candidate], planned: Sequence[PlannedStage[Any]], first: tuple[Rule, ...]) -> Pass:
    by_kind: dict[str, list[PlannedStage[Any]]] = {"header": [], "pixel": [], "batch": [], "set": []}
    for candidate, stage in zip(each, planned, strict=True):
        by_kind[candidate.kind].append(stage)
    return Pass(
        first,
        tuple(by_kind["header"]),
        tuple(by_kind["pixel"]),
        tuple(_segments(by_kind["batch"])),
        tuple(by_kind["set"]),
    )


def _segments(batches: Sequence[PlannedStage[BatchStage]]) -> Iterator[ModelSegment]:
    """Group consecutive model stages that share their workers: with equal resources, and the same backbone
    or, without views of its own, the columns of the stage before it."""
    run: list[PlannedStage[BatchStage]] = []
    for planned in batches:
        if run and not _shares(run, planned.stage):
            yield ModelSegment(tuple(run))
            run = []
        run.append(planned)
    if run:
        yield ModelSegment(tuple(run))


def _shares(run: Sequence[PlannedStage[BatchStage]], stage: BatchStage) -> bool:
    other = run[-1].stage
    if other.resources.key() != stage.resources.key():
        return False
    if stage.backbone is not None and stage.backbone == other.backbone:
        return True
    added = {column.name for planned in run for column in planned.stage.adds}
    return not stage.views and bool(added.intersection(stage.needs))


def _check_columns(condition: SqlCondition, planned: pa.Schema) -> None:
    for name in sorted(condition.columns.difference(planned.names)):
        if (stage := stage_adding(name)) is not None:
            raise UserError(
                f"{condition.where}: no stage adds column '{name}'",
                f"put stage '{stage}' into the pipeline, or name a --source that has it",
            )
        raise condition.unknown_column(name, planned)
