"""Base class of the metrics of single images."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from uhr.base.errors import UserError
from uhr.models.metrics.base import (
    About,
    Better,
    Minimum,
    Need,
    Sample,
    ScoreColumn,
    check_samples,
    column_name,
    versions,
)


class PerImage(ABC):
    """A metric that scores one image after the other: an `ImageMetric` without its `values`.

    name: the full name. range: of its values. columns: each column's name, with what it adds to the meaning;
    by default there is one, named after the metric. weights: SHA-256 of what was loaded by name, and its
    precision where that depends on the device. packages: what the values depend on besides.
    """

    about: ClassVar[About]
    needs: frozenset[Need] = frozenset()
    better: Better | None = "higher"
    mean: ClassVar[Literal["arithmetic", "harmonic"]] = "arithmetic"
    smallest: ClassVar[int] = 1
    """px of the shorter side that an image must have."""

    @classmethod
    def minimum(cls, options: Any) -> Minimum:
        """Return what the metric needs at least of the images (`MetricClass`)."""
        return Minimum(side=cls.smallest)

    def __init__(
        self,
        name: str,
        range: str = "",
        columns: Mapping[str, str] | None = None,
        weights: Mapping[str, Any] | None = None,
        packages: Sequence[str] = (),
    ) -> None:
        self.name = name
        self._weights, self._packages = dict(weights or {}), tuple(packages)
        self.columns = tuple(
            ScoreColumn(column, self.better, self.about.measures + meaning, range, self.mean)
            for column, meaning in (columns or {column_name(name): ""}).items()
        )

    def identity(self) -> dict[str, Any]:
        """Return the name, SHA-256 of weights, and versions of libraries."""
        return {"metric": self.name, "weights": self._weights, "versions": versions(*self._packages)}

    def score(self, samples: Sequence[Sample]) -> list[dict[str, float | None]]:
        """Return the values of each sample by column, None where there was nothing to measure.

        They are computed one by one: a model's value depends on the batch in its last digits. Raises
        UserError for a sample that lacks what the metric needs, or for which a value is not a number.
        """
        check_samples(self, samples)
        found = []
        for sample in samples:
            values = [None if value is None else float(value) for value in self.values(sample)]
            if any(value is not None and math.isnan(value) for value in values):
                what = f"{self.name} of image {sample.index} is not a number"
                raise UserError(what, "check the image and the weights")
            names = [column.name for column in self.columns]
            found.append(dict(zip(names, values, strict=True)))
        return found

    @abstractmethod
    def values(self, sample: Sample) -> Sequence[float | None]:
        """Return the value of each column, None where the image has nothing that could be measured."""
