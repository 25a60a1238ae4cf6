import itertools
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uhr.train.data.order import WINDOW, BucketPlan

sizes = st.lists(st.integers(1, 90), min_size=1, max_size=5)


@st.composite
def plans(draw, remainder=("short", "drop")):
    rows = draw(sizes)
    kind = draw(st.sampled_from(remainder))
    largest = min(rows) if kind == "drop" else 12
    batch = draw(st.integers(1, largest))
    block = [draw(st.integers(1, 20)) for _ in rows]
    return BucketPlan(rows, batch, draw(st.integers(0, 2**31)), block=block, remainder=kind)


@given(plans(remainder=["short"]), st.integers(0, 3))
def test_every_row_comes_exactly_once_per_epoch(plan, epoch):
    seen = Counter((b.bucket, row) for b in plan.epoch(epoch) for row in b.rows)
    assert seen == {(bucket, row): 1 for bucket, size in enumerate(plan.sizes) for row in range(size)}


@given(plans(), st.integers(0, 3))
def test_a_batch_is_full_except_the_last_of_a_bucket_if_short_ones_are_allowed(plan, epoch):
    lengths = [[len(b.rows) for b in plan.epoch(epoch) if b.bucket == i] for i in range(len(plan.sizes))]
    for size, found in zip(plan.sizes, lengths, strict=True):
        full, rest = divmod(size, plan.batch_size)
        short = [rest] if rest and plan.remainder == "short" else []
        assert sorted(found, reverse=True) == [plan.batch_size] * full + short
    assert sum(map(len, lengths)) == plan.batches_per_epoch


@given(plans(), st.integers(0, 60))
def test_the_rows_of_any_number_of_batches_are_counted(plan, done):
    assert plan.row_count(done) == sum(len(plan.at(number).rows) for number in range(done))


def test_rows_that_drop_leaves_out_differ_by_epoch_and_all_are_seen_in_time():
    plan = BucketPlan([10, 7], 4, seed=3, remainder="drop")
    everything = {(bucket, row) for bucket, size in enumerate(plan.sizes) for row in range(size)}
    left = [frozenset(everything - {(b.bucket, r) for b in plan.epoch(e) for r in b.rows}) for e in range(12)]
    assert {len(out) for out in left} == {2 + 3}
    assert len(set(left)) > 6
    assert not frozenset.intersection(*left)


def test_drop_refuses_a_bucket_that_would_never_be_seen():
    with pytest.raises(ValueError, match="3 rows never fills a batch of 4"):
        BucketPlan([10, 3], 4, seed=0, remainder="drop")


@given(plans(), st.data())
def test_stopping_anywhere_twice_and_going_on_changes_nothing(plan, data):
    length = 2 * plan.batches_per_epoch + 1
    straight = [plan.at(number) for number in range(length)]

    stops = sorted(data.draw(st.lists(st.integers(0, length), min_size=2, max_size=2)))
    done, seen = 0, []
    for stop in [*stops, length]:
        # a new process knows the sizes, the seed, and one number
        again = BucketPlan(plan.sizes, plan.batch_size, plan.seed, block=plan.block, remainder=plan.remainder)
        for number in range(done, stop):
            batch = again.at(number)
            assert divmod(number, again.batches_per_epoch) == (batch.epoch, batch.index)
            seen.append(batch)
        done = stop
    assert seen == straight


def test_order_depends_on_the_seed_and_on_the_epoch():
    order = {
        tuple(b.rows for b in BucketPlan([40], 4, seed).epoch(epoch)) for seed in (0, 1) for epoch in (0, 1)
    }
    assert len(order) == 4


def test_batches_of_different_buckets_are_mixed():
    buckets = [b.bucket for b in BucketPlan([64, 64], 4, seed=0).epoch(0)]
    assert sum(a != b for a, b in itertools.pairwise(buckets)) > 5


def test_a_bucket_that_fits_the_window_is_shuffled_uniformly():
    first = Counter(BucketPlan([8], 1, seed, block=[2]).batch(0, 0).rows[0] for seed in range(4000))
    assert set(first) == set(range(8))
    # 500 expected each, standard deviation 21: six of them
    assert all(abs(count - 500) < 126 for count in first.values())


def test_rows_of_one_row_group_come_close_together():
    plan = BucketPlan([40 * WINDOW * 8, 100], 8, seed=1, block=[8, 8])
    rows = [row for batch in plan.epoch(0) if batch.bucket == 0 for row in batch.rows]
    place: dict[int, list[int]] = {}
    for position, row in enumerate(rows):
        place.setdefault(row // 8, []).append(position)
    assert max(max(p) - min(p) for p in place.values()) < WINDOW * 8
