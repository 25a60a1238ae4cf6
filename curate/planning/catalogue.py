"""Describe the stages of this version, for `uhr curate stages`."""

from __future__ import annotations

from typing import Any

from uhr.curate.stage import SetStage
from uhr.curate.stages import NAMES, stage_class


def all_stages() -> list[dict[str, Any]]:
    """Return for each stage its name, what it reads, columns, needs, parameters with defaults, packages and
    licences.
    """
    return [_description(name) for name in NAMES]


def _description(name: str) -> dict[str, Any]:
    cls = stage_class(name)
    params = cls.Params.model_fields
    required = [key for key, field in params.items() if field.is_required()]
    # a stage whose columns depend on a parameter is shown with a placeholder for it
    stage = cls(cls.Params.model_validate({key: key.upper() for key in required}))
    return {
        "stage": name,
        "reads": "set" if isinstance(stage, SetStage) else stage.reads,
        "adds": [
            {"column": c.name, "unit": c.unit, "range": c.range, "meaning": c.meaning} for c in stage.adds
        ],
        "needs": list(stage.needs),
        "parameters": {key: None if field.is_required() else field.default for key, field in params.items()},
        "packages": [{"package": p.name, "extra": p.extra, "licence": p.licence} for p in stage.packages],
        "missing": stage.missing(),
    }
