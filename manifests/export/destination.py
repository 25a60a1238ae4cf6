"""Where an export is written: a folder, or a prefix of an object store.

A prefix gets each shard when it is whole on this machine, and its record after it: what is listed as finished
is there. Readers see the export as finished when its `export.json` exists.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from uhr.base.files import TEMPORARY, atomic, saving
from uhr.base.locks import lease
from uhr.base.paths import check_utf8, in_store
from uhr.base.run_folder import FolderLayout, RunFolder
from uhr.base.store import ObjectStore
from uhr.manifests.places import check_outside
from uhr.manifests.sources.base import Source, check_no_overlap

RECORD, WORK = "export.json", ".export"
LAYOUT = FolderLayout("an export", (RECORD, WORK), (RECORD, WORK), allow_others=True)
FIX = "free space there; the same command resumes the export"

_LEASE = f"{WORK}/{lease.NAME}"

_UPLOADS = 8
"""Files that are put into a store at a time."""


class Destination(ABC):
    """The place `text` of an export, as the user wrote it. Names are relative to it, with `/` in between.

    home: how the files of the export name its folder: an absolute path, or `Path()` in a store, from which
    the files are copied before other programs read them.
    """

    def __init__(self, text: str, home: Path) -> None:
        self.text, self.home = text, home

    def check(self, source: Source, *, absolute: bool) -> None:
        """Raise UserError if the place is inside a manifest or overlaps with the source. `absolute`: whether
        the export's files name each other by absolute paths.
        """
        check_outside(self._place)
        self._check_source(source, absolute)

    @property
    @abstractmethod
    def _place(self) -> Path | str: ...

    @abstractmethod
    def _check_source(self, source: Source, absolute: bool) -> None: ...

    @abstractmethod
    def locked(self) -> contextlib.AbstractContextManager[None]:
        """Be the only process that writes the export, while the block runs; into a store, also of other
        machines. Raises UserError if another one is, or if nothing can be written.
        """

    @abstractmethod
    def others(self) -> list[str]:
        """The names at the top that are not those of an unfinished export, sorted."""

    @abstractmethod
    def read(self, name: str) -> bytes | None:
        """The bytes of a file; None if there is none."""

    @abstractmethod
    def write(self, name: str, data: bytes) -> None:
        """Write a file, atomically."""

    @abstractmethod
    def create(self, name: str, data: bytes) -> bool:
        """Write a file unless there is one by now; whether it was written."""

    @abstractmethod
    def has(self, name: str) -> bool:
        """Whether there is a file or a folder of this name."""

    @abstractmethod
    def writing(self, shard: str | None) -> contextlib.AbstractContextManager[Path]:
        """Yield the folder below which the block writes the file or folder `shard`, or indices if it is None.
        What an earlier process wrote of the shard is replaced.
        """

    @abstractmethod
    def remove_half_written(self, shards: Iterable[str]) -> None:
        """Remove the temporary files of shards that a killed process left."""

    @abstractmethod
    def finish(self) -> None:
        """Remove the records of shards: the export is finished."""


def destination_at(out: Path | str) -> Destination:
    """Return the destination at a path or an address. Touches nothing yet."""
    return _Prefix(out) if in_store(out) else _Folder(Path(out))


class _Folder(Destination):
    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder), folder.resolve())
        self._folder = folder

    @property
    def _place(self) -> Path:
        return self._folder

    def _check_source(self, source: Source, absolute: bool) -> None:
        check_no_overlap(source, self._folder)
        if absolute:
            check_utf8("--out", self.home)

    @contextlib.contextmanager
    def locked(self) -> Generator[None]:
        with saving(self._folder, FIX):
            folder = RunFolder(self._folder, LAYOUT)
            folder.claim()
            with folder.lock(WORK):
                yield

    def others(self) -> list[str]:
        return sorted(path.name for path in self._folder.iterdir() if path.name != WORK)

    def read(self, name: str) -> bytes | None:
        try:
            return (self._folder / name).read_bytes()
        except FileNotFoundError:
            return None

    def write(self, name: str, data: bytes) -> None:
        with atomic(self._folder / name) as temporary:
            temporary.write_bytes(data)

    def create(self, name: str, data: bytes) -> bool:
        self.write(name, data)  # the lock keeps others away
        return True

    def has(self, name: str) -> bool:
        return (self._folder / name).exists()

    @contextlib.contextmanager
    def writing(self, shard: str | None) -> Generator[Path]:
        if shard is not None and (self._folder / shard).is_dir():
            shutil.rmtree(self._folder / shard)
        yield self._folder

    def remove_half_written(self, shards: Iterable[str]) -> None:
        paths = {self._folder / shard for shard in shards}
        for folder in {path.parent for path in paths if path.parent.is_dir()}:
            for entry in folder.iterdir():
                name = entry.name[1:].rsplit(".", 2)[0]
                if TEMPORARY.fullmatch(entry.name) and folder / name in paths:
                    shutil.rmtree(entry) if entry.is_dir() else entry.unlink()

    def finish(self) -> None:
        shutil.rmtree(self._folder / WORK, ignore_errors=True)


class _Prefix(Destination):
    """A lock keeps other processes of this machine away, and a lease in the store those of other machines. A
    machine that died holds the lease until it ends. The shards of two would be equal, and the first
    `export.json` is kept.
    """

    def __init__(self, address: str) -> None:
        super().__init__(address, Path())
        self._store = ObjectStore(address)
        self._work = self._store.work_folder() / "export"

    @property
    def _place(self) -> str:
        return self.text

    def _check_source(self, source: Source, absolute: bool) -> None:
        check_no_overlap(source, self._store.text)

    @contextlib.contextmanager
    def locked(self) -> Generator[None]:
        self._store.probe()
        with (
            saving(self._work, FIX),
            RunFolder(self._work, LAYOUT).lock(where=self.text),
            lease.held(self._store, name=_LEASE, work=self._work),
        ):
            for leftover in self._work.glob("shard-*"):  # of a process that was killed
                shutil.rmtree(leftover)
            yield

    def others(self) -> list[str]:
        return sorted({name.partition("/")[0] for name in self._store.names()} - {WORK})

    def read(self, name: str) -> bytes | None:
        return self._store.read(name)

    def write(self, name: str, data: bytes) -> None:
        self._store.write(name, data)

    def create(self, name: str, data: bytes) -> bool:
        return self._store.create(name, data) is not None

    def has(self, name: str) -> bool:
        return self._store.exists(name)

    @contextlib.contextmanager
    def writing(self, shard: str | None) -> Generator[Path]:
        with tempfile.TemporaryDirectory(dir=self._work, prefix="shard-") as home:
            folder = Path(home) / self._store.text.rpartition("/")[2]
            folder.mkdir()
            yield folder
            names = [file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()]
            with ThreadPoolExecutor(_UPLOADS) as pool:
                list(pool.map(lambda name: self._store.upload(folder / name, name), names))
            if shard is not None and (folder / shard).is_dir():
                # a process that was killed may have read an image that cannot be read any more
                there = {f"{shard}/{name}" for name in ObjectStore(f"{self.text}/{shard}").names()}
                for name in there.difference(names):
                    self._store.delete(name)

    def remove_half_written(self, shards: Iterable[str]) -> None:
        return  # an object is whole

    def finish(self) -> None:
        for name in ObjectStore(f"{self.text}/{WORK}").names():
            if f"{WORK}/{name}" != _LEASE:  # of a process that will see that nothing is left to do
                self._store.delete(f"{WORK}/{name}")
