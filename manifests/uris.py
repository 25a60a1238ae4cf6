"""Convert between paths of samples, which are bytes, and uris, which are text."""

from __future__ import annotations

from pathlib import Path, PurePath

from uhr.base.errors import UserError
from uhr.base.paths import escaped, unescaped


def uri_of(relative: PurePath | str) -> str:
    """Return the uri of a file, from its path relative to the source root. The mapping is one to one.

    `/` separates folders; `%` and bytes that are not UTF-8 become `%25` and `%XX`; all else is unchanged.
    """
    return escaped(relative)


def path_of(root: Path, uri: str) -> Path:
    """Return the path of `uri` below `root`. Raises UserError if it would leave `root`."""
    path = Path(unescaped(uri))
    if path.is_absolute() or ".." in path.parts:
        raise UserError(
            f"uri '{uri}' is outside of the source root {root}", "the manifest was not made by uhr"
        )
    return root / path
