"""Intervals that separate prompts from training seeds.

The scores of an arm are a table: a row per training seed, a column per prompt. Both are samples: other
prompts and another training would have given other scores. The method is the two-way random-effects model
without replication,

    score = mean + seed effect + prompt effect + residual,

with variances estimated by the method of moments (mean squares of the analysis of variance), and t intervals
whose degrees of freedom are Satterthwaite's (Biometrics Bulletin 2, 1946, 110-114). An interval is never
shorter than the t interval of the means of the seeds alone: two seeds that happen to agree prove little. A
bootstrap over two or three training seeds would give intervals that are too short.

Arms are compared over the same prompts, but their trainings are independent, also where their seeds are the
same number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from uhr.train.evaluate.bootstrap import LEVEL, Mean

if TYPE_CHECKING:
    import numpy as np

METHOD = "two-way random effects of prompts and training seeds, Satterthwaite t intervals"

_MOST_DEGREES = 1e4
"""With more degrees of freedom t is the normal distribution to 1e-4."""


class Ends(NamedTuple):
    """The ends of an interval; both are None where there are too few prompts or seeds for one."""

    low: float | None
    high: float | None


class TwoLevel(NamedTuple):
    """A mean, or a difference of means, with its intervals.

    Args:
        both: over prompts and training seeds: what to expect of another training, on other prompts.
        prompts: over prompts alone, for these trained weights.
        seeds: whether every trained arm has several training seeds. If not, `both` has no part of the
            training with one seed.
    """

    value: float
    both: Ends
    prompts: Ends
    seeds: bool


class Deviations(NamedTuple):
    """Standard deviations of the effects; of seeds and the residual None with a single seed."""

    seeds: float | None
    prompts: float | None
    residual: float | None


class _Term(NamedTuple):
    """A part of the variance of a mean, and its degrees of freedom."""

    variance: float
    degrees: float


def by_prompt(values: np.ndarray, prompts: np.ndarray) -> np.ndarray:
    """Average the images of one prompt: float [N] of images to float [P], in the order of the prompts. NaN
    where an image of the prompt has no value.
    """
    import numpy as np

    _, group = np.unique(prompts, return_inverse=True)
    return np.bincount(group, values) / np.bincount(group)


def linear(values: np.ndarray, mean: Mean) -> np.ndarray:
    """Return values whose arithmetic mean is the `mean` of `values`, of any shape; NaN is no value.

    For the harmonic mean h these are h + h^2 (1/h - 1/x), its linearisation (delta method).
    """
    if mean == "arithmetic":
        return values
    import numpy as np

    inverse = float(np.nanmean(1 / values))
    return 1 / inverse + (inverse - 1 / values) / inverse**2


def mean_of(scores: np.ndarray, trained: bool) -> TwoLevel:
    """The mean of scores, float [S, P]: a row per training seed, a column per prompt.

    trained: whether the rows are trainings. An arm that is not trained has one row, and no seeds to vary.
    """
    return _interval(scores.mean(axis=0), [(scores, trained)])


def difference_of(a: np.ndarray, b: np.ndarray, trained: tuple[bool, bool]) -> TwoLevel:
    """The difference of means, b - a, of scores over the same prompts: float [S, P] each, S of their own."""
    return _interval(b.mean(axis=0) - a.mean(axis=0), [(a, trained[0]), (b, trained[1])])


def over_seeds(values: Sequence[float]) -> Ends:
    """The t interval of the mean of one value per training seed, such as FID."""
    import numpy as np

    count = len(values)
    if count < 2:
        return Ends(None, None)
    return _ends(float(np.mean(values)), [_Term(float(np.var(values, ddof=1)) / count, count - 1)])


def deviations(scores: np.ndarray) -> Deviations:
    """The standard deviations of the effects in scores, float [S, P]. Negative variances are 0."""
    import numpy as np

    seeds, prompts = scores.shape
    if prompts < 2:
        return Deviations(None, None, None)
    if seeds < 2:
        return Deviations(None, float(scores[0].std(ddof=1)), None)
    of_seeds, residual = _mean_squares(scores)
    of_prompts = seeds * float(scores.mean(axis=0).var(ddof=1))
    return Deviations(
        float(np.sqrt(max(0.0, (of_seeds - residual) / prompts))),
        float(np.sqrt(max(0.0, (of_prompts - residual) / seeds))),
        float(np.sqrt(residual)),
    )


def _interval(each: np.ndarray, tables: Sequence[tuple[np.ndarray, bool]]) -> TwoLevel:
    """Args: each: float [P], a value per prompt, averaged over seeds. tables: the scores it is made of."""
    value, count = float(each.mean()), len(each)
    several = all(len(scores) > 1 for scores, trained in tables if trained)
    if count < 2:
        return TwoLevel(value, Ends(None, None), Ends(None, None), several)
    prompts = [_Term(float(each.var(ddof=1)) / count, count - 1)]
    trainings = [scores for scores, trained in tables if trained and len(scores) > 1]
    both = [*prompts, *(term for scores in trainings for term in _seed_terms(scores))]
    # the means of the seeds, which vary by the residual too
    alone = [_Term(float(s.mean(axis=1).var(ddof=1)) / len(s), len(s) - 1) for s in trainings]
    half = max(_half(both), _half(alone))
    return TwoLevel(value, Ends(value - half, value + half), _ends(value, prompts), several)


def _seed_terms(scores: np.ndarray) -> list[_Term]:
    """The part of the seeds in the variance of a mean; none where they vary no more than the residual."""
    seeds, prompts = scores.shape
    of_seeds, residual = _mean_squares(scores)
    if of_seeds <= residual:
        return []
    total = seeds * prompts
    return [
        _Term(of_seeds / total, seeds - 1),
        _Term(-residual / total, (seeds - 1) * (prompts - 1)),
    ]


def _mean_squares(scores: np.ndarray) -> tuple[float, float]:
    """The mean squares of seeds and of the residual; both have at least two rows and columns."""
    seeds, prompts = scores.shape
    rows, columns = scores.mean(axis=1), scores.mean(axis=0)
    rest = scores - rows[:, None] - columns[None] + scores.mean()
    return prompts * float(rows.var(ddof=1)), float((rest**2).sum()) / ((seeds - 1) * (prompts - 1))


def _ends(value: float, terms: Sequence[_Term]) -> Ends:
    half = _half(terms)
    return Ends(value - half, value + half)


def _half(terms: Sequence[_Term]) -> float:
    """Half of the length of an interval."""
    variance = sum(term.variance for term in terms)
    if variance <= 0:
        return 0.0
    degrees = variance**2 / sum(term.variance**2 / term.degrees for term in terms)
    return t_quantile((1 + LEVEL) / 2, degrees) * math.sqrt(variance)


def t_quantile(share: float, degrees: float) -> float:
    """The quantile of Student's t distribution for a share above 0.5; degrees of freedom from 1 on.

    With t = sqrt(n) tan(a) the density is proportional to cos(a)^(n - 1), which is summed on a fine grid.
    """
    import numpy as np

    n = min(max(degrees, 1.0), _MOST_DEGREES)
    widest = min(math.pi / 2, 12 / math.sqrt(n))
    angles = np.linspace(0, widest, 10_001)
    density = np.cos(angles) ** (n - 1)
    area = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    angle = float(np.interp((2 * share - 1) * area[-1], area, angles))
    return math.sqrt(n) * math.tan(angle)
