"""OUT: which of its names a run writes, so that nobody else's files are ever mixed with them or removed."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from uhr.base import lock
from uhr.base.console import warn
from uhr.base.errors import UserError
from uhr.base.output import claim
from uhr.manifests.manifest import is_manifest

REPORT = "report.html"
UNITS = "units"

_TEMPORARY = r"\..+\.[0-9a-f]{32}\.tmp"
_PART = r"\.?part-\d{5}\.parquet(\.[0-9a-f]{32}\.tmp)?"
_INSIDE = {
    UNITS: re.compile(
        rf"{lock.NAME}|plan\.json|items\.arrow|unit-\d+-[0-9a-f]+\.parquet|commit\.duckdb.*|{_TEMPORARY}"
    ),
    "samples": re.compile(_PART),
    "previews": re.compile(_PART),
}
"""What a run writes into each of its folders."""


def take(out: Path) -> None:
    """Make OUT ready to be written to: new, empty, or what a run of ours left there, and that alone.

    A finished run's folder is only read, so it may hold anything beside it. Errors: a file, a folder that
    cannot be written to, one that holds something else, also inside of `units/`, `samples/`, `previews/`.
    """
    if is_finished(out):
        return
    claim(out, ("manifest.json", REPORT, *_INSIDE), ("manifest.json", UNITS), "the manifest")
    for folder in _INSIDE:
        stranger = next(_strangers(out / folder), None)
        if stranger is not None:
            raise UserError(
                f"--out {out} holds something else already ({folder}/{stranger})", "name a new folder"
            )


def is_finished(out: Path) -> bool:
    """Whether nothing is left to do: a manifest stands, and the units are gone."""
    return is_manifest(out) and not (out / UNITS).exists()


def clear_units(out: Path) -> None:
    """Remove the units, which a finished run no longer needs: the names that a run writes, and no others."""
    folder = out / UNITS
    # the lock last: whoever comes in between must find the run at work
    ours = [entry for entry in folder.iterdir() if _is_ours(UNITS, entry.name) and entry.name != lock.NAME]
    for entry in ours:
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    kept = next(_strangers(folder), None)
    (folder / lock.NAME).unlink(missing_ok=True)
    if kept is None:
        folder.rmdir()
    else:
        warn(f"{folder} holds {kept!r}, which no run wrote: it was left there; take it out")


def _strangers(folder: Path) -> Iterator[str]:
    """What a run does not write, in the order of the names; `folder` itself where it is no folder."""
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        yield ""
    elif folder.exists():
        yield from sorted(entry.name for entry in folder.iterdir() if not _is_ours(folder.name, entry.name))


def _is_ours(folder: str, name: str) -> bool:
    return _INSIDE[folder].fullmatch(name) is not None
