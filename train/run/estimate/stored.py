"""Numbers of models that were counted before, so that a plan need not import the real classes again.

Counting takes less than a second, but importing torch and diffusers takes ten. Those of the recipes' own
values on published specs come with the package, in `published.json`, which `python -m
uhr.train.run.estimate.published` writes, and a test counts again. Others are kept in the user's cache, for
one version of this code and of the libraries.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import uhr.models
import uhr.train
from uhr.base.config import fingerprint
from uhr.base.console import warn
from uhr.base.errors import one_line
from uhr.base.files import user_cache, write_json

PUBLISHED = Path(__file__).with_name("published.json")

T = TypeVar("T")


def name_of(key: Mapping[str, Any]) -> str:
    """The name under which the numbers for `key`, which is JSON, are stored."""
    return fingerprint(dict(key))[:32]


def counted(
    key: Mapping[str, Any], read: Callable[[Any], T], count: Callable[[], T], write: Callable[[T], Any]
) -> T:
    """The numbers for `key`: those of the package, those of the cache, or counted now and cached.

    read: makes them from what `write` returned as JSON; it raises TypeError, KeyError or ValueError for
    anything else.
    """
    found = _published().get(name_of(key))
    if found is not None:
        return read(found)
    versions = {name: importlib.metadata.version(name) for name in ("torch", "diffusers", "peft")}
    file = user_cache("counts") / f"{name_of({**key, 'code': _code(), 'versions': versions})}.json"
    try:
        return read(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        # missing or damaged: counted again
        numbers = count()
    try:
        write_json(file, write(numbers))
    except OSError as error:
        warn(f"the counts of {key['spec']} cannot be stored in {file} ({one_line(error)})")
    return numbers


@functools.cache
def _published() -> dict[str, Any]:
    return json.loads(PUBLISHED.read_text(encoding="utf-8")) if PUBLISHED.is_file() else {}


@functools.cache
def _code() -> str:
    """The hash of the sources on which counts depend."""
    digest = hashlib.sha256()
    for package in (uhr.models, uhr.train):
        for folder in package.__path__:
            for path in sorted(Path(folder).rglob("*.py")):
                digest.update(path.read_bytes())
    return digest.hexdigest()
