"""The order of training batches: a pure function of bucket sizes, batch size and seed.

The only state is the number of batches done, or (epoch, batch), so a run can stop and resume at any batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np

WINDOW = 16
"""Number of row groups whose rows are shuffled together."""


class PlannedBatch(NamedTuple):
    """The rows of one batch, and the number of the bucket that contains them."""

    epoch: int
    index: int
    bucket: int
    rows: tuple[int, ...]


class BucketPlan:
    """The order of batches: every row once per epoch, each batch from one bucket.

    sizes: rows of each bucket. batch_size: rows per global batch. seed: seed of the order.
    block: rows per row group of the stored data, one number for each bucket. Reading is fastest if the rows
        of a row group are used close together: row groups are shuffled, then the rows within `WINDOW` row
        groups. The order of buckets is random.
    remainder: what happens to a bucket's last rows if they do not fill a batch.
        "short": they form a smaller batch, so each row is used exactly once per epoch.
        "drop": they are left out of this epoch, so all batches have the same size. Which rows these are
            changes from epoch to epoch. Raises ValueError if a bucket has fewer rows than a batch, as it
            would never be used.

    The order is computed from raw Philox output, which numpy keeps stable across its versions.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        batch_size: int,
        seed: int,
        *,
        block: Sequence[int] | None = None,
        remainder: Literal["short", "drop"] = "short",
    ) -> None:
        assert batch_size > 0
        assert all(size > 0 for size in sizes), "a bucket is empty"
        self.sizes = tuple(sizes)
        self.batch_size = batch_size
        self.seed = seed
        self.block = tuple(block) if block is not None else (1,) * len(self.sizes)
        assert len(self.block) == len(self.sizes)
        self.remainder = remainder
        if remainder == "drop":
            small = [size for size in self.sizes if size < batch_size]
            if small:
                raise ValueError(f"a bucket of {small[0]} rows never fills a batch of {batch_size}")
        self.batches_of_bucket = tuple(self._count(size) for size in self.sizes)
        self._epoch_order = lru_cache(maxsize=2)(self._make_epoch)

    def _count(self, size: int) -> int:
        return size // self.batch_size if self.remainder == "drop" else -(-size // self.batch_size)

    @property
    def batches_per_epoch(self) -> int:
        """Number of batches of every epoch."""
        return sum(self.batches_of_bucket)

    def batch(self, epoch: int, index: int) -> PlannedBatch:
        """Batch `index` of epoch `epoch`, both from 0."""
        assert 0 <= index < self.batches_per_epoch
        order, rows = self._epoch_order(epoch)
        bucket, start = order[index]
        return PlannedBatch(
            epoch, index, bucket, tuple(rows[bucket][start : start + self.batch_size].tolist())
        )

    def at(self, done: int) -> PlannedBatch:
        """The batch after `done` others, counted through all epochs."""
        return self.batch(*divmod(done, self.batches_per_epoch))

    def row_count(self, done: int) -> int:
        """Number of rows of the first `done` batches, of which the last of a bucket may be short."""
        if self.remainder == "drop":
            return done * self.batch_size
        epochs, rest = divmod(done, self.batches_per_epoch)
        begun = self._epoch_order(epochs)[0][:rest] if rest else []
        part = sum(min(self.batch_size, self.sizes[bucket] - start) for bucket, start in begun)
        return epochs * sum(self.sizes) + part

    def epoch(self, epoch: int) -> Iterator[PlannedBatch]:
        """All batches of one epoch, in order."""
        for index in range(self.batches_per_epoch):
            yield self.batch(epoch, index)

    def _make_epoch(self, epoch: int) -> tuple[list[tuple[int, int]], list[np.ndarray]]:
        """(bucket, first row in the bucket's order) of each batch, and the order of each bucket's rows."""
        rows = [self._shuffled_rows(epoch, bucket) for bucket in range(len(self.sizes))]
        turns = np.repeat(np.arange(len(self.sizes)), self.batches_of_bucket)
        turns = turns[_permutation(len(turns), self.seed, epoch, "turns")]
        dealt = [0] * len(self.sizes)
        batches = []
        for bucket in turns.tolist():
            batches.append((bucket, dealt[bucket]))
            dealt[bucket] += self.batch_size
        return batches, rows

    def _shuffled_rows(self, epoch: int, bucket: int) -> np.ndarray:
        size, block = self.sizes[bucket], self.block[bucket]
        blocks = _permutation(-(-size // block), self.seed, epoch, f"blocks {bucket}")
        pieces = []
        for window in range(0, len(blocks), WINDOW):
            starts = blocks[window : window + WINDOW] * block
            inside = np.concatenate([np.arange(start, min(start + block, size)) for start in starts])
            mixed = _permutation(len(inside), self.seed, epoch, f"rows {bucket} {window}")
            pieces.append(inside[mixed])
        return np.concatenate(pieces)


def _permutation(count: int, *key: object) -> np.ndarray:
    """A random order of 0..count-1 that depends on `key` alone: the ranks of raw 64-bit draws."""
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    draws = np.random.Philox(key=int.from_bytes(digest[:16], "little")).random_raw(count)
    return np.argsort(draws, kind="stable")
