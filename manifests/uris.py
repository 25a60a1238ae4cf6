"""Addresses of samples: between file names, which are bytes, and the text that a manifest holds."""

from __future__ import annotations

import os
import urllib.parse
from pathlib import Path, PurePath

from uhr.base.errors import UserError


def uri_of(relative: PurePath | str) -> str:
    """The uri of a file, from its path relative to the source root; one to one with it.

    `/` separates folders; `%` and bytes that are no UTF-8 become `%25` and `%XX`; all else stands as it is.
    """
    text = os.fsencode(relative).decode("utf-8", "surrogateescape").replace("%", "%25")
    return "".join(f"%{ord(c) - 0xDC00:02X}" if "\udc80" <= c <= "\udcff" else c for c in text)


def path_of(root: Path, uri: str) -> Path:
    """The file below `root` that `uri` names. A UserError for a uri that would leave `root`."""
    path = Path(os.fsdecode(urllib.parse.unquote_to_bytes(uri)))
    if path.is_absolute() or ".." in path.parts:
        raise UserError(
            f"uri '{uri}' leads out of the source root {root}", "the manifest was not made by uhr"
        )
    return root / path
