"""What adapters say about their own sampling, as defaults of a request.

A file that uhr exported names the guidance, the sampler and its options where these differ from those of any
other adapter (`formats.usage.IntendedSampling`). Without them it may be silently wrong: an adapter that was
trained without guidance is sampled with the model card's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from uhr.base.config import apply_sets
from uhr.base.console import note, warn
from uhr.base.errors import UserError
from uhr.models.adapters.formats.usage import METADATA, IntendedSampling, Usage
from uhr.models.files.containers import first_bytes, read_header
from uhr.models.generate.request import Adapter
from uhr.models.loading.opening import ModelName
from uhr.models.specs.registry import get, names
from uhr.models.specs.spec import ModelSpec


@dataclass(frozen=True)
class AdapterDefaults:
    """Values that a request takes from its adapters: guidance and options (as `--set` takes them).

    notes: what was taken. warnings: where the user's values differ from those of an adapter.
    """

    guidance: float | None = None
    sets: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def intended_sampling(file: Path) -> IntendedSampling | None:
    """Return what an adapter's file says about its sampling; None if it says nothing.

    Raises UserError for an entry that is invalid.
    """
    header = read_header(file, first_bytes(file)) or {}
    metadata = header.get("__metadata__")
    if not isinstance(metadata, dict) or METADATA not in metadata:
        return None
    return Usage.of(metadata, (), str(file)).sampling


def defaults_of(
    adapters: Sequence[Adapter],
    sampler: str,
    guidance: float | None,
    sets: Sequence[str],
    spec: ModelSpec | None,
) -> AdapterDefaults:
    """Return the defaults of a call of `sampler` with these adapters.

    `guidance` and `sets` are the user's, which count. `spec` is the model's, None if it is not known yet; one
    that takes no guidance gets none.
    """
    named = [(each.name, found) for each in adapters if (found := intended_sampling(each.file)) is not None]
    taken, notes, warnings = None, [], []
    unguided = spec is not None and spec.guidance == "none"
    wanted = {} if unguided else {name: found.guidance_of(sampler) for name, found in named}
    wanted = {name: number for name, number in wanted.items() if number is not None}
    for name, number in wanted.items():
        if guidance is not None and guidance != number:
            warnings.append(
                f"{name} was trained to be sampled at guidance {number:g}, and --guidance is {guidance:g}"
            )
    if guidance is None and len(set(wanted.values())) == 1:
        taken = next(iter(wanted.values()))
        notes.append(f"guidance {taken:g}, as {', '.join(wanted)} was trained; --guidance changes it")
    elif guidance is None and wanted:
        each = ", ".join(f"{name} {number:g}" for name, number in wanted.items())
        warnings.append(
            f"the adapters were trained for different guidance ({each}); the model card's is taken"
        )
    own = {text.partition("=")[0]: text for text in sets}
    added: dict[str, str] = {}
    for name, found in named:
        if found.sampler != sampler:
            # a plain adapter is for every sampler
            if found.sampler != "euler" or found.options:
                options = f" ({', '.join(found.sets)})" if found.options else ""
                what = f"{name} was trained for the sampler {found.sampler}{options}"
                notes.append(f"{what}, and this is {sampler}")
            continue
        for entry in found.sets:
            key = entry.partition("=")[0]
            if key not in own and added.setdefault(key, entry) != entry:
                what = f"adapters were trained for both {added[key]} and {entry} ({name})"
                raise UserError(what, f"choose one, such as {entry}")
            if key in own and apply_sets({}, [entry]) != apply_sets({}, [own[key]]):
                warnings.append(f"{name} was trained for {entry}, and {own[key]} is set")
    if added:
        notes.append(f"{', '.join(added.values())}, as the adapter was trained, unless you set it")
    return AdapterDefaults(taken, tuple(added.values()), tuple(notes), tuple(warnings))


def printed_defaults(
    adapters: Sequence[Adapter],
    model: ModelName,
    sampler: str,
    guidance: float | None,
    sets: Sequence[str],
) -> AdapterDefaults:
    """Return `defaults_of` for a command, and print its notes and warnings."""
    if not adapters:
        return AdapterDefaults()
    found = defaults_of(adapters, sampler, guidance, sets, _known_spec(model))
    for line in found.notes:
        note(line)
    for line in found.warnings:
        warn(line)
    return found


def _known_spec(model: ModelName) -> ModelSpec | None:
    """The spec of a model; None for one that is not found, which is reported where it is opened."""
    try:
        return get(model.model) if model.model in names() else model.open().spec
    except UserError:
        return None
