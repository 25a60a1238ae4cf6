"""The folder that a command writes to: new, empty, or left by its own kind; never a stranger's."""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Generator, Iterable
from pathlib import Path

from uhr.base.errors import UserError


def claim(out: Path, ours: Iterable[str], marks: Iterable[str], what: str) -> None:
    """Make the folder `out` ready to be written to.

    `ours` are the names that this kind of command writes there; one of `marks` among them shows that such a
    command has been there. A UserError where `out` is a file, cannot be made or written to, or holds anything
    else: nothing in a folder of the user's is ever mixed with, overwritten or cleared. `what` says in the
    error what goes there ("a curated set").
    """
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file", f"name a folder for {what}")
    refuse_strangers(str(out), names_in(out), ours, marks)
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / ".uhr-writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"--out {out} cannot be written to ({error.strerror})", "name another folder"
        ) from None


def refuse_strangers(out: str, names: set[str], ours: Iterable[str], marks: Iterable[str]) -> None:
    """A UserError if any of the names that stand in `out` is not ours, or none of our marks is there."""
    strangers = sorted(names - set(ours)) or ([] if names & set(marks) else sorted(names))
    if strangers:
        raise UserError(f"--out {out} holds something else already ({strangers[0]})", "name a new folder")


@contextlib.contextmanager
def all_or_nothing(folder: Path) -> Generator[None]:
    """A block that writes into `folder`; if it does not come to its end (an error, Ctrl-C), the names that it
    added there are removed, and so are the folders that it had to make.
    """
    before = set(folder.iterdir()) if folder.is_dir() else set()
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        yield
    except BaseException:
        for path in set(folder.iterdir()) - before if folder.is_dir() else ():
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        for path in missing:
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()
        raise


OWN_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{32}\.tmp|\.uhr-writable")
"""What `files.atomic` (and the probe above) leave behind when they are killed."""


def names_in(out: Path) -> set[str]:
    """What stands in `out`, but for what a killed write of ours left there."""
    if not out.is_dir():
        return set()
    return {entry.name for entry in out.iterdir() if not OWN_TEMPORARY.fullmatch(entry.name)}
