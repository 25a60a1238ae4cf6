"""A data set of Hugging Face as a source: a hub id, a folder of its files, or what `save_to_disk` wrote.

`datasets` reads files of this machine, so that a folder in a bucket is copied into the user's cache, once on
each machine for each content.
"""

from __future__ import annotations

import os
import re
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa

from uhr.base.errors import UserError, install, one_line, unknown
from uhr.base.paths import in_store
from uhr.base.store import ObjectStore, StoreError
from uhr.manifests.sources import tables
from uhr.manifests.sources.base import Advance, Item, Listing, items_table
from uhr.manifests.sources.blobs import Blob, FaultBlob, LocalBlob, MemoryBlob
from uhr.manifests.sources.files.places import lane_of
from uhr.manifests.sources.table_rows import SCHEMA, TableRows, stated_sizes
from uhr.pixels.files import changed
from uhr.pixels.types import PixelFault

_PATTERN = re.compile(r"[*?\[]|::")
"""What `datasets` does not read as a part of a path: it would find other folders, or none."""


class HuggingFace(TableRows):
    """A split of a data set with an image column, read by the package `datasets`.

    path: a folder, also in a bucket, or a hub id, which is downloaded into the cache of `datasets`. name: the
    configuration. image: the column, by default the only one with images.
    """

    kind = "hf"

    path: str
    name: str | None = None
    split: str = "train"
    revision: str | None = None
    image: str | None = None

    @classmethod
    def of_text(cls, text: str) -> HuggingFace:
        return cls(path=text)

    @property
    def place(self) -> str:
        return self.path

    def check(self) -> None:
        """Raise UserError if `datasets` is not installed."""
        try:
            import datasets as _  # noqa: F401 - whether it is there
        except ImportError:
            raise UserError(f"hf:{self.path} needs the package datasets", install("all")) from None

    def lane(self, item: Item) -> str | None:
        return lane_of(self.path)

    @cached_property
    def _here(self) -> str:
        """The path or hub id that `datasets` reads. The name of a copy is a hash of its names and ETags."""
        return os.fspath(ObjectStore(self.path).download("datasets")) if in_store(self.path) else self.path

    @property
    def _version(self) -> str:
        """The version of the data set; of a copy it is the same on all machines."""
        return Path(self._here).name if in_store(self.path) else self.rows._fingerprint

    @cached_property
    def rows(self) -> Any:
        """The split, with its images as bytes or paths. Raises UserError if it cannot be loaded."""
        self.check()
        import datasets

        here = Path(self._here)
        saved = (here / "state.json").exists() or (here / "dataset_dict.json").exists()
        if not saved and here.exists() and (found := _PATTERN.search(os.path.realpath(here))):
            what = f"the data set {self.path} has a path with '{found[0]}', a pattern to the package datasets"
            raise UserError(what, "rename the folder; a link does not help")
        try:
            if saved:
                found = datasets.load_from_disk(self._here)
                found = found[self.split] if isinstance(found, datasets.DatasetDict) else found
            else:
                found = datasets.load_dataset(self._here, self.name, split=self.split, revision=self.revision)
        except Exception as error:  # noqa: BLE001 - a script of the data set, or the hub, may raise anything
            what = f"the data set {self.path} cannot be loaded ({type(error).__name__}: {one_line(error)})"
            raise UserError(what, "check path, name, split and revision") from None
        return found.cast_column(self._image_of(found), datasets.Image(decode=False))

    def _image_of(self, found: Any) -> str:
        import datasets

        images = [name for name, kind in found.features.items() if isinstance(kind, datasets.Image)]
        if self.image is not None:
            if self.image not in found.features:
                raise unknown("column", self.image, found.features, self.path)
            return self.image
        if len(images) != 1:
            raise UserError(
                f"the data set {self.path} has {len(images)} columns of images ({', '.join(found.features)})",
                "name one with the option image",
            )
        return images[0]

    def _list(self, advance: Advance) -> Listing:
        rows, image = self.rows, self._image_of(self.rows)
        others = rows.remove_columns(image).with_format("arrow")
        found: list[tuple[Any, ...]] = []
        for start in range(0, len(rows), 1000):
            stop = min(start + 1000, len(rows))
            # without a column the data set would be without rows too
            table = others[start:stop] if others.column_names else pa.table({"": pa.nulls(stop - start)})
            values = zip(tables.given(table, ()), *stated_sizes(table), strict=True)
            for place, (given, *sizes) in enumerate(values, start):
                version = f"row-{place}@{self._version}"
                uri = f"{self.split}/{place:08d}"
                found.append((uri, version, None, None, None, None, given, *sizes))
            advance(stop - start)
        if not found:
            raise UserError(f"split {self.split} of {self.path} has no row", "name another split")
        return Listing(self, items_table(found, SCHEMA))

    def open(self, item: Item) -> Blob:
        row, version = item["uri"].rpartition("/")[2], item.get("source_version")
        try:
            now = self._version
        except StoreError as error:
            return FaultBlob(PixelFault("unavailable", error.what))
        if version is not None and in_store(self.path) and version.partition("@")[2] != now:
            return FaultBlob(changed("its data set in the bucket is another one now"))
        if not row.isdigit() or int(row) >= len(self.rows):
            return FaultBlob(PixelFault("unreadable", f"the data set has no row {row}"))
        cell = self.rows[int(row)][self._image_of(self.rows)]
        if cell is None or (cell["bytes"] is None and cell["path"] is None):
            return FaultBlob(PixelFault("unreadable", "the data set has no image in this row"))
        if cell["bytes"] is None:
            return LocalBlob(cell["path"])
        return MemoryBlob(cell["bytes"], version)
