"""What an arm costs: planned before anything runs, and measured afterwards."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from uhr.base.config import Config
from uhr.base.errors import UserError
from uhr.models.generate.request import Adapter, Item, Request
from uhr.train.evaluate.experiments.commands import ArmRun
from uhr.train.evaluate.prompts import EvalItem

TOLERANCE = 1.1
"""Measured budgets whose ratio is at most this are equal."""


class Budget(Config):
    """What an arm costs. None is not known, or not planned.

    Args:
        trainable_parameters, images_seen, training_hours: of one training, 0 for an arm that is not trained;
            hours of one device in steps, without validation. What an `init` was trained with is not counted.
        training_memory: peak bytes.
        calls: of the backbone for an image, the two of guidance counted as two.
        seconds: of an image: the median over images, without loading the model.
        memory: peak bytes of generating: of the GPU, on a CPU of the process.
    """

    trainable_parameters: int | None = 0
    images_seen: int | None = 0
    training_hours: float | None = 0.0
    training_memory: int | None = 0
    calls: float | None = None
    seconds: float | None = None
    memory: int | None = None


EXACT = {
    "trainable_parameters": "trainable parameters",
    "images_seen": "images seen",
    "calls": "calls per image",
}
"""Budgets that differ if they are not the same number, and their names for people."""

MEASURED = {"training_hours": "training time", "seconds": "seconds per image", "memory": "memory"}
"""Budgets that differ if they do so by more than `TOLERANCE`."""


def plan(run: ArmRun, items: Sequence[EvalItem], on: str | None, device: str) -> Budget:
    """Plan one arm with one seed; loads no weights.

    on: the GPU for which time is estimated; without it, and without a GPU here, there is none. Raises
    UserError for a recipe, model or sampler that cannot be used.
    """
    from uhr.models.estimate.set_plan import plan_set

    groups = plan_set(
        request_of(run, device),
        [
            (Item(prompt=item.prompt, seed=item.seed, size=item.size), f"prompt {item.prompt_index}")
            for item in items
        ],
        on,
    )
    count = sum(group.count for group in groups)
    known = [group for group in groups if group.seconds is not None and not group.plan.assumed]
    return Budget(
        **_training(run, on),
        calls=sum(group.count * group.plan.model_calls for group in groups) / count,
        seconds=sum(group.seconds or 0.0 for group in known) / count if known else None,
        memory=groups[0].plan.requested.peak.total,
    )


def _training(run: ArmRun, on: str | None) -> dict[str, Any]:
    from uhr.train.data.names import named_path
    from uhr.train.run.estimate.estimate import estimate

    if run.recipe is None:
        return {}
    found = estimate(run.recipe, run.arm.named, [named_path(text) for text in run.arm.data], on)
    return {
        "trainable_parameters": found["parameters"]["trainable"],
        "images_seen": found["samples"],
        "training_hours": found["time"]["run"] / 3600 if "time" in found else None,
        "training_memory": found["memory"]["total"],
    }


def request_of(run: ArmRun, device: str) -> Request:
    """How images of an arm are generated, for a plan: without what is trained, which does not exist yet."""
    arm, sampling = run.arm, None if run.recipe is None else run.recipe.sampling
    sampler, options, guidance = arm.sampler, arm.sampler_options, arm.guidance
    if sampling is not None and sampler in (None, sampling.sampler):
        options = {**sampling.options, **options}
        guidance = sampling.intended.guidance_of(sampling.sampler)
        sampler = sampling.sampler
    assert sampler is not None, "an arm without a recipe has a sampler"
    return Request(
        sampler=sampler,
        model=arm.model,
        base=arm.base,
        spec=arm.spec,
        steps=arm.steps,
        guidance=guidance,
        adapters=tuple(map(Adapter.parse, arm.adapters)),
        device=device,
        options=options,
    )


def measure(seeds: Sequence[ArmRun], planned: Budget) -> tuple[Budget, list[str]]:
    """Read what an arm took, over its training seeds, and on which devices its images were generated.

    planned: has the number of trainable parameters. Raises UserError if an image has no record of its cost.
    """
    records = [record for run in seeds for record in _records(run)]
    costs = [record["cost"] for record in records]
    logs = [_log(run) for run in seeds if run.recipe is not None]
    budget = Budget(
        trainable_parameters=planned.trainable_parameters,
        images_seen=_mean(log["images"] for log in logs) if logs else 0,
        training_hours=statistics.fmean(log["hours"] for log in logs) if logs else 0.0,
        training_memory=max(log["memory"] for log in logs) if logs else 0,
        calls=statistics.fmean(record["model_calls"] for record in records),
        seconds=statistics.median(cost["seconds"] for cost in costs),
        memory=max(cost["peak_memory"] for cost in costs),
    )
    return budget, sorted({record["machine"]["computes"] for record in records})


def _mean(values: Any) -> int:
    return round(statistics.fmean(values))


def _records(run: ArmRun) -> list[dict[str, Any]]:
    """The records beside the images of an arm."""
    from uhr.train.generate.work import IMAGES

    found = []
    for file in sorted((run.images / IMAGES).rglob("*.json")):
        record = json.loads(file.read_bytes())
        if "cost" not in record:
            what = f"{file} does not say what its image cost: an earlier version of uhr generated it"
            raise UserError(
                what, f"remove {run.images} and {run.result}; the same command generates it again"
            )
        found.append(record)
    return found


def _log(run: ArmRun) -> dict[str, Any]:
    from uhr.train.run.monitoring.log import read_log

    entries = [entry for entry in read_log(run.run) if "samples" in entry]
    return {
        "images": sum(entry["samples"] for entry in entries),
        "hours": sum(entry["seconds"] for entry in entries) / 3600,
        "memory": max((entry["peak_memory"] for entry in entries), default=0),
    }


def unequal(budgets: Mapping[str, Budget]) -> dict[str, dict[str, Any]]:
    """The budgets in which the arms differ, by their names for people: the value of each arm."""
    found = {}
    for key, name in {**EXACT, **MEASURED}.items():
        values = {arm: getattr(budget, key) for arm, budget in budgets.items()}
        known = [value for value in values.values() if value is not None]
        allowed = TOLERANCE if key in MEASURED else 1.0
        if known and max(known) > allowed * min(known):
            found[name] = values
    return found
