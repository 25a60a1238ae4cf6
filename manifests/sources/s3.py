"""A prefix of an S3 bucket as a source: every object below it is an item, or a sidecar of one."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Sequence
from functools import cached_property
from typing import Any

from uhr.base.errors import UserError
from uhr.base.paths import unescaped
from uhr.base.store import ObjectChanged, ObjectStore, StoreError
from uhr.manifests.sources.base import (
    Advance,
    Item,
    Listing,
    Source,
    items_table,
    size_of,
)
from uhr.manifests.sources.blobs import Blob
from uhr.manifests.sources.pairing import sidecars_in
from uhr.manifests.uris import uri_of
from uhr.pixels.decode import PixelLimits, check_bytes
from uhr.pixels.files import changed
from uhr.pixels.types import PixelFault


class S3(Source):
    """Objects of an S3 bucket. Credentials and endpoint are found as Amazon's own tools find them.

    path: `s3://bucket/prefix`.
    """

    kind = "s3"

    path: str

    @classmethod
    def of_text(cls, text: str) -> S3:
        return cls(path=text if text.startswith("s3://") else f"s3://{text}")

    @property
    def place(self) -> str:
        return self.path

    @property
    def addresses(self) -> Sequence[str]:
        return (self.path,)

    def check(self) -> None:
        if not self.path.startswith("s3://") or not self.path.removeprefix("s3://").strip("/"):
            raise UserError(f"the source {self.path} names no bucket", "write it as s3://bucket/prefix")

    @cached_property
    def store(self) -> ObjectStore:
        return ObjectStore(self.path)

    def _list(self, advance: Advance) -> Listing:
        folders: dict[str, dict[str, str]] = {}
        versions = self.store.versions()
        for name, version in versions.items():
            folder, _, last = name.rpartition("/")
            folders.setdefault(folder, {})[last] = version
        rows: list[tuple[Any, ...]] = []
        for folder, names in folders.items():
            prefix = f"{folder}/" if folder else ""
            owned = sidecars_in(names, names)
            used = {car for cars in owned.values() for car in cars}
            for name in names.keys() - used:
                cars = owned.get(name, ())
                uris = [uri_of(prefix + car) for car in cars] or None
                joined = ",".join(names[car] for car in cars) or None
                rows.append((uri_of(prefix + name), names[name], uris, joined, None, None))
            advance(len(names))
        if not rows:
            raise UserError(f"the source {self.path} contains no object", "name a prefix with images")
        return Listing(self, items_table(rows), {}, sum(map(size_of, versions.values())))

    def lane(self, item: Item) -> str | None:
        return f"bucket {self.path.removeprefix('s3://').partition('/')[0]}"

    def open(self, item: Item) -> S3Blob:
        return S3Blob(self.store, unescaped(item["uri"]), item.get("source_version"))


class S3Blob(Blob):
    """An object; if `version` is set, each request is for its ETag. A range is one request."""

    __slots__ = ("_name", "_store", "path", "version")

    def __init__(self, store: ObjectStore, name: str, version: str | None) -> None:
        self._store, self._name = store, name
        self.version = version
        self.path = None

    @property
    def size(self) -> int:
        if self.version is not None:
            return size_of(self.version)
        with self._faults():
            return self._store.size(self._name)

    def at(self, offset: int, count: int) -> bytes:
        count = min(count, self.size - offset)
        return self._get(offset, count) if count > 0 else b""

    def read(self, limits: PixelLimits | None = None) -> bytes:
        check_bytes(self.size, limits or PixelLimits())
        return self._get(0, None)

    def check_unchanged(self) -> None:
        """Do nothing: every request was for the listed ETag."""

    def _get(self, offset: int, count: int | None) -> bytes:
        etag = None if self.version is None else self.version.partition("-")[2]
        with self._faults():
            return self._store.read_range(self._name, etag, offset, count)

    @contextlib.contextmanager
    def _faults(self) -> Generator[None]:
        try:
            yield
        except ObjectChanged:
            raise changed("its ETag is another than when it was listed") from None
        except FileNotFoundError:
            if self.version is not None:
                raise changed("it was removed after it was listed") from None
            raise PixelFault("unreadable", "there is no such object") from None
        except StoreError as error:
            raise PixelFault("unavailable", error.what) from None
