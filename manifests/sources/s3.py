"""A prefix of an S3 bucket as a source: every object below it is an item, or a sidecar of one."""

from __future__ import annotations

import posixpath
import tempfile
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import pyarrow as pa

from uhr.base.errors import UserError
from uhr.base.paths import unescaped
from uhr.base.store import ObjectStore
from uhr.manifests.sources import tables
from uhr.manifests.sources.base import Advance, Item, Listing, Source
from uhr.manifests.sources.blobs import S3Blob, size_of
from uhr.manifests.sources.files import metadata
from uhr.manifests.sources.files.places import lane_of
from uhr.manifests.sources.folder import KINDS
from uhr.manifests.sources.pairing import sidecars_in
from uhr.manifests.uris import uri_of


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
        rows: list[metadata.Row] = []
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
            kinds = KINDS.get(posixpath.splitext(self.path.rstrip("/"))[1].lower(), ())
            fix = " or ".join(f"{kind}:{self.path}" for kind in kinds)
            raise UserError(
                f"the source {self.path} contains no object",
                f"write {fix}, if it is an object" if fix else "name a prefix with images",
            )
        values = metadata.of_rows(rows, self._table)
        return Listing(self, values.items(), values.counts, sum(map(size_of, versions.values())))

    def _table(self, uri: str) -> pa.Table:
        """Read a table from a copy, which is removed."""
        with tempfile.TemporaryDirectory(prefix="uhr-tables-") as copies:
            file = self.store.fetch_into(Path(copies), unescaped(uri))
            try:
                return tables.read_table(file)
            except UserError as error:
                raise UserError(error.what.replace(copies, self.path.rstrip("/")), error.fix) from None

    def lane(self, item: Item) -> str | None:
        return lane_of(self.path)

    def open(self, item: Item) -> S3Blob:
        return S3Blob(self.store, unescaped(item["uri"]), item.get("source_version"))
