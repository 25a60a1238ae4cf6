"""Shares of data sets in a phase, and the rows that a condition leaves."""

from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from uhr.base.errors import UserError
from uhr.train.data.mixture import Mixture, UseOrder
from uhr.train.data.names import NamedPath, named_path
from uhr.train.data.sets import check_all_used, data_for, open_sets
from uhr.train.recipes import resolve
from uhr.train.recipes.core.base import DataUse


class Data:
    """Encoded data of which only the sizes of its buckets matter; rows that divide by `step` are selected."""

    path = Path("data")

    def __init__(self, *sizes: int, step: int = 1) -> None:
        self.buckets = [SimpleNamespace(rows=size, group_rows=4) for size in sizes]
        self.step = step

    def select(self, where, named="where"):
        step = 1 if where is None else self.step
        return [np.arange(0, bucket.rows, step) for bucket in self.buckets]

    def lowest(self, rows, shares):
        assert not shares, "no use of these tests takes the lowest values of a column"
        return list(rows)


def mixture(*uses: tuple[DataUse, Data], size: int = 2, seed: int = 0) -> Mixture:
    recipe = resolve("lora", None, [f"batch.size={size}", f"seed={seed}"])
    phase = recipe.phases[0].model_copy(update={"data": tuple(use for use, _ in uses)})
    recipe = recipe.model_copy(update={"phases": (phase,)})
    return Mixture([UseOrder.of(recipe, 0, number, data) for number, (_, data) in enumerate(uses)])


def use(name: str = "a", **values) -> DataUse:
    return DataUse(data=name, **values)


weights = st.lists(st.floats(0.01, 100), min_size=2, max_size=4)


@given(weights, st.integers(1, 3000))
def test_after_any_number_of_batches_every_set_has_had_its_share_to_within_one_batch(values, count):
    mixed = mixture(*((use(weight=value), Data(50)) for value in values))
    counts = Counter(mixed.at(done).use for done in range(count))
    for number, value in enumerate(values):
        assert abs(counts[number] - count * value / sum(values)) <= len(values) / 2


@given(weights, st.permutations(range(0, 3000, 97)))
def test_a_batch_depends_on_its_number_alone_and_not_on_those_looked_at_before(values, order):
    uses = [(use(weight=value), Data(30, 7)) for value in values]
    one, other = mixture(*uses), mixture(*uses)
    assert [one.at(done) for done in order] == [other.at(done) for done in order]
    assert [mixture(*uses).at(done) for done in order[:3]] == [one.at(done) for done in order[:3]]


@given(weights, st.integers(0, 60))
def test_the_rows_of_any_number_of_batches_are_counted_over_all_sets(values, done):
    mixed = mixture(*((use(weight=value), Data(3, 5)) for value in values))
    assert mixed.row_count(done) == sum(len(mixed.at(number).rows) for number in range(done))


def test_each_set_is_read_in_its_own_order_without_a_gap():
    """The batches of a set in a mixture are those that it has alone."""
    mixed = mixture((use(weight=1), Data(10)), (use("b", weight=3), Data(9, 4)))
    for number, order in enumerate(mixed.orders):
        own = [turn for turn in map(mixed.at, range(60)) if turn.use == number]
        assert own == [order.at(done, number) for done in range(len(own))]
        assert len(own) > 10


def test_without_weights_every_row_is_used_as_often_as_its_repeats_say():
    mixed = mixture((use(), Data(20)), (use("b", repeats=3), Data(10, 6)))
    # an epoch of the whole: 10 batches of the first, 3 times 5 + 3 of the second
    seen = Counter()
    for turn in map(mixed.at, range(34)):
        seen.update((turn.use, turn.bucket, row) for row in turn.rows)
    assert set(seen.values()) == {1, 3}
    assert all(times == (1 if number == 0 else 3) for (number, _, _), times in seen.items())
    assert len(seen) == 20 + 16


def test_a_condition_leaves_only_rows_that_meet_it_and_each_of_them_once_an_epoch():
    mixed = mixture((use(where="score > 1"), Data(20, 1, 13, step=3)))
    (order,) = mixed.orders
    assert order.row_count == 7 + 1 + 5
    turns = [mixed.at(done) for done in range(order.plan.batches_per_epoch)]
    rows = [(turn.bucket, row) for turn in turns for row in turn.rows]
    expected = [(b, row) for b, size in enumerate((20, 1, 13)) for row in range(0, size, 3)]
    assert sorted(rows) == expected


def test_a_bucket_without_any_row_of_the_condition_is_left_out():
    class Narrow(Data):
        def select(self, where, named="where"):
            return [np.arange(0), np.array([2, 5])]

    mixed = mixture((use(where="x"), Narrow(4, 8)))
    assert {turn.bucket for turn in map(mixed.at, range(5))} == {1}
    assert sorted(mixed.at(0).rows) == [2, 5]


def test_a_condition_that_no_row_meets_is_an_error():
    class Empty(Data):
        def select(self, where, named="where"):
            return [np.arange(0)]

    with pytest.raises(UserError, match="no row of it has score > 9"):
        mixture((use(where="score > 9"), Empty(4)))


def test_two_uses_of_one_set_have_different_orders():
    mixed = mixture((use(weight=1), Data(64)), (use(weight=1), Data(64)))
    one, two = ([turn.rows for turn in map(mixed.at, range(64)) if turn.use == number] for number in range(2))
    assert one != two
    assert sorted(sum(one, ())) == sorted(sum(two, ()))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ("[{data: a, weight: 1}, {data: b}]", "all data sets of a phase have a weight, or none has"),
        ("[{data: a, weight: 1, repeats: 2}]", "weight is a share of batches already"),
        ("[{data: a, band: [0.9, 0.5]}]", "must be 0 <= low < high <= 1"),
        ("[]", "data"),
    ],
)
def test_data_of_a_phase_that_contradict_themselves_are_an_error(values, message):
    with pytest.raises(UserError, match=message):
        resolve("lora", None, [f"phases.main.data={values}"])


def test_the_band_and_objective_of_a_use_replace_those_of_its_phase():
    values = "[{data: a}, {data: b, band: [0.5, 1], objective: distillation}]"
    phase = resolve("lora", None, [f"phases.main.data={values}"]).phases[0]
    first, second = phase.data
    assert phase.objective_of(first).kind == "flow"
    assert phase.objective_of(second).kind == "distillation"
    assert phase.timesteps_of(first) == phase.timesteps
    assert phase.timesteps_of(second).band == (0.5, 1)
    assert phase.timesteps_of(second).shift == phase.timesteps.shift


def test_a_name_before_a_path_is_a_name_unless_the_whole_is_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert named_path("real=some/dir") == NamedPath("real", Path("some/dir"))
    assert named_path("some/dir") == NamedPath(None, Path("some/dir"))
    assert named_path("license=cc0/x=y") == NamedPath("license", Path("cc0/x=y"))
    (tmp_path / "a=b").mkdir()
    assert named_path("a=b") == NamedPath(None, Path("a=b"))
    assert named_path("real=a=b") == NamedPath("real", Path("a=b"))
    assert named_path("real=s3://bucket/x=y") == NamedPath("real", "s3://bucket/x=y")
    with pytest.raises(UserError, match="not an address in an object store"):
        named_path("real=gs://bucket/x")


def recipe_of(*names: str):
    values = ", ".join(f"{{data: {name}}}" for name in names)
    return resolve("lora", None, [f"phases.main.data=[{values}]"])


def test_a_folder_without_a_name_is_the_recipes_only_set(small_set):
    (found,) = open_sets(recipe_of("real"), [small_set.folder])
    assert found.name == "real"
    with pytest.raises(
        UserError, match=r"uses 2 data sets, and .* has no name: --data real=DIR --data made=DIR"
    ):
        open_sets(recipe_of("real", "made"), [small_set.folder])


def test_names_that_the_recipe_does_not_use_and_repeated_ones_are_errors(small_set):
    with pytest.raises(UserError, match="unknown data set 'reel': did you mean real"):
        open_sets(recipe_of("real"), [NamedPath("reel", small_set.folder)])
    with pytest.raises(UserError, match="are both data set 'real' at 128 px"):
        open_sets(recipe_of("real"), [NamedPath("real", small_set.folder)] * 2)


def test_a_set_that_is_missing_or_that_no_phase_uses_is_named(small_set, tiny_flux):
    from uhr.models.zoo import get

    spec, recipe = get("tiny-flux1"), recipe_of("real", "made")
    found = open_sets(recipe, [NamedPath("real", small_set.folder)])
    with pytest.raises(
        UserError,
        match=r"needs data set 'made' \(at 128 px\), and it is not given: give it as --data made=DIR",
    ):
        data_for(recipe.phases[0].data[1], recipe.phases[0], spec, found)
    other = recipe.model_copy(
        update={"phases": (recipe.phases[0].model_copy(update={"resolution": 256, "data": ()}),)}
    )
    with pytest.raises(UserError, match="was encoded at 128 px, and no phase of lora uses it as 'real'"):
        check_all_used(other, spec, found)
