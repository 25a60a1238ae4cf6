"""The source of a run: from the command line or the pipeline."""

from __future__ import annotations

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
