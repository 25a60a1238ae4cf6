"""The order of a phase's batches over its data sets: shares by weight, exact in every stretch of a run.

Like `order.BucketPlan` it is a pure function: its only state is the number of batches done.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from uhr.base.errors import UserError
from uhr.models.specs.spec import ModelSpec
from uhr.train.data.order import BucketPlan
from uhr.train.data.reader import EncodedData
from uhr.train.data.sets import NamedData, data_for, rows_of
from uhr.train.recipes.core.base import DataUseBase, RecipeBase


class Turn(NamedTuple):
    """One batch: rows `rows` of bucket number `bucket` of the data of use number `use`.

    epoch, index: place of the batch in the order of its own data set, both from 0.
    """

    use: int
    epoch: int
    index: int
    bucket: int
    rows: tuple[int, ...]


@dataclass(frozen=True)
class UseOrder:
    """The order in which a phase reads one of its data sets.

    buckets: the number of each of the plan's buckets in the data. rows: the row numbers that are used of each
    of them, rising.
    """

    use: DataUseBase
    data: EncodedData
    plan: BucketPlan
    buckets: tuple[int, ...]
    rows: tuple[np.ndarray, ...]

    @classmethod
    def of(cls, recipe: RecipeBase, phase: int, number: int, data: EncodedData) -> UseOrder:
        """The order of use `number` of a phase. Raises UserError if a row or bucket would never be used."""
        use = recipe.phases[phase].data[number]
        where = f"{data.path}, phases.{recipe.phases[phase].name}.data.{number}.where"
        chosen = [(bucket, rows) for bucket, rows in enumerate(rows_of(use, data, where)) if len(rows)]
        if not chosen:
            raise UserError(
                f"{data.path}: no row of it has {use.where}", "loosen the condition of that phase"
            )
        groups = [
            _block(data.buckets[bucket].group_rows, data.buckets[bucket].rows, len(rows))
            for bucket, rows in chosen
        ]
        try:
            plan = BucketPlan(
                [len(rows) for _, rows in chosen],
                recipe.batch.size,
                _seed(recipe.seed, phase, number),
                block=groups,
                remainder=recipe.batch.remainder,
            )
        except ValueError as error:
            raise UserError(
                f"{data.path}: {error}", "--set batch.remainder=short, or a smaller batch"
            ) from None
        return cls(use, data, plan, tuple(bucket for bucket, _ in chosen), tuple(rows for _, rows in chosen))

    @property
    def row_count(self) -> int:
        """Number of rows that are used."""
        return sum(map(len, self.rows))

    def at(self, done: int, use: int) -> Turn:
        """The batch after `done` others of this data set."""
        planned = self.plan.at(done)
        rows = self.rows[planned.bucket][list(planned.rows)]
        return Turn(use, planned.epoch, planned.index, self.buckets[planned.bucket], tuple(rows.tolist()))


def _block(group: int, rows: int, chosen: int) -> int:
    """The number of chosen rows in a row group of `group` of a bucket's `rows`, on average."""
    return max(1, round(group * chosen / rows))


def _seed(seed: int, phase: int, use: int) -> int:
    """The seed of a use's order: no two uses of a run share one."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{phase}/{use}".encode()).digest()[:6], "little")


class Mixture:
    """The batches of several orders by weight.

    Batch j of an order with share w has the place (j + 1/2) / w; batches run by place. So after any number of
    batches each order has had its share to within one batch, and more steps change nothing that came before.
    A weight of None is the order's number of batches per epoch times `repeats`.
    """

    def __init__(self, orders: Sequence[UseOrder]) -> None:
        self.orders = tuple(orders)
        weights = [
            order.plan.batches_per_epoch * order.use.repeats if order.use.weight is None else order.use.weight
            for order in self.orders
        ]
        self.shares = tuple(weight / sum(weights) for weight in weights)
        self._uses = np.zeros(0, np.int32)
        self._places = np.zeros(0, np.int64)

    def at(self, done: int) -> Turn:
        """The batch after `done` others of the phase."""
        if len(self.orders) == 1:
            return self.orders[0].at(done, 0)
        self._extend_to(done + 1)
        use = int(self._uses[done])
        return self.orders[use].at(int(self._places[done]), use)

    def row_count(self, done: int) -> int:
        """Number of rows of the first `done` batches of the phase."""
        if len(self.orders) == 1:
            return self.orders[0].plan.row_count(done)
        self._extend_to(done)
        batches = np.bincount(self._uses[:done], minlength=len(self.orders)).tolist()
        return sum(order.plan.row_count(count) for order, count in zip(self.orders, batches, strict=True))

    def _extend_to(self, count: int) -> None:
        while count > len(self._uses):
            self._extend(max(1024, 2 * len(self._uses)))

    def _extend(self, count: int) -> None:
        """Compute the first `count` batches: the data set of each, and its number there."""
        numbers = [np.arange(int(count * share) + 2) for share in self.shares]
        uses = np.concatenate([np.full(len(own), use, np.int32) for use, own in enumerate(numbers)])
        own = np.concatenate(numbers)
        places = (own + 0.5) / np.array(self.shares)[uses]
        order = np.argsort(places, kind="stable")[:count]
        self._uses, self._places = uses[order], own[order]


def mixture_of(recipe: RecipeBase, phase: int, spec: ModelSpec, sets: Sequence[NamedData]) -> Mixture:
    """The order of a phase's batches. Raises UserError if data are missing or never used."""
    config = recipe.phases[phase]
    return Mixture(
        [
            UseOrder.of(recipe, phase, number, data_for(use, config, spec, sets))
            for number, use in enumerate(config.data)
        ]
    )
