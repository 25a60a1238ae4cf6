"""The options of a sampler that `--set` sets: names, values, defaults and meanings, read from its
`Options`."""

from __future__ import annotations

import inspect
import json
import re
import textwrap
import types
from enum import Enum
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from uhr.base.config import Config
from uhr.base.console import say
from uhr.models.samplers import options_class

_ENTRY = re.compile(r"(\w+(?:, \w+)*):\s+(.*)")


def options_of(sampler: str) -> list[dict[str, Any]]:
    """Return an entry per option: name (dotted if it is part of another), values, default, meaning."""
    options = options_class(sampler)
    return _entries(options, options())


def print_options(entries: list[dict[str, Any]]) -> None:
    """Print for each option what may be written, and below it what it means."""
    off: tuple[str, ...] = ()
    for entry in entries:
        name, default = entry["name"], entry["default"]
        if entry["values"] == "{}" and default is None:
            off = (*off, f"{name}.")
        if entry["values"] != "{}":
            what = "default once it is on" if name.startswith(off) else "default"
            shown = "" if default is None else f"  [{what}: {json.dumps(default)}]".replace('"', "")
            say(f"--set {name}={entry['values']}{shown}")
        elif default is None:
            say(f"--set {name}={{}}  [off unless it or one of its parts is set]")
        else:
            say(f"{name}, in parts")
        for line in textwrap.wrap(entry["meaning"], 96):
            say(f"      {line}")


def _entries(options: type[Config], defaults: Config, prefix: str = "") -> list[dict[str, Any]]:
    """`defaults` has the value of every option; for a part that is off by default, those when it is on."""
    found = []
    meanings = _meanings(options)
    for name, field in options.model_fields.items():
        default = getattr(defaults, name)
        inner = next((part for part in _parts(field.annotation) if _is_config(part)), None)
        if inner is not None:
            found.append(_entry(prefix + name, "{}", None if default is None else {}, meanings[name]))
            found += _entries(inner, inner() if default is None else default, f"{prefix}{name}.")
        else:
            found.append(_entry(prefix + name, _values(field.annotation), _plain(default), meanings[name]))
    return found


def _entry(name: str, values: str, default: Any, meaning: str) -> dict[str, Any]:
    return {"name": name, "values": values, "default": default, "meaning": meaning}


def _meanings(options: type[Config]) -> dict[str, str]:
    """The meaning of every field, read from the docstrings of the class and its bases: lines `name: meaning`,
    continued by indented ones."""
    found = dict.fromkeys(options.model_fields, "")
    for cls in reversed(options.__mro__):
        if not issubclass(cls, Config) or not cls.__doc__:
            continue
        names: list[str] = []
        for line in inspect.cleandoc(cls.__doc__).splitlines():
            entry = _ENTRY.fullmatch(line)
            if entry is not None and set(entry[1].split(", ")) <= set(options.model_fields):
                names = entry[1].split(", ")
                found |= dict.fromkeys(names, entry[2].strip())
            elif line.startswith(" ") and names:
                found |= {name: f"{found[name]} {line.strip()}" for name in names}
            else:
                names = []
    return found


def _parts(annotation: Any) -> list[Any]:
    """The members of a union, without None."""
    if get_origin(annotation) is Annotated:
        return _parts(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [part for each in get_args(annotation) for part in _parts(each)]
    return [] if annotation is type(None) else [annotation]


def _is_config(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Config)


def _values(annotation: Any) -> str:
    """What may be written after the equals sign."""
    values = []
    for part in _parts(annotation):
        if get_origin(part) is Literal:
            values += [str(value) for value in get_args(part)]
        elif isinstance(part, type) and issubclass(part, Enum):
            values += [str(member.value) for member in part]
        elif get_origin(part) in (tuple, list):
            inside = next((_values(each) for each in get_args(part) if each is not Ellipsis), "...")
            values.append(f"[{inside}, ...]")
        elif _is_config(part):
            values.append("{}")
        else:
            values.append({bool: "true|false", int: "INT", float: "FLOAT"}.get(part, "TEXT"))
    return "|".join(dict.fromkeys(values))


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    return list(value) if isinstance(value, tuple) else value
