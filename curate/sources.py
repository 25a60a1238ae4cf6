"""The source of a run: from the command line or the pipeline, and its place relative to OUT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from uhr.base.errors import UserError
from uhr.manifests import sources
from uhr.manifests.sources.base import Source


def source_of(text: str | None, trees: dict[str, Any], pipeline: str) -> Source:
    """The source that `--source` or the key `sources` of the pipeline names.

    Raises UserError if both or neither do, or if a source is invalid.
    """
    if text is None:
        if not trees:
            raise UserError("no source is named", "name a folder of images with --source")
        return sources.of_pipeline(trees, pipeline)
    if trees:
        raise UserError(f"{pipeline} has sources of its own", "leave --source out")
    return sources.parse(text)


def check_no_overlap(source: Source, out: Path) -> None:
    """Raise UserError if OUT is inside a folder of the source or the other way round: a run must not curate
    its own output.
    """
    b = out.resolve()
    for path in source.local_paths:
        a = path.resolve()
        if a == b or a in b.parents:
            raise UserError(f"--out {out} is inside the source {path}", "name a folder outside it")
        if b in a.parents:
            raise UserError(f"the source {path} is inside --out {out}", "name a folder outside it")
