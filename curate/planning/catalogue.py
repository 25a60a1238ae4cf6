"""Describe the stages of this version, and a plan, as plain data."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from uhr.curate.config import StageEntry, load
from uhr.curate.planning.placement import kind_of
from uhr.curate.planning.plan import CurationPlan
from uhr.curate.planning.planned import Pass, PlannedStage
from uhr.curate.rules import Rule
from uhr.curate.stage import BatchStage
from uhr.curate.stages import NAMES, example, stage_class

READS = {"header": "header", "pixel": "pixels", "batch": "model", "set": "set", "expand": "pixels"}
"""What the stages of a kind read, as it is printed."""


def all_stages() -> list[dict[str, Any]]:
    """Return for each stage its name, what it reads, columns, needs, parameters with defaults, packages and
    licences.

    `set`: the parameters that have to be set; one of them suffices where they name a model. `missing`: what
    this machine lacks, or None.
    """
    return [_description(name) for name in NAMES]


def _description(name: str) -> dict[str, Any]:
    cls = stage_class(name)
    params = cls.Params.model_fields
    required = [key for key, field in params.items() if field.is_required()]
    stage = example(name)
    return {
        "stage": name,
        "reads": READS[kind_of(stage)],
        "adds": [
            {"column": c.name, "unit": c.unit, "range": c.range, "meaning": c.meaning} for c in stage.adds
        ],
        "needs": list(stage.needs),
        "parameters": {key: None if field.is_required() else field.default for key, field in params.items()},
        "packages": [
            {"package": p.name, "extra": p.extra, "licence": p.licence, "installed": p.is_installed}
            for p in stage.packages
        ],
        "set": required or list(stage.unnamed()),
        "missing": None if required else stage.missing(),
    }


def resolve_preset_stages(preset: str) -> list[dict[str, Any]]:
    """Return for each stage of a preset, also those of patches, whether it can run here, and if not, why.

    A stage is `needed` if the preset does not run without it.
    """
    config = load(preset)
    lenient = [_lenient(entry) for entry in config.stages]
    # without rules: a required one would stop the plan
    rules = {"rules": {}, "channels": {channel: {} for channel in config.channels}}
    plan = CurationPlan.of(config.model_copy(update={"stages": lenient, **rules}))
    why = {stage.label: stage.why for stage in plan.skipped}
    return [
        {
            "stage": entry.label,
            "runs": entry.label not in why,
            "needed": entry.if_missing == "fail",
            "why": why.get(entry.label, ""),
        }
        for outer in config.stages
        for entry in (outer, *outer.stages)
    ]


def _lenient(entry: StageEntry) -> StageEntry:
    """Return the entry, and those of its patches, so that a stage that cannot run is skipped."""
    inner = [_lenient(each) for each in entry.stages]
    return entry.model_copy(update={"if_missing": "skip", "stages": inner, "rules": {}})


def plan_facts(plan: CurationPlan) -> dict[str, Any]:
    """Return a plan as plain data for `--json`: its passes, and all stages in order, each with the rules
    after it.
    """
    kinds = [(kind_of(s.stage), s) for each in plan.passes for s in each.stages]
    return {
        "pipeline": plan.config.name,
        "before_reading": _named(plan.first),
        "stages": [
            {
                "stage": s.label,
                "reads": READS[kind],
                "adds": [c.name for c in s.stage.adds],
                "rules": _named(s.rules),
            }
            for kind, s in kinds
        ],
        "passes": [_pass_facts(each) for each in plan.passes],
        "channels": list(plan.channels),
        "skipped": [skipped._asdict() for skipped in plan.skipped],
        "not_evaluated": [idle._asdict() for idle in plan.idle],
        "fingerprint": plan.fingerprint,
    }


def _pass_facts(this: Pass) -> dict[str, Any]:
    first = {
        "kind": "cpu",
        "stages": [s.label for s in this.stages if not _is_model(s) and s not in this.sets],
    }
    models = [
        {
            "kind": "model",
            "stages": [s.label for s in segment.stages],
            "views": list(segment.views),
            "resources": segment.resources.model_dump(mode="json"),
            "weights": [w for s in segment.stages for w in weights_of(s)],
        }
        for segment in this.segments
    ]
    return {
        "rows": "patches" if this.of_patches else "images",
        "first": _named(this.first),
        "segments": [first, *models],
        "sets": [s.label for s in this.sets],
    }


def weights_of(planned: PlannedStage[Any]) -> list[dict[str, str]]:
    """Return the weights of a stage with their hashes."""
    hashes = planned.stage.weight_hashes()
    return [
        {"stage": planned.label, "name": name, "from": text, "sha256": hashes[name]}
        for name, text in planned.stage.weights().items()
    ]


def _is_model(planned: PlannedStage[Any]) -> bool:
    return isinstance(planned.stage, BatchStage)


def _named(rules: Iterable[Rule]) -> list[dict[str, str]]:
    return [
        {
            "rule": rule.name,
            "where": rule.condition.text,
            **({} if rule.null == "fail" else {"null": rule.null}),
            **({} if rule.channel is None else {"channel": rule.channel}),
        }
        for rule in rules
    ]
