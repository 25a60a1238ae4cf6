"""The numbers of an experiment: each value of each arm, and its difference from the first arm."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from uhr.base.config import Config
from uhr.train.evaluate.compare.comparison import Arm, ComparedColumn, compare
from uhr.train.evaluate.experiments import variance
from uhr.train.evaluate.experiments.variance import Ends, TwoLevel
from uhr.train.evaluate.result import ColumnResult

if TYPE_CHECKING:
    import numpy as np


class ArmValue(Config):
    """One value of one arm.

    Args:
        value: the mean over training seeds. each: of each seed.
        low, high: over prompts and training seeds; of a metric of sets, over training seeds alone.
        prompts: the interval over prompts alone, of a metric of images.
        one_seed: whether the arm was trained with one seed, so that the training has no part in low and high.
        sd_seeds, sd_prompts: standard deviations of the effects of training seeds and prompts.
        spread: of a metric of sets with one seed, as the metric states it.
        prompt_count: with a value for each training seed, of a metric of images: the others are left out;
            None if all have one. difference_prompts: with a value in the first arm too.
        difference: from the first arm, with the same intervals.
    """

    value: float
    each: tuple[float, ...]
    low: float | None = None
    high: float | None = None
    prompts: Ends = Ends(None, None)
    one_seed: bool = False
    sd_seeds: float | None = None
    sd_prompts: float | None = None
    spread: float | None = None
    prompt_count: int | None = None
    difference: TwoLevel | None = None
    difference_prompts: int | None = None

    @property
    def clear(self) -> bool:
        """Whether the interval of the difference excludes 0."""
        ends = None if self.difference is None else self.difference.both
        return (
            ends is not None
            and ends.low is not None
            and ends.high is not None
            and not ends.low <= 0 <= ends.high
        )


class ExperimentColumn(Config):
    """One number, of all arms; None where an arm does not have it."""

    name: str
    metric: str
    kind: str
    better: str | None
    meaning: str
    arms: dict[str, ArmValue | None]


def columns(arms: Mapping[str, Sequence[Arm]], trained: Mapping[str, bool]) -> list[ExperimentColumn]:
    """Compute all numbers, without those of categories of questions, which weight images differently.

    Args:
        arms: by the name of an arm, its results: one per training seed. trained: whether it is trained.

    Raises UserError if their numbers cannot be compared.
    """
    every = [result for results in arms.values() for result in results]
    weighted = {
        name for result in every for name, (_, column) in result.info.columns().items() if column.weight
    }
    kept = [column for column in compare(every).columns if column.name not in weighted]
    return [_column(column, arms, trained) for column in kept]


def _column(
    column: ComparedColumn, arms: Mapping[str, Sequence[Arm]], trained: Mapping[str, bool]
) -> ExperimentColumn:
    value = _image_value if column.kind == "image" else _set_value
    found: dict[str, ArmValue | None] = {}
    first = next(iter(arms))
    for name, results in arms.items():
        own = [result.column(column.name) for result in results]
        there = [each for each in own if each is not None and each.value is not None]
        base = None if name == first else (arms[first], trained[first])
        found[name] = value(column, there, (results, trained[name]), base) if len(there) == len(own) else None
    return ExperimentColumn(
        name=column.name,
        metric=column.metric,
        kind=column.kind,
        better=column.better,
        meaning=column.meaning,
        arms=found,
    )


_Results = tuple[Sequence[Arm], bool]
"""The results of an arm, one per training seed, and whether it is trained."""


def _image_value(
    column: ComparedColumn, own: Sequence[ColumnResult], arm: _Results, base: _Results | None
) -> ArmValue | None:
    import numpy as np

    results, is_trained = arm
    every = _scores(results, column.name, own[0])
    scores = _complete(every)
    if not scores.shape[1]:
        return None
    found, parts = variance.mean_of(scores, is_trained), variance.deviations(scores)
    difference, both = None, 0
    if base is not None and all(result.column(column.name) is not None for result in base[0]):
        theirs = _scores(base[0], column.name, own[0])
        paired = _complete(np.concatenate([theirs, every]))
        both = paired.shape[1]
        if both:
            one, other = paired[: len(theirs)], paired[len(theirs) :]
            difference = variance.difference_of(one, other, (base[1], is_trained))
    total = every.shape[1]
    return ArmValue(
        value=found.value,
        each=tuple(scores.mean(axis=1).tolist()),
        low=found.both.low,
        high=found.both.high,
        prompts=found.prompts,
        one_seed=not found.seeds,
        sd_seeds=parts.seeds,
        sd_prompts=parts.prompts,
        prompt_count=None if scores.shape[1] == total else scores.shape[1],
        difference=difference,
        difference_prompts=None if difference is None or both == total else both,
    )


def _scores(results: Sequence[Arm], name: str, column: ColumnResult) -> np.ndarray:
    """The scores of an arm, [training seeds, prompts]; NaN where an image of a prompt has none."""
    import numpy as np

    rows = []
    for result in results:
        values = variance.linear(result.values(column)[0], column.mean)
        rows.append(variance.by_prompt(values, np.asarray(result.scores["prompt_index"])))
    return np.stack(rows)


def _complete(scores: np.ndarray) -> np.ndarray:
    """The prompts of scores [S, P] that have a value in each row."""
    import numpy as np

    return scores[:, ~np.isnan(scores).any(axis=0)]


def _set_value(
    column: ComparedColumn, own: Sequence[ColumnResult], arm: _Results, base: _Results | None
) -> ArmValue:
    """A metric of sets has one number per training seed: there is no interval over prompts."""
    each = tuple(each.value for each in own if each.value is not None)
    ends = variance.over_seeds(each) if arm[1] else Ends(None, None)
    return ArmValue(
        value=statistics.fmean(each),
        each=each,
        low=ends.low,
        high=ends.high,
        one_seed=arm[1] and len(each) == 1,
        sd_seeds=statistics.stdev(each) if len(each) > 1 else None,
        spread=own[0].spread if len(each) == 1 else None,
    )
