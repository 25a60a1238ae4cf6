"""Divides the metrics of an evaluation into groups, of which one is loaded at a time.

The models of all metrics of a protocol do not fit into a GPU together. Images are decoded again for each
group, which takes longer than most models take for an image of 4K: models that fit share a group.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from uhr.base.config import fingerprint
from uhr.base.files import user_path
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


def memory_for(device: str, workers: int | None) -> int:
    """Return how many bytes the files of the models of a group may have on a torch device: a quarter of its
    memory, of which each of the workers has an equal share. Models may take twice the size of their files,
    and need memory to compute.

    It depends on the machine alone, so that a run that is resumed there has the same groups.
    """
    import torch

    if torch.device(device).type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
    else:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return memory // 4 // max(1, workers or 1)


def divide(chosen: Sequence[ChosenMetric], together: int | None = None, memory: int = 0) -> list[MetricGroup]:
    """Return groups with at most `together` models each, in the order in which the models first occur.

    memory: without `together`, the bytes that the files of a group's models may have. A model that is larger,
    or whose files are not on this machine, has a group of its own.

    Metrics of sets with the same weights share one model; a program or function of the user's own counts as
    one. Metrics without a model join the first group.
    """
    models: dict[str, list[ChosenMetric]] = {}
    free = [each for each in chosen if not _has_model(each)]
    for each in chosen:
        if _has_model(each):
            models.setdefault(_model(each), []).append(each)
    groups: list[list[ChosenMetric]] = [[]]
    count, held = 0, 0.0
    for own in models.values():
        size = _file_bytes(own[0])
        if count and (held + size > memory if together is None else count == together):
            groups.append([])
            count, held = 0, 0.0
        groups[-1] += own
        count, held = count + 1, held + size
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


def _file_bytes(chosen: ChosenMetric) -> float:
    """The bytes of the files of a metric's model; infinite if not all of them are on this machine."""
    from uhr.models.metrics.registry import metric_class

    found = metric_class(chosen.metric)
    defaults = {name: field.default for name, field in found.Options.model_fields.items()}
    values = [
        {**defaults, **chosen.options}.get(name) for name in (*found.about.weights, *found.about.optional)
    ]
    named = [value for value in values if value is not None]
    places = [user_path(value) for value in named if isinstance(value, str | Path)]
    if not named or len(places) < len(named) or not all(place.exists() for place in places):
        return math.inf
    files = (each for place in places for each in (place.rglob("*") if place.is_dir() else [place]))
    return sum(file.stat().st_size for file in files if file.is_file())


def _model(chosen: ChosenMetric) -> str:
    """What tells the models of metrics apart."""
    from uhr.models.metrics.registry import metric_class

    found: Any = metric_class(chosen.metric)
    if not hasattr(found, "compare"):
        return f"of {chosen.name}"
    weights = {name: chosen.options.get(name) for name in (*found.about.weights, *found.about.optional)}
    return fingerprint([found.__module__, weights])
