"""A place for finished files: a folder, or a prefix of an object store, behind the same five verbs.

Names are relative, with `/` between their parts. A name is whole or absent, whoever dies while it is written:
a folder gets a file that is renamed, and a PUT to an object store shows nothing until all bytes are there.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import uuid
from abc import ABC, abstractmethod
from collections.abc import Generator
from pathlib import Path
from typing import Any

from uhr.base.errors import UserError, install, one_line
from uhr.base.files import TEMPORARY, atomic, disk_fault, user_cache, user_path
from uhr.base.paths import is_url

ATTEMPTS = 6
"""Of a request to an object store before it counts as failed: about 15 s of waiting in between."""


class StoreError(UserError):
    """The place itself cannot be read or written: no item's fault, so it ends a run."""


class Store(ABC):
    """Where files go. `text` is how the user named it."""

    def __init__(self, text: str) -> None:
        self.text = text

    @abstractmethod
    def names(self) -> set[str]:
        """Every name that stands here, at any depth."""

    @abstractmethod
    def read(self, name: str) -> bytes | None:
        """The bytes of a name; None where it is absent."""

    @abstractmethod
    def write(self, name: str, data: bytes) -> None:
        """Bytes under a name, atomically; what stood there is replaced."""

    @abstractmethod
    def exists(self, name: str) -> bool:
        """Whether a name stands here now."""

    @abstractmethod
    def delete(self, name: str) -> None:
        """Remove a name; nothing happens where it is absent."""

    @abstractmethod
    def probe(self) -> None:
        """UserError unless files can be written here; nothing of the attempt stays."""

    @abstractmethod
    def work_folder(self) -> Path:
        """A folder on this machine for what a run notes down while it works here."""

    def place(self, name: str) -> str:
        """How people call the file of that name."""
        return f"{self.text.rstrip('/')}/{name}"


def open_store(text: str) -> Store:
    """The store that `text` names. Touches nothing; UserError where no package speaks that protocol."""
    return ObjectStore(text) if is_url(text) else FolderStore(text)


class FolderStore(Store):
    """A folder; made when the first file is written."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.folder = user_path(text)

    def names(self) -> set[str]:
        found = set()
        for folder, _, files in os.walk(self.folder):
            below = Path(folder).relative_to(self.folder)
            found |= {(below / file).as_posix() for file in files if not TEMPORARY.fullmatch(file)}
        return found

    def read(self, name: str) -> bytes | None:
        with self._told(name):
            try:
                return (self.folder / name).read_bytes()
            except FileNotFoundError:
                return None

    def write(self, name: str, data: bytes) -> None:
        with self._told(name), atomic(self.folder / name) as temporary:
            temporary.write_bytes(data)

    def exists(self, name: str) -> bool:
        return (self.folder / name).is_file()

    def delete(self, name: str) -> None:
        with self._told(name):
            (self.folder / name).unlink(missing_ok=True)

    def probe(self) -> None:
        place = self.folder
        try:
            # the folder itself may be made when it is wanted
            while not place.exists() and place != place.parent:
                place = place.parent
            with tempfile.TemporaryFile(dir=place):
                pass
        except OSError as error:
            what = f"nothing can be written to {self.text} ({place}: {error.strerror or error})"
            raise UserError(what, "name a folder that is yours to write to") from error

    def work_folder(self) -> Path:
        return self.folder / "work"

    @contextlib.contextmanager
    def _told(self, name: str) -> Generator[None]:
        try:
            yield
        except OSError as error:
            fix = _GO_ON if disk_fault(error) is None else _MAKE_ROOM
            raise StoreError(f"{self.place(name)}: {error.strerror or error}", fix) from error


class ObjectStore(Store):
    """A prefix of a bucket, through fsspec; S3's credentials and endpoint are where its tools look for them
    (`AWS_ACCESS_KEY_ID`, `AWS_PROFILE`, `AWS_ENDPOINT_URL`, ...).
    """

    def __init__(self, text: str) -> None:
        super().__init__(text.rstrip("/"))
        protocol, _, path = self.text.partition("://")
        if not path.strip("/"):
            raise UserError(f"{text} names no bucket", f"write it as {protocol}://bucket/prefix")
        self._files = _file_system(protocol, text)
        self._root = self._files._strip_protocol(self.text).rstrip("/")

    def names(self) -> set[str]:
        with self._told(""):
            try:
                found = self._files.find(self._root)
            except FileNotFoundError:
                return set()
        return {path[len(self._root) + 1 :] for path in found}

    def read(self, name: str) -> bytes | None:
        with self._told(name):
            try:
                return self._files.cat_file(f"{self._root}/{name}")
            except FileNotFoundError:
                return None

    def write(self, name: str, data: bytes) -> None:
        with self._told(name):
            self._files.pipe_file(f"{self._root}/{name}", data)

    def exists(self, name: str) -> bool:
        with self._told(name):
            return bool(self._files.exists(f"{self._root}/{name}"))

    def delete(self, name: str) -> None:
        with self._told(name), contextlib.suppress(FileNotFoundError):
            self._files.rm_file(f"{self._root}/{name}")

    def probe(self) -> None:
        name = f".probe-{uuid.uuid4().hex}"
        self.write(name, b"")
        self.delete(name)

    def work_folder(self) -> Path:
        return user_cache("stores") / hashlib.sha256(self.text.encode()).hexdigest()[:16]

    @contextlib.contextmanager
    def _told(self, name: str) -> Generator[None]:
        try:
            yield
        except Exception as error:
            words = _fault(error, self.text)
            if words is None:
                raise
            raise StoreError(f"{self.place(name) if name else self.text}: {words[0]}", words[1]) from error


_MAKE_ROOM = "make room there; the same command goes on where it stopped"
_GO_ON = "mend that; the same command goes on where it stopped"


def _file_system(protocol: str, text: str) -> Any:
    """fsspec's file system, which asks the store and not its own memory what stands there."""
    if protocol != "s3":
        # fsspec knows many more, and of most of them a reader would see halves of files
        raise UserError(f"{text} is in no store that is known here", "name a folder, or s3://bucket/prefix")
    try:
        import fsspec

        retries = {"mode": "standard", "total_max_attempts": ATTEMPTS}
        found = fsspec.filesystem(
            "s3", use_listings_cache=False, config_kwargs={"retries": retries, "read_timeout": 30}
        )
    except ImportError as error:
        raise UserError(f"{text} needs a package that is not installed", install("s3")) from error
    found.retries = 1  # botocore's own are enough: s3fs would do all of them five times
    return found


_KINDS = {
    "NoCredentialsError": ("there are no credentials", "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
    "PartialCredentialsError": (
        "half of the credentials is missing",
        "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    ),
    "ProfileNotFound": ("there is no such AWS profile", "check AWS_PROFILE"),
    "EndpointConnectionError": (
        "the store does not answer",
        "check AWS_ENDPOINT_URL and the network; the same command goes on where it stopped",
    ),
    "PermissionError": ("access is denied", "check the credentials, and what they may do with the bucket"),
    "FileNotFoundError": ("there is no such bucket", "make the bucket, or name another"),
}
"""By the name of the exception's class, in the client library's words or Python's."""


def _fault(error: Exception, text: str) -> tuple[str, str] | None:
    """What went wrong, and the fix; None for a mistake of ours, which is no fault of the store."""
    kinds = [cls.__name__ for cls in type(error).__mro__]
    library = type(error).__module__.partition(".")[0]
    if "OSError" not in kinds and library not in ("botocore", "aiobotocore", "aiohttp"):
        return None
    said = one_line(error)
    for kind in kinds:
        if kind in _KINDS:
            what, fix = _KINDS[kind]
            return f"{what} ({said})", fix
    return f"the store failed ({said or kinds[0]})", _GO_ON
