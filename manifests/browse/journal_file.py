"""The file of a journal of reviews: of this machine, or an object in a store."""

from __future__ import annotations

import fcntl
import os
from abc import ABC, abstractmethod
from pathlib import Path

from uhr.base.errors import UserError, one_line
from uhr.base.files import saving, sync
from uhr.base.paths import in_store
from uhr.base.store import file_in_store

FIX = "name another file with --reviews"


class JournalFile(ABC):
    """Whole lines that are appended, by one process at a time. `text` is its path or address.

    `lines` are the lines that were there when it was opened. Raises UserError if they cannot be read.
    """

    text: str
    lines: bytes

    @property
    @abstractmethod
    def is_empty(self) -> bool:
        """Whether nothing is in it yet; it exists from the first `append` on."""

    @abstractmethod
    def append(self, data: bytes) -> None:
        """Append lines, which are stored when this returns, all or none.

        Raises UserError if they cannot be stored, or if another process has changed the file.
        """

    def close(self) -> None:
        """Let another process write."""
        return


def journal_file(place: Path | str) -> JournalFile:
    """Open the file at a path or an address. It need not exist."""
    return _Object(place) if in_store(place) else _File(Path(place))


def _changed(text: str) -> UserError:
    return UserError(f"{text} has changed since it was read", "start the browser again")


class _File(JournalFile):
    """A file that is locked from the first `append` on. A line that was cut by a crash is replaced."""

    def __init__(self, file: Path) -> None:
        self._file, self.text = file, str(file.resolve())
        try:
            data = file.read_bytes()
        except FileNotFoundError:
            data = b""
        except OSError as error:
            raise UserError(f"--reviews {file} cannot be read ({one_line(error)})", FIX) from None
        self._size, self._end = len(data), data.rfind(b"\n") + 1
        self.lines = data[: self._end]
        self._handle: int | None = None

    @property
    def is_empty(self) -> bool:
        return self._end == 0

    def append(self, data: bytes) -> None:
        with saving(self._file, f"free space there, or {FIX}"):
            handle = self._opened()
            try:
                os.ftruncate(handle, self._end)
                written = 0
                while written < len(data):
                    written += os.pwrite(handle, data[written:], self._end + written)
                os.fsync(handle)
            except OSError:
                os.ftruncate(handle, self._end)
                raise
            self._end += len(data)

    def _opened(self) -> int:
        if self._handle is None:
            handle = os.open(self._file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                self._lock(handle)
            except BaseException:
                os.close(handle)
                raise
            self._handle = handle
            sync(self._file.parent)
        return self._handle

    def _lock(self, handle: int) -> None:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another browser is writing reviews to {self._file}", "close it") from None
        except OSError as error:
            raise UserError(f"{self._file} cannot be locked ({one_line(error)})", FIX) from None
        if os.fstat(handle).st_size != self._size:
            raise _changed(self.text)

    def close(self) -> None:
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


class _Object(JournalFile):
    """An object that is written as a whole, on the condition that nobody else has written it since: of two
    browsers the second has to start again.
    """

    def __init__(self, address: str) -> None:
        self._store, self._name = file_in_store(address, "reviews.jsonl", "--reviews")
        self.text = address
        try:
            # the version first: what is written after it makes `replace` fail
            self._version: str | None = self._store.version(self._name)
            self.lines = self._store.read(self._name) or b""
        except FileNotFoundError:
            self._version, self.lines = None, b""
        self._data = self.lines

    @property
    def is_empty(self) -> bool:
        return not self._data

    def append(self, data: bytes) -> None:
        new = self._data + data
        if self._version is None:
            version = self._store.create(self._name, new)
        else:
            version = self._store.replace(self._name, new, self._version)
        if version is None:
            # the answer to an earlier attempt may have been lost
            version = self._version_of(new)
        if version is None:
            raise _changed(self.text)
        self._data, self._version = new, version

    def _version_of(self, data: bytes) -> str | None:
        """Return the version of the object if it is `data`."""
        try:
            version = self._store.version(self._name)
        except FileNotFoundError:
            return None
        return version if self._store.read(self._name) == data else None
