"""Storage of finished files, with one interface: a folder, or a prefix of an object store.

Names are relative, with `/` between their parts. Writes are atomic, also if the process is killed: in a
folder a temporary file is renamed, and a PUT to an object store shows nothing until all bytes have arrived.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import os
import tempfile
import uuid
from abc import ABC, abstractmethod
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

from uhr.base.errors import UserError, install, one_line
from uhr.base.files import TEMPORARY, atomic, disk_fault, saving, user_cache, user_path
from uhr.base.paths import in_store, is_url

ATTEMPTS = 6
"""Attempts of a request to an object store before it fails, with about 15 s of waiting in between."""


class StoreError(UserError):
    """The storage itself cannot be read or written, so the run ends: it is not one item that failed."""


class NoBucket(StoreError):
    """There is no bucket of that name."""


class ObjectChanged(Exception):
    """An object was replaced since it was listed: it has another version than the requested one."""


class Store(ABC):
    """Storage of files by name. text: the path or URL as the user wrote it.

    `read`, `write` and `delete` raise StoreError if the storage fails.
    """

    def __init__(self, text: str) -> None:
        self.text = text

    @abstractmethod
    def names(self) -> set[str]:
        """All names, at any depth."""

    @abstractmethod
    def read(self, name: str) -> bytes | None:
        """The bytes of a file; None if it does not exist."""

    @abstractmethod
    def write(self, name: str, data: bytes) -> None:
        """Write a file atomically, replacing an earlier one of that name."""

    @abstractmethod
    def exists(self, name: str) -> bool:
        """Whether a file exists now."""

    @abstractmethod
    def delete(self, name: str) -> None:
        """Remove a file if it exists."""

    @abstractmethod
    def probe(self) -> None:
        """Raise UserError unless files can be written; leaves nothing behind."""

    @abstractmethod
    def work_folder(self) -> Path:
        """A folder on this machine for the temporary state of a run."""

    def remove_half_written(self) -> None:
        """Remove what a killed process left of files that it was writing, for the only process that writes.

        An object store has none: it shows whole objects only.
        """
        return

    def place(self, name: str) -> str:
        """The path or URL of a file, for messages."""
        return f"{self.text.rstrip('/')}/{name}"


def open_store(text: str) -> Store:
    """The store at a path or URL; touches nothing yet. Raises UserError if the protocol is unknown."""
    return ObjectStore(text) if is_url(text) else FolderStore(text)


def file_in_store(text: str, example: str, option: str = "--out") -> tuple[ObjectStore, str]:
    """The store and the name of the file at an address. Raises UserError if it names only a bucket (the fix
    names `s3://bucket/EXAMPLE`), or if the protocol is unknown. `option` is how a command line names it.
    """
    prefix, _, name = text.rpartition("/")
    if not is_url(prefix):
        raise UserError(f"{option} {text} names no file in a bucket", f"write it as s3://bucket/{example}")
    return ObjectStore(prefix), name


@contextlib.contextmanager
def output_file(place: Path | str, fix: str, example: str) -> Generator[Path]:
    """Yield a temporary name on this machine. What the block writes there is at `place`, a path or an
    address, when the block has ended without an error, and nothing before.

    Raises UserError if the place cannot be written: for an address before the block begins. `fix` is that of
    a full disk, `example` the name of such a file.
    """
    if not in_store(place):
        with saving(place, fix), atomic(Path(place)) as temporary:
            yield temporary
        return
    store, name = file_in_store(place, example)
    store.probe()
    with tempfile.TemporaryDirectory(prefix="uhr-") as folder, saving(folder, fix):
        file = Path(folder) / name
        yield file
        store.upload(file, name)


class FolderStore(Store):
    """A folder; created when the first file is written."""

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
        with self._store_errors(name):
            try:
                return (self.folder / name).read_bytes()
            except FileNotFoundError:
                return None

    def write(self, name: str, data: bytes) -> None:
        with self._store_errors(name), atomic(self.folder / name) as temporary:
            temporary.write_bytes(data)

    def exists(self, name: str) -> bool:
        return (self.folder / name).is_file()

    def delete(self, name: str) -> None:
        with self._store_errors(name):
            (self.folder / name).unlink(missing_ok=True)

    def remove_half_written(self) -> None:
        for folder, _, files in os.walk(self.folder):
            for file in files:
                if TEMPORARY.fullmatch(file):
                    (Path(folder) / file).unlink(missing_ok=True)

    def probe(self) -> None:
        place = self.folder
        try:
            # the folder itself is created when the first file is written
            while not place.exists() and place != place.parent:
                place = place.parent
            with tempfile.TemporaryFile(dir=place):
                pass
        except OSError as error:
            what = f"nothing can be written to {self.text} ({place}: {error.strerror or error})"
            raise UserError(what, "name a folder in which you may write") from error

    def work_folder(self) -> Path:
        return self.folder / "work"

    @contextlib.contextmanager
    def _store_errors(self, name: str) -> Generator[None]:
        try:
            yield
        except OSError as error:
            fix = _GO_ON if disk_fault(error) is None else _FREE_SPACE
            raise StoreError(f"{self.place(name)}: {error.strerror or error}", fix) from error


class ObjectStore(Store):
    """A prefix of a bucket, through fsspec. Credentials and endpoint are found as Amazon's own tools find
    them (`AWS_ACCESS_KEY_ID`, `AWS_PROFILE`, `AWS_ENDPOINT_URL`, ...).
    """

    def __init__(self, text: str) -> None:
        super().__init__(text.rstrip("/"))
        protocol, _, path = self.text.partition("://")
        if not path.strip("/"):
            raise UserError(f"{text} names no bucket", f"write it as {protocol}://bucket/prefix")
        self._files = _file_system(protocol, text)
        self._root = self._files._strip_protocol(self.text).rstrip("/")

    def names(self) -> set[str]:
        return {path[len(self._root) + 1 :] for path in self._found()}

    def _found(self, start: str = "") -> dict[str, dict[str, Any]]:
        """What is below the prefix and begins with `start`, by its path with the bucket."""
        with self._store_errors(""):
            try:
                return self._files.find(self._root, detail=True, prefix=start)
            except FileNotFoundError as error:
                if _code(error) == _NO_SUCH_BUCKET:
                    raise
                return {}

    def read(self, name: str) -> bytes | None:
        with self._store_errors(name):
            try:
                return self._files.cat_file(f"{self._root}/{name}")
            except FileNotFoundError as error:
                if _code(error) == _NO_SUCH_BUCKET:
                    raise
                return None

    def write(self, name: str, data: bytes) -> None:
        with self._store_errors(name):
            self._files.pipe_file(f"{self._root}/{name}", data)

    def exists(self, name: str) -> bool:
        with self._store_errors(name):
            return bool(self._files.exists(f"{self._root}/{name}"))

    def delete(self, name: str) -> None:
        with self._store_errors(name), contextlib.suppress(FileNotFoundError):
            self._files.rm_file(f"{self._root}/{name}")

    def probe(self) -> None:
        path = f"{self._root}/.probe-{uuid.uuid4().hex}"
        with self._store_errors(""):
            self._files.pipe_file(path, b"")
            self._files.rm_file(path)

    def work_folder(self) -> Path:
        return user_cache("stores") / hashlib.sha256(self.text.encode()).hexdigest()[:16]

    def create(self, name: str, data: bytes) -> str | None:
        """Write an object on the condition that there is none of this name; return its version, as `version`
        does, or None if it was not written.
        """
        return self._put(name, data, IfNoneMatch="*")

    def replace(self, name: str, data: bytes, version: str) -> str | None:
        """Write an object on the condition that it still has this version; return the new one, or None if it
        was not written.
        """
        return self._put(name, data, IfMatch=f'"{version.partition("-")[2]}"')

    def _put(self, name: str, data: bytes, **condition: str) -> str | None:
        from fsspec.asyn import sync

        bucket, _, prefix = self._root.partition("/")
        key = f"{prefix}/{name}" if prefix else name
        with self._store_errors(name):
            try:
                answer = sync(
                    self._files.loop,
                    self._files._call_s3,
                    "put_object",
                    Bucket=bucket,
                    Key=key,
                    Body=data,
                    **condition,
                )
            except Exception as error:
                # 409: another conditional request for the same object is being answered
                if _code(error) in ("PreconditionFailed", "412", "ConditionalRequestConflict", "409"):
                    return None
                raise
        return _version(len(data), answer.get("ETag"))

    def upload(self, file: Path, name: str) -> None:
        """Write a file of this machine as an object, in several requests if it is large."""
        with self._store_errors(name):
            self._files.put_file(str(file), f"{self._root}/{name}")

    def fetch(self, name: str, target: Path) -> None:
        """Copy an object to a file of this machine. Raises FileNotFoundError if there is none."""
        with self._store_errors(name, missing=True):
            self._files.get_file(f"{self._root}/{name}", str(target))

    def fetch_into(self, folder: Path, name: str) -> Path:
        """Copy an object into a folder of this machine, below which it has its name, and return the file.

        Raises StoreError if there is no such object, or if its name leads out of the folder, as that of an
        object which others have written may do.
        """
        target = Path(os.path.normpath(folder / name))
        if not target.is_relative_to(os.path.normpath(folder)):
            what = f"{self.place(name)} has a name that leads out of the folder of its copy"
            raise StoreError(what, "rename or delete the object")
        target.parent.mkdir(parents=True, exist_ok=True)
        with self._store_errors(name):
            self._files.get_file(f"{self._root}/{name}", str(target))
        return target

    def version(self, name: str) -> str:
        """`SIZE-ETAG` of an object. Raises FileNotFoundError if there is none."""
        with self._store_errors(name, missing=True):
            info = self._files.info(f"{self._root}/{name}")
            if info["type"] == "directory":
                raise FileNotFoundError(f"{self.place(name)} is a prefix")
        return _version(info["size"], info.get("ETag"))

    def download(self, cache: str) -> Path:
        """Copy all objects below the prefix into a folder of the user's cache `cache`, or the one object that
        has exactly this name, and return that folder or file.

        Objects with the same names, ETags and sizes are copied once, also if several processes ask at the
        same time. Raises StoreError if there is none.
        """
        found = self._found()
        if not found:
            raise StoreError(f"{self.text} contains nothing", "check the address")
        facts = sorted((path, str(info.get("ETag")), info["size"]) for path, info in found.items())
        folder = user_cache(cache) / hashlib.sha256(repr(facts).encode()).hexdigest()[:32]
        single = self._root in found
        with _one_at_a_time(folder):
            if not folder.is_dir():
                self._copy(list(found), folder, single)
        return folder / Path(self._root).name if single else folder

    def _copy(self, objects: Sequence[str], folder: Path, single: bool) -> None:
        """Copy objects into a folder that shows all of them or does not exist."""
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".part-") as part:
            files = Path(part) / "files"
            files.mkdir()
            for path in objects:
                if single:
                    with self._store_errors(""):
                        self._files.get_file(path, str(files / Path(path).name))
                else:
                    self.fetch_into(files, path[len(self._root) + 1 :])
            (Path(part) / "files").rename(folder)

    def versions(self, start: str = "") -> dict[str, str]:
        """Return `SIZE-ETAG` of every object below the prefix whose name begins with `start`, by name. The
        empty objects that some tools create as folders are left out."""
        names = {path[len(self._root) + 1 :]: info for path, info in self._found(start).items()}
        return {
            name: _version(info["size"], info.get("ETag"))
            for name, info in names.items()
            if name and not name.endswith("/") and info.get("type") != "directory"
        }

    def states(self) -> dict[str, tuple[int, float]]:
        """Return the size of each object below the prefix, and when it was written in whole seconds since
        1970, by name.
        """
        found = self._found()
        return {
            path[len(self._root) + 1 :]: (int(info["size"]), float(int(info["LastModified"].timestamp())))
            for path, info in found.items()
            if path != self._root and info.get("type") != "directory"
        }

    def size(self, name: str) -> int:
        """The size of an object now. Raises FileNotFoundError if there is none."""
        with self._store_errors(name, missing=True):
            return int(self._files.info(f"{self._root}/{name}")["size"])

    def read_range(self, name: str, etag: str | None, offset: int, count: int | None) -> bytes:
        """Read `count` bytes of an object from `offset`, or all of it, in one request.

        Raises FileNotFoundError if there is no such object, and ObjectChanged if it has another ETag than
        `etag`.
        """
        from fsspec.asyn import sync

        bucket, _, prefix = self._root.partition("/")
        options = {"Bucket": bucket, "Key": f"{prefix}/{name}" if prefix else name}
        if count is not None:
            options["Range"] = f"bytes={offset}-{offset + count - 1}"
        if etag:
            options["IfMatch"] = f'"{etag}"'

        async def body() -> bytes:
            # botocore repeats requests, but not one whose answer breaks off
            for attempt in range(1, ATTEMPTS + 1):
                answer = await self._files._call_s3("get_object", **options)
                try:
                    async with answer["Body"] as stream:
                        return await stream.read()
                except Exception as error:
                    if attempt == ATTEMPTS or _described(error) is None:
                        raise
                    await asyncio.sleep(0.1 * 2**attempt)
            raise AssertionError("the last attempt raises")

        with self._store_errors(name, missing=True):
            try:
                return sync(self._files.loop, body)
            except Exception as error:
                if _code(error) in ("PreconditionFailed", "412"):
                    raise ObjectChanged(name) from None
                raise

    @contextlib.contextmanager
    def _store_errors(self, name: str, missing: bool = False) -> Generator[None]:
        try:
            yield
        except Exception as error:
            if isinstance(error, FileNotFoundError) and missing and _code(error) != _NO_SUCH_BUCKET:
                raise
            description = _described(error)
            if description is None:
                raise
            what, fix = description
            place = self.place(name) if name else self.text
            if description is _NO_BUCKET:
                place = f"s3://{self._root.partition('/')[0]}"
                raise NoBucket(f"{place}: {what}", fix) from error
            raise StoreError(f"{place}: {what}", fix) from error


def _version(size: int, etag: str | None) -> str:
    return f"{size}-{(etag or '').strip(chr(34))}"


@contextlib.contextmanager
def _one_at_a_time(folder: Path) -> Generator[None]:
    """Let one process of this machine at a time make `folder`: the others wait, and find it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.with_name(f".{folder.name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


_FREE_SPACE = "free space there; the same command resumes where it stopped"
_GO_ON = "fix the cause; the same command resumes the run"


def _file_system(protocol: str, text: str) -> Any:
    """fsspec's file system, without its cache of listings."""
    if protocol != "s3":
        # fsspec knows many more; in most of them a reader would see half-written files
        raise UserError(f"{text} has an unknown protocol", "name a folder, or s3://bucket/prefix")
    try:
        import fsspec

        retries = {"mode": "standard", "total_max_attempts": ATTEMPTS}
        found = fsspec.filesystem(
            "s3", use_listings_cache=False, config_kwargs={"retries": retries, "read_timeout": 30}
        )
    except ImportError as error:
        raise UserError(f"{text} needs a package that is not installed", install("s3")) from error
    found.retries = 1  # botocore retries already: s3fs would repeat all of its attempts five times
    return found


_NO_SUCH_BUCKET = "NoSuchBucket"
"""The code of the answer where there is no bucket of that name."""

_NO_BUCKET = "there is no such bucket", "make the bucket, or name another"

_KINDS = {
    "NoCredentialsError": ("there are no credentials", "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
    "PartialCredentialsError": (
        "half of the credentials is missing",
        "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    ),
    "ProfileNotFound": ("there is no such AWS profile", "check AWS_PROFILE"),
    "EndpointConnectionError": (
        "the store does not answer",
        "check AWS_ENDPOINT_URL and the network; the same command resumes it",
    ),
    "PermissionError": ("access is denied", "check the credentials, and what they may do with the bucket"),
    "FileNotFoundError": ("it was removed meanwhile", "repeat the command"),
}
"""What happened and the fix, by the name of the client library's or Python's exception class."""


def _code(error: Exception) -> str:
    """The code of the store's answer, such as `PreconditionFailed`; empty if the error has none."""
    answer = getattr(error.__cause__, "response", None) or getattr(error, "response", None) or {}
    return str(answer.get("Error", {}).get("Code", ""))


def _described(error: Exception) -> tuple[str, str] | None:
    """What happened, and the fix; None if the error does not come from the store."""
    kinds = [cls.__name__ for cls in type(error).__mro__]
    library = type(error).__module__.partition(".")[0]
    if "OSError" not in kinds and library not in ("botocore", "aiobotocore", "aiohttp"):
        return None
    text_of_error = one_line(error)
    if _code(error) == _NO_SUCH_BUCKET:
        return _NO_BUCKET
    for kind in kinds:
        if kind in _KINDS:
            what, fix = _KINDS[kind]
            return f"{what} ({text_of_error})", fix
    return f"the store failed ({text_of_error or kinds[0]})", _GO_ON
