"""Configurations that are chosen by their `kind`: a name in a registry, or an import path."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

import pydantic

from uhr.base.config import Config, build
from uhr.base.errors import UserError, load_object, unknown


class Kind(Config):
    """A configuration with a `kind`: its name in a registry, or its import path `package.module:Class`.

    A subclass gives `kind` its own name as the default.
    """

    kind: str


K = TypeVar("K", bound=Kind)


def of_kind(base: type[K], registry: Mapping[str, str], what: str, value: Any) -> K:
    """Return the object that `value` describes: a `base`, a mapping with the key `kind`, or a kind alone.

    registry: the import path of each name. what: what a `base` is called in errors.
    Raises UserError for an unknown kind and for keys or values that its class does not accept.
    """
    if isinstance(value, base):
        return value
    tree = {"kind": value} if isinstance(value, str) else value
    if not isinstance(tree, Mapping):
        raise UserError(f"{what} {value!r}", f"write it as {{kind: NAME, ...}}, with {', '.join(registry)}")
    kind = tree.get("kind")
    if not isinstance(kind, str):
        raise UserError(f"{what}: 'kind' is {kind!r}", f"it is one of {', '.join(registry)}")
    if kind not in registry and ":" not in kind:
        raise unknown(what, kind, registry)
    found = load_object(registry.get(kind, kind), what)
    if not (isinstance(found, type) and issubclass(found, base)):
        fix = f"name a class derived from {base.__module__}:{base.__qualname__}"
        raise UserError(f"{what} '{kind}' is not one", fix)
    return build(found, tree, f"{what} '{kind}'")


def by_kind(base: type[K], registry: Mapping[str, str], what: str) -> Any:
    """Return the annotation of a field of a `Config` that holds any of the classes, see `of_kind`."""

    def parse(value: Any) -> K:
        return of_kind(base, registry, what, value)

    # the class is known by `kind`, so that every field of the subclass is written
    return Annotated[pydantic.SerializeAsAny[base], pydantic.BeforeValidator(parse)]  # ty: ignore[invalid-type-form]
