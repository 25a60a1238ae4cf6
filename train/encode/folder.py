"""The folder of encoded data while it is made: whose it is, and what of a killed try is cleared away."""

from __future__ import annotations

import re
from pathlib import Path

from uhr.base.errors import UserError
from uhr.base.lock import NAME as LOCK
from uhr.base.output import claim
from uhr.train.encode.encoded import FILE, LATENTS, LEFT_OUT, TEXTS, UNITS

_PART = r"(texts|\d+x\d+)-\d{5}\.parquet"
_UNIT = r"plan\.json|items\.arrow|unit-\d+-[0-9a-f]{16}\.parquet"


def _also_half_written(names: str) -> re.Pattern[str]:
    """These names, and those that `files.atomic` gives them until they are whole."""
    return re.compile(rf"(?:{names})|\.(?:{names})\.[0-9a-f]{{32}}\.tmp")


_OURS = {
    LATENTS: _also_half_written(_PART),
    TEXTS: _also_half_written(_PART),
    UNITS: re.compile(rf"{re.escape(LOCK)}|{LATENTS}|{TEXTS}"),
    f"{UNITS}/{LATENTS}": _also_half_written(_UNIT),
    f"{UNITS}/{TEXTS}": _also_half_written(_UNIT),
}
"""By folder: the names that encoding writes there. Whatever else stands there is somebody's."""


def claim_encoded(out: Path) -> None:
    """Make `out` ready for encoded data. UserError where it, or a folder in it that encoding writes to, holds
    anything that encoding did not write.
    """
    claim(out, (FILE, LEFT_OUT, LATENTS, TEXTS, UNITS), (FILE, UNITS), "encoded data")
    for name in _OURS:
        _listing(out, name)


def clear(out: Path, *names: str) -> None:
    """Remove these folders of `out`, file by file: only what encoding itself writes there."""
    for name in names:
        inner = [sub for sub in _OURS if sub.startswith(f"{name}/")]
        for folder in (*inner, name):
            for path in _listing(out, folder):
                if path.is_dir():  # emptied before
                    path.rmdir()
                else:
                    path.unlink()
            if (out / folder).is_dir():
                (out / folder).rmdir()


def _listing(out: Path, name: str) -> list[Path]:
    """What stands in a folder of `out`, all of it ours."""
    folder = out / name
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise UserError(f"--out {out} holds something else already ({name})", "name a new folder")
    found = sorted(folder.iterdir()) if folder.is_dir() else []
    for path in found:
        inner = f"{name}/{path.name}" in _OURS
        if not _OURS[name].fullmatch(path.name) or (path.is_dir() and not path.is_symlink()) != inner:
            raise UserError(
                f"--out {out} holds something else already ({name}/{path.name})", "name a new folder"
            )
    return found
