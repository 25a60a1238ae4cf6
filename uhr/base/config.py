"""Turns YAML, JSON and `--set` options into typed configuration objects; hashes of values, and versions."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar

import pydantic
import yaml
import yaml.constructor
import yaml.resolver

from uhr.base.errors import UserError, one_line, unknown
from uhr.base.paths import is_utf8


class Config(pydantic.BaseModel):
    """Base of every configuration: immutable; unknown keys, NaN and infinity are errors."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class LaterKeys(pydantic.BaseModel):
    """Leaves those of the keys `later` that are not set out of what is dumped: they were added after others
    wrote such a tree, and a tree that does not use them stays the same, as does its hash.
    """

    later: ClassVar[tuple[str, ...]] = ()

    @pydantic.model_serializer(mode="wrap")
    def _dump(self, handler: pydantic.SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in handler(self).items() if value or key not in self.later}


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
            raise _unknown_key(cls, fault["loc"], where) from None
        if fault["type"] == "missing":
            raise UserError(f"{where}: '{path}' is missing", "give it a value") from None
        if not path:  # the mistake is in the whole tree: its message says which values do not go together
            raise UserError(f"{where}: {_lower(fault['msg'])}") from None
        if fault["type"] == "value_error" and isinstance(fault["input"], Mapping):
            # several values of a part do not go together: the message has them, and the part has many others
            raise UserError(f"{where}: '{path}': {_lower(fault['msg'])}") from None
        got = f" (got {fault['input']!r})"
        fix = "write it as 4GiB or 500MB" if fault["type"].startswith("byte_size") else None
        raise UserError(f"{where}: '{path}' {_lower(fault['msg'])}{got}", fix) from None


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


def _unknown_key(cls: type[pydantic.BaseModel], loc: tuple[int | str, ...], where: str) -> UserError:
    """The error for an unknown key: keys of this name elsewhere, or the nearest beside it."""
    parts = [*map(str, loc)]
    path = ".".join(parts)
    same = [each for each in _all_keys((cls,), [], list(loc)) if each[-1] == loc[-1]]
    if not same:
        return unknown("key", path, _sibling_keys(cls, loc), where)
    # those in the same branch of the tree, if there are any
    chosen = [each for each in same if each[0] == parts[0]] or same
    return UserError(
        f"{where}: unknown key '{path}'",
        f"did you mean {' or '.join('.'.join(each) for each in chosen[:3])}?",
    )


def _all_keys(
    classes: tuple[type[pydantic.BaseModel], ...], walked: list[str], loc: list[int | str]
) -> Iterator[tuple[str, ...]]:
    """The paths of all keys below `walked`, which is inside `classes`, outermost first.

    An entry of a list has the number that `loc` has there, or 0. A class inside itself is left out.
    """
    for name, field in classes[-1].model_fields.items():
        if field.exclude:
            continue
        here = [*walked, name]
        yield (*here,)
        inside = _model_inside(field.annotation)
        listed = _listed(field.annotation)
        if inside is None or listed is None or inside in classes:
            continue
        if listed:
            same = len(loc) > len(here) and [*map(str, loc[: len(here)])] == here
            here.append(str(loc[len(here)]) if same else "0")
        yield from _all_keys((*classes, inside), here, loc)


def _listed(annotation: Any) -> bool | None:
    """Whether the model in an annotation is in a list; None if it is in a mapping."""
    if _is_model(annotation):
        return False
    if typing.get_origin(annotation) in (dict, Mapping):
        return None
    inner = next((each for each in typing.get_args(annotation) if _model_inside(each) is not None), None)
    inside = _listed(inner) if inner is not None else False
    return True if inside is False and typing.get_origin(annotation) in (list, tuple) else inside


def _sibling_keys(cls: type[pydantic.BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    """Full dotted paths of the keys that are allowed in place of the unknown one."""
    here: Any = cls
    walked: list[str] = []
    for part in loc[:-1]:
        walked.append(str(part))
        if isinstance(part, str) and _is_model(here) and part in here.model_fields:
            here = _model_inside(here.model_fields[part].annotation)
    names = (
        [name for name, field in here.model_fields.items() if not field.exclude] if _is_model(here) else []
    )
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
    """Safe YAML in which a repeated key is an error, since the second one would silently win, and in which
    a key is the word that was written: YAML 1.1 reads `on`, `off`, `yes` and `no` as booleans.
    """


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    loader.flatten_mapping(node)
    result: dict[Any, Any] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        if isinstance(key, bool):
            key = key_node.value
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
        why = error.strerror if isinstance(error, OSError) and error.strerror else one_line(error)
        raise UserError(f"{path} cannot be read ({why})", "name a YAML file") from None
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
            value = yaml.load(text, Loader=_Loader)
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


def change(path: str, value: Any) -> str:
    """Return a change as `apply_sets` takes it. A text is quoted only where it would be read as something
    else, such as a number.
    """
    if isinstance(value, str):
        try:
            if yaml.safe_load(value) == value:
                return f"{path}={value}"
        except yaml.YAMLError:
            pass
    return f"{path}={json.dumps(value, ensure_ascii=False)}"


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
    if not any(names):
        what = f"--set {path}: entry '{part}' does not exist"
        raise UserError(
            what, f"entries are 0 to {len(entries) - 1}" if entries else "set the list as a whole"
        )
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


def installed_versions(*packages: str, absent: str = "not installed") -> dict[str, str]:
    """Return the version of each package, in this order; `absent` for one that is not installed."""
    found = {}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = absent
    return found
