"""The folder that a command writes to: whose it is, which process works in it, and what may be removed there.

Every command declares as a `Layout` what it writes into its folder. Nothing else in a folder is ever mixed
with, overwritten or removed.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import tempfile
from collections.abc import Collection, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from uhr.base import lock
from uhr.base.console import warn
from uhr.base.errors import UserError
from uhr.base.files import TEMPORARY


@dataclass(frozen=True)
class Layout:
    """What one kind of command writes into its folder.

    Args:
        what: what the folder is for, in an error ("the manifest").
        names: every name that the command writes at the top of the folder.
        marks: the names that show that such a command has been there. A folder that holds anything and none
            of them belongs to somebody else.
        inside: by subfolder (`units`, `units/texts`), a pattern of the names of the files that the command
            writes in there; subfolders of subfolders have entries of their own. A subfolder without an entry
            is not looked into, and removed as a whole.
        beside: whether other names may be there too, where a mark is.
        option: how a command line names the folder, in front of its path in an error.
    """

    what: str
    names: tuple[str, ...]
    marks: tuple[str, ...]
    inside: Mapping[str, re.Pattern[str]] = field(default_factory=dict)
    beside: bool = False
    option: str = "--out "

    def refuse_strangers(self, out: object, found: Collection[str]) -> None:
        """Raises UserError if `found`, the names at the top of `out`, are not those of such a folder."""
        if strangers := self.strangers(found):
            raise self.refusal(out, strangers[0])

    def strangers(self, found: Collection[str]) -> list[str]:
        """Those of the names at the top of a folder that belong to somebody else, sorted."""
        marked = not set(found).isdisjoint(self.marks)
        if not marked:
            return sorted(set(found) - set(self.names)) or sorted(found)
        return [] if self.beside else sorted(set(found) - set(self.names))

    def refusal(self, out: object, stranger: str) -> UserError:
        return UserError(f"{self.option}{out} holds something else already ({stranger})", "name a new folder")


class RunFolder:
    """A folder with the layout of one kind of command."""

    def __init__(self, path: Path, layout: Layout) -> None:
        self.path = Path(path)
        self.layout = layout
        self._is_new = not self.path.exists()

    def check(self) -> None:
        """Raises UserError if the folder is a file, or holds anything that no such command wrote. Changes
        nothing.
        """
        if self.path.exists() and not self.path.is_dir():
            what = f"{self.layout.option}{self.path} is a file"
            raise UserError(what, f"name a folder for {self.layout.what}")
        found = [entry.name for entry in self.path.iterdir()] if self.path.exists() else []
        self.layout.refuse_strangers(self.path, [name for name in found if not TEMPORARY.fullmatch(name)])
        for folder in self.layout.inside:
            for stranger in self._strangers_in(folder):
                raise self.layout.refusal(self.path, stranger)

    def claim(self) -> None:
        """Make the folder ready to be written to. Raises UserError as `check` does, and if it cannot be made
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

    @contextlib.contextmanager
    def lock(self, name: str = ".", where: object = None) -> Generator[None]:
        """Be the only process that works in the folder while the block runs; the lock is in its subfolder
        `name`. Raises UserError if another process has it; `where` is how the error calls the folder.

        What a killed write of the layout's files left is removed. At the end the lock is removed, and with it
        the subfolder if it is empty, and the folder if it is empty and was not there before.
        """
        folder = self.path / name
        with lock.only_run(folder, self.path if where is None else where):
            try:
                self._remove_half_written()
                yield
            finally:
                (folder / lock.NAME).unlink(missing_ok=True)
                # not empty where files are left, or where the next run has its lock already
                with contextlib.suppress(OSError):
                    folder.rmdir()
                    if self._is_new:
                        self.path.rmdir()

    def clear(self, *names: str) -> None:
        """Remove these names of the folder, but for the lock of a run at work and for whatever no such
        command wrote, of which a warning tells.
        """
        for name in names:
            path = self.path / name
            if name not in self.layout.inside:
                _remove(path)
                continue
            self._empty(name)
            if (stranger := next(self._strangers_in(name), None)) is not None:
                left = Path(stranger).relative_to(name)
                warn(f"{path} holds '{left}', which no run wrote: it was left there; take it out")

    def _empty(self, folder: str) -> None:
        """Remove what the command wrote into a subfolder, and the subfolder if nothing is left in it."""
        path = self.path / folder
        if path.is_symlink() or not path.is_dir():
            return
        for entry in sorted(path.iterdir()):
            inner = f"{folder}/{entry.name}"
            if inner in self.layout.inside:
                self._empty(inner)
            elif entry.name != lock.NAME and self._is_ours(folder, entry):
                entry.unlink()
        if not any(path.iterdir()):
            path.rmdir()

    def _strangers_in(self, folder: str) -> Iterator[str]:
        """What no such command wrote into a subfolder, relative to the folder and sorted."""
        path = self.path / folder
        if path.is_symlink() or (path.exists() and not path.is_dir()):
            yield folder
            return
        for entry in sorted(path.iterdir()) if path.exists() else ():
            inner = f"{folder}/{entry.name}"
            if inner in self.layout.inside:
                yield from self._strangers_in(inner)
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


@contextlib.contextmanager
def all_or_nothing(folder: Path) -> Generator[None]:
    """A block that writes into `folder`; if it fails (an error, Ctrl-C), the names that it added there are
    removed, and so are the folders that it had to make.
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
