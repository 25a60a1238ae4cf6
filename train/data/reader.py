"""Reads rows of encoded data by index."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from uhr.base.errors import UserError, one_line
from uhr.base.paths import in_store
from uhr.base.store import ObjectStore
from uhr.manifests.manifest import Manifest
from uhr.manifests.sql import SqlCondition
from uhr.train.data.part_files import FolderParts, PartFiles
from uhr.train.data.rows import DataFault, Location, PartRows, StoredRow
from uhr.train.data.store_parts import StoreParts
from uhr.train.encode.stored.encoded import BucketInfo, EncodedInfo, read_encoded, read_in_store
from uhr.train.encode.stored.tensors import CellFault, stacked

if TYPE_CHECKING:
    import torch


CACHE_BYTES = 64 << 30


@dataclass(frozen=True)
class EncodedRows:
    """B encoded images of one bucket, on the CPU.

    mean, std: [B, C, h, w], raw latents in the stored dtype. texts: the family's text tensors by name, in the
    stored dtype; B is their first dimension. uris: the images' files, relative to the manifest's source.
    captions: the texts that `texts` encodes. caption_columns: for each row the indices of the columns in
    `config.captions` that it has a text in. guide: mean and std [B, C, h / g, w / g] of the images at 1/g of
    their side; None if the data have none. mask: uint8 [B, h, w], 255 where a latent takes part in training;
    None if the data have none.
    """

    mean: torch.Tensor
    std: torch.Tensor
    texts: Mapping[str, torch.Tensor]
    sample_ids: tuple[str, ...]
    uris: tuple[str, ...]
    captions: tuple[str, ...]
    caption_columns: tuple[tuple[int, ...], ...] = ()
    guide: tuple[torch.Tensor, torch.Tensor] | None = None
    mask: torch.Tensor | None = None


@dataclass(frozen=True)
class PixelRows:
    """B images of one bucket, to train a VAE.

    pixels: uint8 [B, 3, H, W], sRGB. mask: uint8 [B, H, W], 255 where a pixel takes part in training; None if
    the data have none.
    """

    pixels: torch.Tensor
    sample_ids: tuple[str, ...]
    uris: tuple[str, ...]
    mask: torch.Tensor | None = None


class EncodedData:
    """What `uhr train encode` wrote, opened for reading by (bucket, row). `path` is its folder or address."""

    def __init__(self, path: Path | str, info: EncodedInfo, files: PartFiles | None = None) -> None:
        self.path, self.info = path, info
        self.files = files or FolderParts(Path(path))
        self._stored = PartRows(self.files)

    @classmethod
    def open(cls, place: Path | str, cache: int = CACHE_BYTES) -> EncodedData:
        """Open a folder, or a prefix of an object store. Raises UserError if it is not encoded data, or was
        not finished.

        cache: bytes on this machine's disk for what is read from a store.
        """
        if not in_store(place):
            return cls(place, read_encoded(place))
        info, versions = read_in_store(place)
        return cls(place, info, StoreParts(ObjectStore(place), versions, cache))

    @property
    def buckets(self) -> list[BucketInfo]:
        return self.info.buckets

    def select(self, where: str | None = None, named: str = "where") -> list[np.ndarray]:
        """The rows for which an SQL condition over the manifest's columns is true; errors call it `named`.

        Returns for each bucket the numbers of its rows, ascending int64; all rows if `where` is None. A row
        for which the condition is null is not selected. Raises UserError if the condition is invalid, and for
        data of version 1, which have no manifest.
        """
        if where is None:
            return [np.arange(bucket.rows) for bucket in self.buckets]
        if self.info.schema_version < 2:
            raise UserError(f"{self.path} was encoded without its curated columns", "encode again")
        manifest = Manifest.open(self.path)
        condition = SqlCondition.parse(where, named)
        for name in sorted(condition.columns.difference(manifest.schema.names)):
            error = condition.unknown_column(name, manifest.schema)
            fix = f"{_curating(name)}; or {error.fix}" if error.fix else _curating(name)
            raise UserError(f"{error.what}: {self.path} lacks it", fix)
        condition.check(manifest.schema)
        rows = manifest.table(["bucket", "bucket_row"], where=f"bucket IS NOT NULL AND ({where})")
        names, numbers = rows["bucket"].to_numpy(), rows["bucket_row"].to_numpy()
        return [np.sort(numbers[names == f"{b.width}x{b.height}"]).astype(np.int64) for b in self.buckets]

    def lowest(self, rows: Sequence[np.ndarray], shares: Mapping[str, float]) -> list[np.ndarray]:
        """Of rows by bucket, as `select` returns them, the share with the lowest values of a column.

        shares: at most one column, and a share in (0, 1]; at least one row is left. Rows without a value are
        left out, and equal values are in the order of sample ids, as in slices. Raises UserError if no row
        has a value.
        """
        if not shares:
            return list(rows)
        ((column, share),) = shares.items()
        manifest = None if self.info.schema_version < 2 else Manifest.open(self.path)
        if manifest is None or column not in manifest.schema.names:
            raise UserError(
                f"{self.path} has no column '{column}'",
                f"{_curating(column)}, or set the phase's data.0.lowest={{}}",
            )
        kind = manifest.schema.field(column).type
        if not (pa.types.is_floating(kind) or pa.types.is_integer(kind)):
            raise UserError(f"{self.path}: column '{column}' has no numbers", "name another in `lowest`")
        table = manifest.table(["sample_id", "bucket", "bucket_row", column], where="bucket IS NOT NULL")
        values = table[column].cast(pa.float64()).to_numpy()
        names, numbers = table["bucket"].to_numpy(), table["bucket_row"].to_numpy()
        candidate = np.zeros(len(values), bool)
        for bucket, own in zip(self.buckets, rows, strict=True):
            here = names == f"{bucket.width}x{bucket.height}"
            candidate[here] = np.isin(numbers[here], own) & np.isfinite(values[here])
        if not candidate.any():
            raise UserError(
                f"{self.path}: no row has a value of {column}", "set the phase's data.0.lowest={}"
            )
        order = np.lexsort((table["sample_id"].to_numpy().astype(str), values))
        order = order[candidate[order]]
        left = order[: max(1, math.floor(len(order) * share + 0.5))]
        return [
            np.sort(numbers[left[names[left] == f"{b.width}x{b.height}"]]).astype(np.int64)
            for b in self.buckets
        ]

    def caption_columns(self, bucket: int, rows: Sequence[int]) -> tuple[tuple[int, ...], ...]:
        """For each row the indices of the caption columns that it has a text in, ascending."""
        info = self.buckets[bucket]
        return tuple(_available(self._text_keys(row.values)) for row in self._rows(info, rows))

    def read(
        self, bucket: int, rows: Sequence[int], captions: Sequence[int | None] | None = None
    ) -> EncodedRows:
        """Read rows `rows` of bucket number `bucket`, in that order.

        captions: for each row the index of the caption column whose embeddings it gets. None: the row's first
        caption, or the empty one if it has none. Raises ValueError for a caption that the row does not have,
        and UserError if the folder has pixels.
        """
        if self.info.config.pixels:
            raise UserError(
                f"{self.path} has pixels and no latents", "encode the same slice without --pixels"
            )
        info, config = self.buckets[bucket], self.info.config
        shape, dtype = self.info.latent_shape(info), config.dtype
        found = self._rows(info, rows)
        keys = [self._text_keys(row.values) for row in found]
        chosen = [None] * len(found) if captions is None else captions
        samples = tuple(row.values["sample_id"] for row in found)
        texts = self._texts(list(map(self._chosen_key, samples, keys, chosen)), samples)

        def stack(name: str, shape: tuple[int, ...], dtype: str = dtype) -> torch.Tensor:
            return self._stacked(found, name, shape, dtype)

        guide = mask = None
        if config.guide is not None:
            small = self.info.guide_shape(info)
            guide = stack("guide_mean", small), stack("guide_std", small)
        if config.mask is not None:
            mask = stack("mask", shape[1:], "uint8")
        return EncodedRows(
            stack("mean", shape),
            stack("std", shape),
            self._tensors(texts),
            samples,
            tuple(row.values["uri"] for row in found),
            tuple(text.values["caption"] for text in texts),
            tuple(map(_available, keys)),
            guide,
            mask,
        )

    def read_pixels(self, bucket: int, rows: Sequence[int]) -> PixelRows:
        """Read rows of a folder that was encoded with `pixels`. Raises UserError if it was not."""
        if not self.info.config.pixels:
            raise UserError(f"{self.path} has latents and no pixels", "encode the same slice with --pixels")
        info = self.buckets[bucket]
        found = self._rows(info, rows)
        shape = (info.height, info.width, 3)
        pixels, mask = self._stacked(found, "pixels", shape, "uint8"), None
        if self.info.config.mask is not None:
            mask = self._stacked(found, "mask", shape[:2], "uint8")
        return PixelRows(
            pixels.permute(0, 3, 1, 2).contiguous(),
            tuple(row.values["sample_id"] for row in found),
            tuple(row.values["uri"] for row in found),
            mask,
        )

    def _text_keys(self, row: Mapping[str, Any]) -> list[str | None]:
        """The keys of the row's captions by column. A row of version 1 has one, which may be the empty
        caption's."""
        if self.info.schema_version > 1:
            return row["text_keys"]
        return [None if row["text_key"] == self.info.texts.empty_key else row["text_key"]]

    def _chosen_key(self, sample: str, keys: Sequence[str | None], column: int | None) -> str:
        if column is None:
            return next((key for key in keys if key is not None), self.info.texts.empty_key)
        key = keys[column]
        if key is None:
            name = self.info.config.captions[column]
            raise ValueError(f"{self.path}: sample {sample} has no {name}")
        return key

    def empty_texts(self) -> dict[str, torch.Tensor]:
        """The text tensors of the empty caption as a batch of one, for caption dropout."""
        return self._tensors(self._texts([self.info.texts.empty_key], ["the empty caption"]))

    def _rows(self, bucket: BucketInfo, rows: Sequence[int]) -> list[StoredRow]:
        return self._stored.read([_locate(bucket, row) for row in rows])

    @cached_property
    def _text_locations(self) -> dict[str, Location]:
        return self._stored.text_locations(self.info.texts.parts)

    def _texts(self, keys: Sequence[str], samples: Sequence[str]) -> list[StoredRow]:
        """The captions with these keys, of these samples."""
        places = [self._text_locations.get(key) for key in keys]
        if None in places:
            sample = samples[places.index(None)]
            raise DataFault(
                f"{self.path}: sample {sample} has a caption that is not in texts/", "encode again"
            )
        return self._stored.read(place for place in places if place is not None)

    def _tensors(self, texts: Sequence[StoredRow]) -> dict[str, torch.Tensor]:
        dtype = self.info.config.text_dtype
        return {
            name: self._stacked(texts, name, shape, dtype)
            for name, shape in self.info.geometry.text_shapes.items()
        }

    def _stacked(
        self, rows: Sequence[StoredRow], name: str, shape: tuple[int, ...], dtype: str
    ) -> torch.Tensor:
        try:
            return stacked([row.cells[name] for row in rows], shape, dtype)
        except CellFault as fault:
            values = rows[fault.number].values
            sample = values.get("sample_id") or values["caption"]
            raise DataFault(
                f"{self.path}: '{name}' of {sample} is damaged ({one_line(fault)})", "encode again"
            ) from None


def _locate(bucket: BucketInfo, row: int) -> Location:
    assert 0 <= row < bucket.rows
    for part in bucket.parts:
        if row < part.rows:
            return Location(part, *divmod(row, bucket.group_rows))
        row -= part.rows
    raise AssertionError("the parts have fewer rows than their bucket")


def _available(keys: Sequence[str | None]) -> tuple[int, ...]:
    return tuple(index for index, key in enumerate(keys) if key is not None)


def _curating(column: str) -> str:
    """What to curate with, so that a manifest has the column."""
    of = column.removesuffix("_rank")
    stage = f"stage rank (of: {of})" if of != column else "the stage that adds it (`uhr curate stages`)"
    return f"curate with {stage}"
