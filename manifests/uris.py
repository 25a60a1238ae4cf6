"""Addresses of samples: between file names, which are bytes, and the text that a manifest holds."""

from __future__ import annotations

from pathlib import Path, PurePath

from uhr.base.errors import UserError
from uhr.base.paths import escaped, unescaped


def uri_of(relative: PurePath | str) -> str:
    """The uri of a file, from its path relative to the source root; one to one with it.

    `/` separates folders; `%` and bytes that are no UTF-8 become `%25` and `%XX`; all else stands as it is.
    """
    return escaped(relative)


def path_of(root: Path, uri: str) -> Path:
    """The file below `root` that `uri` names. A UserError for a uri that would leave `root`."""
    path = Path(unescaped(uri))
    if path.is_absolute() or ".." in path.parts:
        raise UserError(
            f"uri '{uri}' leads out of the source root {root}", "the manifest was not made by uhr"
        )
    return root / path
