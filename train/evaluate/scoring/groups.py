"""Divides the metrics of an evaluation into groups, of which one is loaded at a time.

The models of all metrics of a protocol do not fit into a GPU together. Images are decoded again for each
group.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

from uhr.base.config import fingerprint
from uhr.train.evaluate.scoring.work import ChosenMetric


class MetricGroup(NamedTuple):
    """Metrics that are loaded together, in the order of the protocol."""

    chosen: tuple[ChosenMetric, ...]

    @property
    def number(self) -> int:
        """A number of files of this group: the same for the same metrics and options, 2 or more."""
        tree = [[each.name, each.metric, each.options] for each in self.chosen]
        return 2 + int(fingerprint(tree)[:7], 16)

    @property
    def label(self) -> str:
        """A few names, for progress."""
        names = [each.name for each in self.chosen]
        return ", ".join(names) if len(names) <= 3 else f"{', '.join(names[:2])} and {len(names) - 2} more"


def divide(chosen: Sequence[ChosenMetric], together: int = 1) -> list[MetricGroup]:
    """Return groups with at most `together` models each, in the order in which the models first occur.

    Metrics of sets with the same weights share one model; a program or function of the user's own counts as
    one. Metrics without a model join the first group.
    """
    models: dict[str, list[ChosenMetric]] = {}
    free = [each for each in chosen if not _has_model(each)]
    for each in chosen:
        if _has_model(each):
            models.setdefault(_model(each), []).append(each)
    found = list(models.values())
    groups = [list(itertools.chain(*found[at : at + together])) for at in range(0, len(found), together)] or [
        []
    ]
    groups[0] = free + groups[0]
    place = {each.name: at for at, each in enumerate(chosen)}
    return [MetricGroup(tuple(sorted(group, key=lambda each: place[each.name]))) for group in groups]


def needs_no_model(chosen: ChosenMetric) -> bool:
    """Whether a metric has no weights."""
    from uhr.models.metrics.registry import metric_class

    about = metric_class(chosen.metric).about
    return not about.weights and not about.optional


def _has_model(chosen: ChosenMetric) -> bool:
    from uhr.models.metrics.external import Own
    from uhr.models.metrics.registry import metric_class

    found: Any = metric_class(chosen.metric)
    return not needs_no_model(chosen) or (isinstance(found, type) and issubclass(found, Own))


def _model(chosen: ChosenMetric) -> str:
    """What tells the models of metrics apart."""
    from uhr.models.metrics.registry import metric_class

    found: Any = metric_class(chosen.metric)
    if not hasattr(found, "compare"):
        return f"of {chosen.name}"
    weights = {name: chosen.options.get(name) for name in (*found.about.weights, *found.about.optional)}
    return fingerprint([found.__module__, weights])
