"""Turns YAML, JSON and `--set` options into typed configuration objects."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

import pydantic
import yaml
import yaml.constructor
import yaml.resolver

from uhr.base.errors import UserError, one_line, unknown
from uhr.base.paths import is_utf8


class Config(pydantic.BaseModel):
    """Base of every configuration: immutable; unknown keys, NaN and infinity are errors."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _whole_characters(text: str) -> str:
    if not is_utf8(text):
        raise ValueError("contains bytes that are not UTF-8, or half of a character")
    return text


Text = Annotated[str, pydantic.AfterValidator(_whole_characters)]
"""A text that a model reads or a file keeps. What a shell or a JSON escape gives may not be valid text."""


C = TypeVar("C", bound=pydantic.BaseModel)


def build(cls: type[C], tree: Mapping[str, Any], where: str) -> C:
    """Build a `cls` from untyped keys and values.

    Raises UserError for the first mistake, in one line that names the key, the value and the fix; `where`
    names the file or command that the tree comes from.
    """
    try:
        return cls.model_validate(dict(tree))
    except pydantic.ValidationError as error:
        faults = error.errors()
        # a misspelt key is also a missing one: report the cause
        fault = next((fault for fault in faults if fault["type"] == "extra_forbidden"), faults[0])
        path = ".".join(str(part) for part in fault["loc"])
        if fault["type"] == "extra_forbidden":
            raise unknown("key", path, _sibling_keys(cls, fault["loc"]), where) from None
        if fault["type"] == "missing":
            raise UserError(f"{where}: '{path}' is missing", "give it a value") from None
        if not path:  # the mistake is in the whole tree: its message says which values do not go together
            raise UserError(f"{where}: {_lower(fault['msg'])}") from None
        got = f" (got {fault['input']!r})"
        raise UserError(f"{where}: '{path}' {_lower(fault['msg'])}{got}") from None


def read_versioned(cls: type[C], file: Path, newest: int, fix: str) -> C:
    """Read a JSON file of ours, as `parse_versioned`. Raises UserError also if it cannot be read."""
    try:
        data = file.read_bytes()
    except OSError as error:
        raise UserError(f"{file} cannot be read ({one_line(error)})", fix) from None
    return parse_versioned(cls, data, str(file), newest, fix)


def parse_versioned(cls: type[C], data: bytes, where: str, newest: int, fix: str) -> C:
    """Build a `cls` from the bytes of a JSON file of ours; `where` names the file in errors.

    Raises UserError as `versioned_tree` does, and if the content does not fit `cls`.
    """
    return build(cls, versioned_tree(data, where, newest, fix), where)


def versioned_tree(data: bytes, where: str, newest: int, fix: str) -> dict[str, Any]:
    """Parse a JSON object of ours that has a `schema_version`.

    Raises UserError if it is not a JSON object, or if its version is missing or newer than `newest`. `fix` is
    what to do if it is damaged.
    """
    try:
        tree = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} cannot be read ({one_line(error)})", fix) from None
    if not isinstance(tree, dict):
        raise UserError(f"{where} cannot be read (it is not a JSON object)", fix)
    version = tree.get("schema_version")
    if type(version) is not int or version < 1:
        raise UserError(f"{where} has no schema version", fix)
    if version > newest:
        raise UserError(
            f"{where} has schema version {version}, and this uhr reads {newest}", "install a newer uhr"
        )
    return tree


def _lower(message: str) -> str:
    message = message.removeprefix("Value error, ").removeprefix("Input ")
    return message[:1].lower() + message[1:]


def _sibling_keys(cls: type[pydantic.BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    """Full dotted paths of the keys that are allowed in place of the unknown one."""
    here: Any = cls
    walked: list[str] = []
    for part in loc[:-1]:
        walked.append(str(part))
        if isinstance(part, str) and _is_model(here) and part in here.model_fields:
            here = _model_inside(here.model_fields[part].annotation)
    names = list(here.model_fields) if _is_model(here) else []
    return [".".join([*walked, name]) for name in names]


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel)


def _model_inside(annotation: Any) -> Any:
    """The model in `Model`, `Model | None`, `list[Model]`, `dict[str, Model]`."""
    if _is_model(annotation):
        return annotation
    for inner in getattr(annotation, "__args__", ()):
        found = _model_inside(inner)
        if found is not None:
            return found
    return None


class _Loader(yaml.SafeLoader):
    """Safe YAML in which a repeated key is an error: the second one would silently win."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    loader.flatten_mapping(node)
    result: dict[Any, Any] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        if key in result:
            raise yaml.constructor.ConstructorError(
                None, None, f"key '{key}' is given twice", key_node.start_mark
            )
        result[key] = loader.construct_object(value_node, deep=True)
    return result


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def parse_yaml(text: str, where: str) -> dict[str, Any]:
    """Parse a YAML mapping to plain dicts and lists. Raises UserError if it is invalid or not a mapping."""
    try:
        tree = yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = f" line {mark.line + 1}" if mark else ""
        raise UserError(f"{where}{line}: {error.problem}", "fix the YAML") from None
    except yaml.YAMLError as error:
        raise UserError(f"{where}: {one_line(error)}", "fix the YAML") from None
    if not isinstance(tree, dict):
        raise UserError(
            f"{where} contains a {type(tree).__name__}, not a mapping", "write 'key: value' lines"
        )
    return tree


def read_yaml(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({one_line(error)})", "name a YAML file") from None
    return parse_yaml(text, str(path))


def apply_sets(tree: Mapping[str, Any], sets: list[str]) -> dict[str, Any]:
    """Apply each `path=value` of the command line to a copy of `tree`; the value is read as YAML.

    A path walks mappings by key and lists by index, or by the `name` or `stage` of an entry:
    `stages.flatness.patch=256`, `rules.entropy="entropy >= 6"`.
    """
    result: dict[str, Any] = json.loads(json.dumps(tree))
    for item in sets:
        path, equals, text = item.partition("=")
        if not equals or not path:
            raise UserError(f"--set {item}", "write it as path=value")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            value = text
        *parents, last = path.split(".")
        here: Any = result
        for part in parents:
            here = _step(here, part, path)
        if isinstance(here, list):
            here[_index(here, last, path)] = value
        else:
            here[last] = value
    return result


def _step(here: Any, part: str, path: str) -> Any:
    if isinstance(here, list):
        return here[_index(here, part, path)]
    if part not in here:
        here[part] = {}
    if not isinstance(here[part], dict | list):
        raise UserError(f"--set {path}: '{part}' is {here[part]!r}", "set it as a whole")
    return here[part]


def _index(entries: list[Any], part: str, path: str) -> int:
    if part.lstrip("-").isdigit() and -len(entries) <= int(part) < len(entries):
        return int(part)
    names = [e.get("name", e.get("stage")) if isinstance(e, dict) else e for e in entries]
    if part not in names:
        raise unknown("entry", part, [str(n) for n in names if n], f"--set {path}")
    return names.index(part)


def canonical_json(value: Any) -> str:
    """Serialise a value so that equal values give equal texts: sorted keys, no spaces."""
    if isinstance(value, pydantic.BaseModel):
        value = value.model_dump(mode="json")
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def fingerprint(value: Any) -> str:
    """SHA-256 (64 hex digits) of a value's canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode("utf-8", "surrogatepass")).hexdigest()
