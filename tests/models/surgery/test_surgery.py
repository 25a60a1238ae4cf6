"""The noun Surgery: what composes, what excludes, what comes back."""

import copy
import itertools
import json
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from uhr.base.errors import UserError, load_object
from uhr.models.surgery import base as surgery
from uhr.models.surgery.base import Surgery, applied, compose, from_record, record, temporarily


class Shift(Surgery):
    """Adds to one parameter of a toy model; reversible bitwise only because the old tensor is kept."""

    name: ClassVar[str] = "shift"
    by: float = 0.1

    def perform(self, model: Any) -> Any:
        kept = model.weight.data
        model.weight.data = kept + self.by
        return kept

    def undo(self, model: Any, kept: Any) -> None:
        model.weight.data = kept


class Rename(Surgery):
    name: ClassVar[str] = "rename"
    edits: ClassVar[frozenset[str]] = frozenset({"label"})
    label: str = "a"

    @property
    def key(self) -> str:
        return f"rename:{self.label}"

    def perform(self, model: Any) -> Any:
        kept, model.label = model.label, self.label
        return kept

    def undo(self, model: Any, kept: Any) -> None:
        model.label = kept


class Polish(Surgery):
    """Edits what Rename has changed."""

    name: ClassVar[str] = "polish"
    after: ClassVar[frozenset[str]] = frozenset({"rename"})

    def perform(self, model: Any) -> Any:
        kept, model.label = model.label, model.label + "!"
        return kept

    def undo(self, model: Any, kept: Any) -> None:
        model.label = kept


class Broken(Surgery):
    name: ClassVar[str] = "broken"

    def perform(self, model: Any) -> Any:
        raise UserError("this model is of another kind", "take another")

    def undo(self, model: Any, kept: Any) -> None:
        raise AssertionError("nothing was performed")


class Toy(nn.Linear):
    def __init__(self) -> None:
        super().__init__(3, 3)
        self.label = "plain"


@pytest.fixture
def model():
    return Toy()


def state(model: Toy) -> tuple[str, bytes, list]:
    return model.label, model.weight.detach().numpy().tobytes(), sorted(vars(model))


@pytest.mark.parametrize("order", list(itertools.permutations([Shift(), Rename()])))
@pytest.mark.parametrize("undone", list(itertools.permutations([Shift(), Rename()])))
def test_reverting_in_any_order_restores_the_model_bitwise(model, order, undone):
    before = state(model)
    compose(model, order)
    assert applied(model) == list(order)
    assert state(model) != before
    for one in undone:
        one.revert(model)
    assert state(model) == before
    assert applied(model) == []


def test_a_surgery_is_equal_by_class_and_parameters():
    assert Shift(by=0.5) == Shift(by=0.5)
    assert len({Shift(by=0.5), Shift(by=0.5), Shift(by=0.25)}) == 2
    assert Shift() != Polish()


def test_applying_twice_is_an_error_and_changes_nothing(model):
    Shift().apply(model)
    before = state(model)
    with pytest.raises(UserError, match="already on this model"):
        Shift(by=0.7).apply(model)
    assert state(model) == before


def test_two_surgeries_of_one_seat_exclude_each_other(model):
    Rename(label="b").apply(model)
    with pytest.raises(UserError, match=r"'rename:b' and 'rename:c' both replace label"):
        Rename(label="c").apply(model)


def test_compose_puts_each_after_what_it_depends_on(model):
    compose(model, [Polish(), Shift(), Rename()])
    assert model.label == "a!"
    assert [type(s) for s in applied(model)] == [Shift, Rename, Polish]


def test_what_something_depends_on_is_applied_first_and_reverted_last(model):
    Polish().apply(model)
    with pytest.raises(UserError, match=r"must come before 'polish'"):
        Rename().apply(model)
    Polish().revert(model)
    compose(model, [Rename(), Polish()])
    with pytest.raises(UserError, match=r"'polish' was applied after 'rename:a'"):
        Rename().revert(model)


def test_compose_is_all_or_nothing(model):
    before = state(model)
    with pytest.raises(UserError, match="another kind"):
        compose(model, [Shift(), Rename(), Broken()])
    assert state(model) == before


def test_temporarily_ends_with_the_block_also_after_an_error(model):
    before = state(model)
    with temporarily(model, Polish(), Rename()):
        assert model.label == "a!"
    assert state(model) == before
    with pytest.raises(ZeroDivisionError), temporarily(model, Polish(), Rename()):
        raise ZeroDivisionError
    assert state(model) == before


def test_reverting_what_is_not_there_says_what_is(model):
    Shift().apply(model)
    with pytest.raises(UserError, match=r"'polish' is not on this Toy: applied: shift"):
        Polish().revert(model)


def test_a_record_of_json_rebuilds_the_same_composition(model, monkeypatch):
    known = {name: f"{__name__}:{cls}" for name, cls in (("rename", "Rename"), ("polish", "Polish"))}
    monkeypatch.setattr(surgery, "KNOWN", known)
    monkeypatch.setattr(surgery, "load_object", lambda path, kind: globals()[path.partition(":")[2]])
    compose(model, [Shift(by=0.25), Rename(label="z"), Polish()])
    listed = json.loads(json.dumps(record(model)))
    # Shift is in no table: it is recorded by its import path
    assert listed[0] == {"surgery": f"{__name__}:Shift", "by": 0.25}
    assert listed[1] == {"surgery": "rename", "label": "z"}
    fresh = Toy()
    compose(fresh, from_record(listed))
    assert applied(fresh) == applied(model)
    assert fresh.label == model.label == "z!"


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"surgery": "vae-f61"}, r"card.0: unknown surgery 'vae-f61': did you mean vae-f16"),
        ({"label": "z"}, r"card.0: 'surgery' is None"),
        ({"surgery": "vae-f16", "stride": 4}, r"card.0: unknown key 'stride'"),
        ({"surgery": "uhr.base.errors:UserError"}, r"is not a Surgery"),
    ],
)
def test_a_record_that_is_none_says_which_entry_and_why(entry, message):
    with pytest.raises(UserError, match=message):
        from_record([entry], where="card")


def test_the_list_follows_a_copy_of_the_model(model):
    compose(model, [Shift(), Rename()])
    twin = copy.deepcopy(model)
    Rename().revert(twin)
    Shift().revert(twin)
    assert twin.label == "plain"
    assert applied(twin) == []
    assert applied(model) == [Shift(), Rename()]
    assert not torch.equal(twin.weight, model.weight)


@pytest.mark.parametrize("name", surgery.KNOWN)
def test_every_name_of_the_table_leads_to_its_class(name):
    cls = load_object(surgery.KNOWN[name], "surgery")
    assert issubclass(cls, Surgery)
    assert cls.name == name
    assert cls.__doc__
