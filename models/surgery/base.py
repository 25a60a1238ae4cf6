"""Surgery: a named, reversible edit of a model, listed in checkpoints and cards.

How to write one. Derive from `Surgery`; its pydantic fields are its parameters (JSON values). Set `name`, and
`edits`: the places of the model that it edits, in names that others share ("transformer.pos_embed").
Write `perform`, which checks the model first, edits it, and returns what `undo` needs to restore everything
bitwise. Add one line to `KNOWN`. The bookkeeping is done here:

    surgery.apply(model); applied(model); surgery.revert(model)
    compose(model, surgeries)                     # all of them in a valid order, or none
    with temporarily(model, surgery): ...
    record(model) -> JSON list;  compose(fresh_model, from_record(the_list))

Rules. A surgery is applied once (`key` distinguishes two of a kind, such as two adapters). Two that edit the
same place exclude each other. `after` names those that must be applied before it and reverted after it, if
both are used. The list is an attribute of the model, so it follows `copy.deepcopy` and pickling.
"""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from uhr.base.config import Config, build
from uhr.base.errors import UserError, load_object, unknown

KNOWN: Mapping[str, str] = {
    "attention-calls": "uhr.models.attention.call:AttentionCalls",
    "exact-tiling": "uhr.models.vae.tiled:ExactTiling",
    "lora": "uhr.models.adapters.surgeries:PlainLora",
    "rope-ntk": "uhr.models.surgery.rope:RopeNtk",
    "rope-resonance": "uhr.models.surgery.rope:RopeResonance",
    "rope-yarn": "uhr.models.surgery.rope:RopeYarn",
    "singular-components": "uhr.models.adapters.surgeries:SingularComponents",
    "token-masked-lora": "uhr.models.adapters.surgeries:TokenMaskedLora",
    "vae-f16": "uhr.models.vae.f16:F16",
}
"""Name -> import path. A user's own surgery is recorded by its import path instead."""

_LIST = "_uhr_surgeries"


@dataclass(frozen=True)
class _Applied:
    surgery: Surgery
    kept: Any
    """The value that `perform` returned. A module in it is not part of the model (`to`, `state_dict`): one
    with weights belongs inside its replacement instead."""


class Surgery(Config):
    """An edit with its parameters; immutable. Two are equal if their classes and parameters are."""

    name: ClassVar[str]
    edits: ClassVar[frozenset[str]] = frozenset()
    after: ClassVar[frozenset[str]] = frozenset()
    adapts: ClassVar[bool] = False
    """Whether it adds an adapter, whose weights are in no record."""

    @abstractmethod
    def perform(self, model: Any) -> Any:
        """Edit `model` in place and return what `undo` needs. Must not change the model if it raises."""

    @abstractmethod
    def undo(self, model: Any, kept: Any) -> None:
        """Restore the model exactly; `kept` is the value that `perform` returned."""

    @property
    def key(self) -> str:
        """The identifier that is unique among the surgeries on a model."""
        return self.name

    def describe(self) -> dict[str, Any]:
        """Return JSON: `surgery` (the name, or the import path if `KNOWN` lacks it) and the parameters."""
        path = f"{type(self).__module__}:{type(self).__qualname__}"
        return {"surgery": self.name if self.name in KNOWN else path, **self.model_dump(mode="json")}

    def apply(self, model: Any) -> None:
        """Perform it on `model` and add it to the model's list. Raises UserError if a rule of this module
        forbids it."""
        entries = _entries(model)
        for other in (entry.surgery for entry in entries):
            _check_pair(other, self)
        kept = self.perform(model)
        setattr(model, _LIST, [*entries, _Applied(self, kept)])

    def revert(self, model: Any) -> None:
        """Undo it on `model`. Raises UserError if it is not applied, or if a later one must be reverted
        first."""
        entries = _entries(model)
        places = [i for i, entry in enumerate(entries) if entry.surgery == self]
        if not places:
            raise UserError(f"surgery '{self.key}' is not on this {type(model).__name__}", _listing(entries))
        for entry in entries[places[0] + 1 :]:
            if self.name in entry.surgery.after:
                later = entry.surgery.key
                raise UserError(
                    f"surgery '{later}' was applied after '{self.key}'", f"revert '{later}' first"
                )
        self.undo(model, entries[places[0]].kept)
        left = entries[: places[0]] + entries[places[0] + 1 :]
        if left:
            setattr(model, _LIST, left)
        else:
            delattr(model, _LIST)


def applied(model: Any) -> list[Surgery]:
    """Return the surgeries on `model`, in the order of their application."""
    return [entry.surgery for entry in _entries(model)]


def record(model: Any) -> list[dict[str, Any]]:
    """Return `applied` as JSON, for checkpoints and cards."""
    return [surgery.describe() for surgery in applied(model)]


def from_record(records: Iterable[Mapping[str, Any]], where: str = "surgeries") -> list[Surgery]:
    """Return the surgeries of a checkpoint's list.

    Raises UserError, in which `where` names the list, for an invalid entry.
    """
    return [_from_entry(entry, f"{where}.{i}") for i, entry in enumerate(records)]


def _from_entry(entry: Mapping[str, Any], where: str) -> Surgery:
    fields = dict(entry)
    name = fields.pop("surgery", None)
    if not isinstance(name, str):
        raise UserError(f"{where}: 'surgery' is {name!r}", f"name one of {', '.join(sorted(KNOWN))}")
    if name not in KNOWN and ":" not in name:
        raise unknown("surgery", name, KNOWN, where)
    cls = load_object(KNOWN.get(name, name), "surgery")
    if not (isinstance(cls, type) and issubclass(cls, Surgery)):
        raise UserError(
            f"{where}: '{name}' is not a Surgery", "name a class derived from uhr.models.surgery.base.Surgery"
        )
    return build(cls, fields, where)


def compose(model: Any, surgeries: Sequence[Surgery]) -> None:
    """Apply all surgeries or none, in the given order, but each after those that its `after` names."""
    done: list[Surgery] = []
    try:
        for surgery in _ordered(surgeries):
            surgery.apply(model)
            done.append(surgery)
    except BaseException:
        for surgery in reversed(done):
            surgery.revert(model)
        raise


@contextlib.contextmanager
def temporarily(model: Any, *surgeries: Surgery) -> Generator[None]:
    """Apply the surgeries in a `with` block."""
    compose(model, surgeries)
    try:
        yield
    finally:
        for surgery in reversed(_ordered(surgeries)):
            surgery.revert(model)


def _entries(model: Any) -> list[_Applied]:
    return getattr(model, _LIST, [])


def _listing(entries: Sequence[_Applied]) -> str:
    return f"applied: {', '.join(entry.surgery.key for entry in entries) or 'none'}"


def _check_pair(earlier: Surgery, later: Surgery) -> None:
    if earlier.key == later.key:
        raise UserError(f"surgery '{later.key}' is already on this model", "revert it first")
    shared = sorted(earlier.edits & later.edits)
    if shared:
        what = f"surgeries '{earlier.key}' and '{later.key}' both replace {', '.join(shared)}"
        raise UserError(what, "keep one of them")
    if later.name in earlier.after:
        raise UserError(
            f"surgery '{later.key}' must come before '{earlier.key}'", f"revert '{earlier.key}' first"
        )


def _ordered(surgeries: Sequence[Surgery]) -> list[Surgery]:
    """Return a stable order in which each surgery follows those that its `after` names."""
    waiting, result = list(surgeries), []
    while waiting:
        names = {surgery.name for surgery in waiting}
        free = [surgery for surgery in waiting if not surgery.after & (names - {surgery.name})]
        if not free:
            raise UserError(f"surgeries {', '.join(sorted(names))} must each follow another", "drop one")
        result.append(free[0])
        waiting.remove(free[0])
    return result
