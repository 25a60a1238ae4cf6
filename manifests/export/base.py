"""What a format of an export is: how it groups images into shards, writes a shard, and ends."""

from __future__ import annotations

import base64
import contextlib
import json
import shutil
import uuid
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from uhr.base.config import Config
from uhr.base.files import finite, sync
from uhr.manifests.manifest import Manifest

EXTENSIONS = {"JPEG": "jpg", "TIFF": "tif", "JPEG2000": "jp2"}
"""File extensions by the name of the format in the column `format`; of others the name in lower case."""


SPLIT_NAME = r"\w[\w-]{0,99}"
"""Names of splits that are names of files too."""


class ExportOptions(Config):
    """The options of an export.

    captions: columns of texts; the caption of an image is the first that is neither null nor empty.
    shard_bytes: bytes of image files per shard, at least one image. shard_rows: the largest number of images.
    """

    captions: tuple[str, ...] = ("caption",)
    shard_bytes: int = 1_000_000_000
    shard_rows: int = 10_000


@dataclass(frozen=True)
class Sample:
    """One image to write: its row, its file's bytes and extension (without a dot), and its caption or ""."""

    row: Mapping[str, Any]
    data: bytes
    extension: str
    caption: str

    @property
    def id(self) -> str:
        return str(self.row["sample_id"])

    def json(self) -> str:
        """Return the row without nulls as a JSON object.

        NaN and infinity count as null. Bytes are base64; times, decimals and the like are texts.
        """
        try:
            return _json(self.row)
        except ValueError:  # it has NaN or infinity: they are rare, and to look for them takes longer
            return _json(finite(self.row))

    def facts(self) -> dict[str, Any]:
        """Return what `json` says."""
        return json.loads(self.json())


def _json(row: Mapping[str, Any]) -> str:
    values = {name: value for name, value in row.items() if value is not None}
    return json.dumps(values, default=_text, ensure_ascii=False, allow_nan=False)


def _text(value: Any) -> str:
    return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)


@dataclass(frozen=True)
class Shard:
    """A part of an export: its number among the `count` of its split, both from 0, and the split's name.

    `name` is the name of its files or folder, such as `train-00003`.
    """

    number: int
    count: int
    split: str

    @property
    def name(self) -> str:
        return f"{self.split}-{self.number:05d}"


@dataclass(frozen=True)
class Entry:
    """An image as it was written: `file` relative to the export's folder, and what an index says of it."""

    file: str
    split: str
    caption: str
    facts: Mapping[str, Any]


class Format(ABC):
    """A format. A subclass writes shards; each is written whole or not at all, and alone.

    upright: whether its readers need upright 8-bit images in sRGB, as JPEG, PNG or WebP: every other image is
    written as PNG then. one_extension: whether all images of a shard have the same extension. split_names: a
    pattern of the names that its splits can have. needs: columns of which every row must have a value.
    absolute: whether its indices in a folder contain absolute paths.
    """

    name: ClassVar[str]
    upright: ClassVar[bool] = False
    one_extension: ClassVar[bool] = False
    split_names: ClassVar[str] = SPLIT_NAME
    needs: ClassVar[tuple[str, ...]] = ()
    absolute: ClassVar[bool] = False

    def __init__(self, parent: Manifest) -> None:
        """Make the format for one manifest. Raises UserError if it cannot write the manifest's rows."""
        self.parent = parent

    @abstractmethod
    def write(self, out: Path, shard: Shard, samples: Iterable[Sample]) -> Iterator[Entry]:
        """Write a shard below `out`, and yield an entry for each sample, in order.

        The shard's file or folder has its name only when the last entry has been yielded.
        """

    @abstractmethod
    def paths(self, shard: Shard) -> str:
        """Return the path of a shard's file or folder, relative to the export's folder."""

    def finish(self, out: Path, entries: Iterable[Entry], splits: Mapping[str, int], home: Path) -> None:
        """Write what is not part of a shard below `out`: indices, cards; by default nothing.

        entries: those of all shards, once. splits: the number of images of each. home: the folder as indices
        name it: absolute, or `Path()` where paths are relative to it, as in an object store.
        """
        return


@contextlib.contextmanager
def whole_folder(path: Path) -> Generator[Path]:
    """Yield an empty folder next to `path`; it gets this name when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")  # as `files.TEMPORARY`
    temporary.mkdir()
    try:
        yield temporary
        sync(temporary)
        temporary.rename(path)
        sync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
