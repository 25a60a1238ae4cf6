"""Exports: the images of a manifest as files for other programs. A new format is one file and one line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from uhr.base.errors import UserError, load_object, unknown

if TYPE_CHECKING:
    from uhr.manifests.export.base import Format

_HERE = "uhr.manifests.export"

FORMATS = {
    "webdataset": f"{_HERE}.webdataset:WebDataset",
    "hf": f"{_HERE}.hf:HuggingFace",
    "folder": f"{_HERE}.folders:ImageFolder",
    "pairs": f"{_HERE}.folders:Pairs",
    "kohya": f"{_HERE}.folders:Kohya",
    "simpletuner": f"{_HERE}.folders:SimpleTuner",
}
"""Name -> import path of the class. A format is imported when it is first used."""


def format_named(name: str) -> type[Format]:
    """Return the class of a format, by its name or an import path (`mypkg.exports:Mine`). Raises UserError if
    there is none.
    """
    from uhr.manifests.export.base import Format

    if ":" not in name and name not in FORMATS:
        raise unknown("format", name, FORMATS, "--to")
    found = load_object(FORMATS.get(name, name), "format")
    if not (isinstance(found, type) and issubclass(found, Format) and hasattr(found, "name")):
        raise UserError(f"--to {name} is not a format", f"name a class made from {Format.__module__}.Format")
    return found
