"""Output folders of commands: ownership, locking and safe removal.

Every command declares as a `FolderLayout` what it writes into its folder. Other files there are never
overwritten or removed.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import tempfile
from collections.abc import Callable, Collection, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from uhr.base.config import versioned_tree
from uhr.base.console import warn
from uhr.base.errors import UserError
from uhr.base.files import TEMPORARY, write_json
from uhr.base.locks import run_lock


@dataclass(frozen=True)
class FolderLayout:
    """What one kind of command writes into its folder.

    Args:
        what: the name of the result in an error ("the manifest").
        names: every name that the command writes at the top of the folder.
        marks: the names that show that such a command wrote the folder. A folder that is not empty and has
            none of them is foreign.
        inside: by subfolder (`units`, `units/texts`), a pattern of the names of the files that the command
            writes in there; subfolders of subfolders have entries of their own. A subfolder without an entry
            is not looked into, and removed as a whole.
        allow_others: whether a folder with a mark may also contain other names.
        option: how a command line names the folder, in front of its path in an error.
    """

    what: str
    names: tuple[str, ...]
    marks: tuple[str, ...]
    inside: Mapping[str, re.Pattern[str]] = field(default_factory=dict)
    allow_others: bool = False
    option: str = "--out "

    def check_names(self, out: object, found: Collection[str]) -> None:
        """Raise UserError if `found`, the names at the top of `out`, are not those of such a folder."""
        if foreign := self.foreign_names(found):
            raise self.not_ours(out, foreign[0])

    def foreign_names(self, found: Collection[str]) -> list[str]:
        """The names at the top of a folder that no such command wrote, sorted."""
        marked = not set(found).isdisjoint(self.marks)
        if not marked:
            return sorted(set(found) - set(self.names)) or sorted(found)
        return [] if self.allow_others else sorted(set(found) - set(self.names))

    def not_ours(self, out: object, foreign: str) -> UserError:
        return UserError(
            f"{self.option}{out} already contains something else ({foreign})", "name a new folder"
        )


class RunFolder:
    """The output folder of one run, with the layout of its command."""

    def __init__(self, path: Path, layout: FolderLayout) -> None:
        self.path = Path(path)
        self.layout = layout
        self._is_new = not self.path.exists()

    def check(self) -> None:
        """Raise UserError if the folder is a file, or contains anything that no such command wrote. Changes
        nothing.
        """
        if self.path.exists() and not self.path.is_dir():
            what = f"{self.layout.option}{self.path} is a file"
            raise UserError(what, f"name a folder for {self.layout.what}")
        found = [entry.name for entry in self.path.iterdir()] if self.path.exists() else []
        self.layout.check_names(self.path, [name for name in found if not TEMPORARY.fullmatch(name)])
        for folder in self.layout.inside:
            for foreign in self._foreign_files(folder):
                raise self.layout.not_ours(self.path, foreign)

    def claim(self) -> None:
        """Create the folder if it is missing. Raises UserError as `check` does, and if it cannot be created
        or written to.
        """
        self.check()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path):
                pass
        except OSError as error:
            what = f"{self.layout.option}{self.path} cannot be written to ({error.strerror})"
            raise UserError(what, "name another folder") from None

    def keep_request(self, name: str, request: Mapping[str, Any], version: int, what: str) -> None:
        """Write what decides the result as the JSON file `name`, or compare it with what is there.

        Args:
            request: without its `schema_version`, which is `version`.
            what: the result, in the error: "evaluation".

        Raises UserError with the keys that differ, other than `uhr`, which is the version of the software; or
        if the file is damaged or of a newer version.
        """
        file = self.path / name
        if not file.exists():
            write_json(file, {"schema_version": version, **request})
            return
        before = versioned_tree(file.read_bytes(), str(file), version, "name a new folder")
        differs = [key for key in request if key != "uhr" and before.get(key) != request[key]]
        if differs:
            found = f"{self.layout.option}{self.path} contains another {what}"
            raise UserError(f"{found}: other {', '.join(differs)}", "name a new folder")

    @contextlib.contextmanager
    def lock(self, name: str = ".", where: object = None) -> Generator[None]:
        """Lock the folder while the block runs; the lock is in its subfolder `name`. Raises UserError if
        another process has it; `where` names the folder in the error.

        Temporary files of killed writes are removed first. At the end the lock is removed, and with it the
        subfolder if it is empty, and the folder if it is empty and did not exist before.
        """
        folder = self.path / name
        with run_lock.only_run(folder, self.path if where is None else where):
            try:
                self._remove_half_written()
                yield
            finally:
                (folder / run_lock.NAME).unlink(missing_ok=True)
                # not empty where files are left, or where the next run has its lock already
                with contextlib.suppress(OSError):
                    folder.rmdir()
                    if self._is_new:
                        self.path.rmdir()

    def clear(self, *names: str) -> None:
        """Remove these names from the folder, except for the lock of an active run. What no such command
        wrote is kept, with a warning.
        """
        for name in names:
            path = self.path / name
            if name not in self.layout.inside:
                _remove(path)
                continue
            self._empty(name)
            if (foreign := next(self._foreign_files(name), None)) is not None:
                left = Path(foreign).relative_to(name)
                warn(f"{path} contains '{left}', which no run wrote: it was kept; move it elsewhere")

    def _empty(self, folder: str) -> None:
        """Remove what the command wrote into a subfolder, and the subfolder if it is then empty."""
        path = self.path / folder
        if path.is_symlink() or not path.is_dir():
            return
        for entry in sorted(path.iterdir()):
            inner = f"{folder}/{entry.name}"
            if inner in self.layout.inside:
                self._empty(inner)
            elif entry.name != run_lock.NAME and self._is_ours(folder, entry):
                entry.unlink()
        if not any(path.iterdir()):
            path.rmdir()

    def _foreign_files(self, folder: str) -> Iterator[str]:
        """Paths in a subfolder that no such command wrote, relative to the folder and sorted."""
        path = self.path / folder
        if path.is_symlink() or (path.exists() and not path.is_dir()):
            yield folder
            return
        for entry in sorted(path.iterdir()) if path.exists() else ():
            inner = f"{folder}/{entry.name}"
            if inner in self.layout.inside:
                yield from self._foreign_files(inner)
            elif not self._is_ours(folder, entry):
                yield inner

    def _is_ours(self, folder: str, entry: Path) -> bool:
        is_file = entry.is_symlink() or not entry.is_dir()
        return is_file and self.layout.inside[folder].fullmatch(entry.name) is not None

    def _remove_half_written(self) -> None:
        """Remove the temporary files of `files.atomic` for names at the top."""
        for entry in self.path.iterdir():
            if TEMPORARY.fullmatch(entry.name) and entry.name[1:].rsplit(".", 2)[0] in self.layout.names:
                entry.unlink()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def free_name(taken: str, is_taken: Callable[[str], bool]) -> str:
    """Return the first of `taken`-2, `taken`-3, ... (a folder, or a prefix in a store) that is not taken."""
    number = 2
    while is_taken(free := f"{taken.rstrip('/')}-{number}"):
        number += 1
    return free


@contextlib.contextmanager
def all_or_nothing(folder: Path) -> Generator[None]:
    """Remove what the block added to `folder` if it fails (an error, Ctrl-C): new names there, and the
    folders that it had to create.
    """
    before = set(folder.iterdir()) if folder.is_dir() else set()
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        yield
    except BaseException:
        for path in set(folder.iterdir()) - before if folder.is_dir() else ():
            _remove(path)
        for path in missing:
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()
        raise
