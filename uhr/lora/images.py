"""The images of a folder before anything is written: sizes from headers, captions from sidecars."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uhr.base.console import progress
from uhr.base.errors import UserError
from uhr.base.paths import unescaped
from uhr.curate.sidecars import DEFAULT_KEYS, read_sidecars
from uhr.manifests.sources.base import GIVEN, Source
from uhr.manifests.sources.blobs import Blob, MemoryBlob
from uhr.manifests.sources.folder import Folder
from uhr.manifests.sources.pairing import IMAGE_SUFFIXES
from uhr.pixels.types import PixelFault
from uhr.train.encode.buckets import Bucket, choose, fits


@dataclass(frozen=True)
class Image:
    """An image whose header can be read; height and width in px, upright. caption: None for an empty one."""

    uri: str
    height: int
    width: int
    caption: str | None


@dataclass(frozen=True)
class Images:
    """The files of a folder. broken: names of images whose header cannot be read. others: the number of
    files that are no images.
    """

    images: tuple[Image, ...]
    broken: tuple[str, ...]
    others: int

    def in_buckets(self, buckets: tuple[Bucket, ...]) -> tuple[list[Image], dict[Bucket, int]]:
        """The images that are large enough for their bucket, and their number by bucket."""
        large, counts = [], dict.fromkeys(buckets, 0)
        for image in self.images:
            bucket = choose(image.height, image.width, buckets)
            if fits(image.height, image.width, bucket):
                large.append(image)
                counts[bucket] += 1
        return large, {bucket: count for bucket, count in counts.items() if count}


def scan(folder: Path) -> Images:
    """Read the headers and captions of all files below a folder, as curation lists them.

    Raises UserError if no file is an image.
    """
    source = Folder.at(folder)
    if not source.place.is_dir():
        what = "is a file" if source.place.exists() else "does not exist"
        raise UserError(f"{folder} {what}", "name a folder of images")
    listing = source.list()
    images, broken, others = [], [], 0
    with progress("read headers", listing.items.num_rows, "files") as advance:
        for item in listing.items.to_pylist():
            try:
                if item["fault"] is not None:
                    raise PixelFault(item["fault"], item["fault_words"] or item["fault"])
                header = source.open(item).header()
                images.append(Image(item["uri"], header.height, header.width, _caption(source, item)))
            except PixelFault:
                if item["uri"].rpartition(".")[2].lower() in IMAGE_SUFFIXES:
                    broken.append(unescaped(item["uri"]))
                else:
                    others += 1
            advance()
    if not images:
        found = f"{len(broken)} of its files cannot be read as images, {others} are no images"
        raise UserError(f"{folder} has no image that can be read ({found})", "name a folder of images")
    return Images(tuple(images), tuple(broken), others)


def _caption(source: Source, item: dict[str, Any]) -> str | None:
    """The caption that curation will read for an item; None for a sidecar that cannot be read."""
    try:
        return read_sidecars(list(_sidecars(source, item)), DEFAULT_KEYS).values.get("caption") or None
    except PixelFault:
        return None


def _sidecars(source: Source, item: dict[str, Any]) -> Iterator[tuple[str, Blob]]:
    if item.get(GIVEN.name) is not None:
        yield f"{GIVEN.name}.json", MemoryBlob(item[GIVEN.name].encode())
    versions = (item["sidecar_versions"] or "").split(",")
    for uri, version in zip(item["sidecars"] or (), versions, strict=False):
        blob = source.open({**item, "uri": uri, "source_version": version})
        yield unescaped(uri).rpartition("/")[2], blob
