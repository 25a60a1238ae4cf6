"""The registry of sources. A new kind of source is one file here and one line in `NAMES`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from uhr.base.errors import UserError, load_object, unknown

if TYPE_CHECKING:
    from uhr.manifests.sources.base import Source

_HERE = "uhr.manifests.sources"

NAMES: dict[str, str] = {
    "folder": f"{_HERE}.folder:Folder",
    "archives": f"{_HERE}.archives:Archives",
    "webdataset": f"{_HERE}.archives:WebDataset",
    "hf": f"{_HERE}.hf:HuggingFace",
    "manifest": f"{_HERE}.of_manifest:OfManifest",
    "parquet": f"{_HERE}.parquet_images:ParquetImages",
    "stored": f"{_HERE}.stored:Stored",
    "s3": f"{_HERE}.s3:S3",
    "urls": f"{_HERE}.fetching.urls:Urls",
}
"""Kind -> import path. A kind is imported when it is first used."""

NAMED = "named"
"""The kind of several sources with names; made by `of_pipeline`, never by name."""

STORED = "stored"
"""The kind of a manifest's source where the manifest has the bytes itself."""

_KIND = re.compile(r"([A-Za-z][A-Za-z0-9_]*):(?!//)(.+)", re.DOTALL)


def parse(text: str) -> Source:
    """Make the source that `--source` names: a folder, `s3://bucket/prefix`, or `KIND:PLACE`.

    Raises UserError if the kind is unknown, or if `text` is empty. A folder whose name looks like that is
    written `./KIND:PLACE`.
    """
    if not text.strip():
        raise UserError("--source is empty", "name a folder, s3://bucket/prefix or KIND:PLACE")
    match = _KIND.fullmatch(text)
    if match is not None:
        return _class(match[1], "--source").of_text(match[2])
    return _class("s3" if text.startswith("s3://") else "folder", "--source").of_text(text)


def build(tree: Mapping[str, Any], where: str) -> Source:
    """Make a source from plain data: its `kind`, and its options.

    Raises UserError if a kind, a key or a value is invalid; `where` names the file or the key in it.
    """
    from uhr.base.config import build as build_config

    options = dict(tree)
    kind = options.pop("kind", "folder")
    inner = options.get({NAMED: "sources", STORED: "source"}.get(str(kind), ""))
    if kind == NAMED and isinstance(inner, Mapping):
        return of_pipeline(inner, where)
    if kind == STORED and isinstance(inner, Mapping):
        options["source"] = build(inner, where)
    elif kind in (NAMED, STORED):
        kinds = ", ".join(name for name in sorted(NAMES) if name != STORED)
        raise UserError(f"{where}: the kind '{kind}' is not one of its own", f"name one of {kinds}")
    return build_config(_class(str(kind), where), options, where)


def of_pipeline(trees: Mapping[str, Any], where: str) -> Source:
    """Make one source of several, by name; a tree that is a text is read as `parse` does.

    Raises UserError as `build` does, and if there is none.
    """
    from uhr.manifests.sources.named import Named

    made = {}
    for name, tree in trees.items():
        if re.fullmatch(r"[\w.-]+", name) is None:
            raise UserError(f"{where}: sources has the name {name!r}", "use letters, digits and _.- only")
        if isinstance(tree, str):
            made[name] = parse(tree)
        elif isinstance(tree, Mapping):
            made[name] = build(tree, f"{where}: sources.{name}")
        else:
            raise UserError(
                f"{where}: sources.{name} is {tree!r}", "write `kind:` and its options, or a path"
            )
    if not made:
        raise UserError(f"{where}: sources is empty", "name a source, or leave the key out")
    return Named(sources=made)


def _class(kind: str, where: str) -> type[Source]:
    if kind not in NAMES:
        raise unknown("kind of source", kind, [name for name in NAMES if name != STORED], where)
    return load_object(NAMES[kind], "source")
