"""Reads rows of encoded data by index."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from uhr.base import parquet
from uhr.base.errors import UserError, one_line
from uhr.manifests.info import Part
from uhr.train.encode.encoded import BucketInfo, EncodedInfo, read_encoded
from uhr.train.encode.tensors import from_bytes

CACHE_BYTES = 1 << 30
"""Bytes of row groups kept in memory; `BucketPlan` uses the rows of a group close together."""


class _Location(NamedTuple):
    """Where a row is: number of the part, row group in the part, row in the group."""

    part: int
    group: int
    row: int


class DataFault(UserError):
    """A Parquet file that cannot be read or has invalid content; names file, row group and sample."""


@dataclass(frozen=True)
class EncodedRows:
    """B encoded images of one bucket, on the CPU.

    mean, std: [B, C, h, w], raw latents in the stored dtype. texts: the family's text tensors by name, in the
    stored dtype; B is their first dimension. uris: the images' files, relative to the manifest's source.
    """

    mean: torch.Tensor
    std: torch.Tensor
    texts: Mapping[str, torch.Tensor]
    sample_ids: tuple[str, ...]
    uris: tuple[str, ...]
    captions: tuple[str, ...]


class EncodedData:
    """A folder that `uhr train encode` wrote, opened for reading by (bucket, row)."""

    def __init__(self, path: Path, info: EncodedInfo) -> None:
        self.path, self.info = path, info
        self._groups: OrderedDict[tuple[str, int], pa.Table] = OrderedDict()
        self._cached = 0

    @classmethod
    def open(cls, path: Path) -> EncodedData:
        """Open a folder. Raises UserError if it is not encoded data, or was not finished."""
        return cls(path, read_encoded(path))

    @property
    def buckets(self) -> list[BucketInfo]:
        return self.info.buckets

    def select(self, where: str | None) -> list[np.ndarray]:
        """The rows of each bucket that meet a condition, as rising row numbers; None is all of them."""
        if where is not None:
            raise UserError(f"{self.path} has no curated columns for the condition {where}", "encode again")
        return [np.arange(bucket.rows) for bucket in self.buckets]

    def read(self, bucket: int, rows: Sequence[int]) -> EncodedRows:
        """Read rows `rows` of bucket number `bucket`, in that order, each with its own caption's
        embeddings.
        """
        info = self.buckets[bucket]
        shape, dtype = self.info.latent_shape(info), self.info.config.dtype
        found = [self._row(info.parts, self._locate(info, row)) for row in rows]
        texts = [self._text(row["text_key"], row["sample_id"]) for row in found]
        mean, std = (
            torch.stack([self._tensor(row, name, shape, dtype) for row in found]) for name in ("mean", "std")
        )
        return EncodedRows(
            mean,
            std,
            self._tensors(texts),
            tuple(row["sample_id"] for row in found),
            tuple(row["uri"] for row in found),
            tuple(text["caption"] for text in texts),
        )

    def empty_texts(self) -> dict[str, torch.Tensor]:
        """The text tensors of the empty caption as a batch of one, for caption dropout."""
        return self._tensors([self._text(self.info.texts.empty_key, "the empty caption")])

    def _locate(self, bucket: BucketInfo, row: int) -> _Location:
        assert 0 <= row < bucket.rows
        for number, part in enumerate(bucket.parts):
            if row < part.rows:
                return _Location(number, *divmod(row, bucket.group_rows))
            row -= part.rows
        raise AssertionError("the parts have fewer rows than their bucket")

    @cached_property
    def _text_locations(self) -> dict[str, _Location]:
        locations = {}
        for number, part in enumerate(self.info.texts.parts):
            with self._opened(part) as file:
                for group in range(file.num_row_groups):
                    keys = file.read_row_group(group, columns=["text_key"]).column(0).to_pylist()
                    locations |= {key: _Location(number, group, row) for row, key in enumerate(keys)}
        return locations

    def _text(self, key: str, sample: str) -> dict:
        location = self._text_locations.get(key)
        if location is None:
            raise DataFault(
                f"{self.path}: sample {sample} has a caption that is not in texts/", "encode again"
            )
        return self._row(self.info.texts.parts, location)

    def _tensors(self, texts: list[dict]) -> dict[str, torch.Tensor]:
        dtype = self.info.config.text_dtype
        return {
            name: torch.stack([self._tensor(text, name, shape, dtype) for text in texts])
            for name, shape in self.info.geometry.text_shapes.items()
        }

    def _tensor(self, row: dict, name: str, shape: tuple[int, ...], dtype: str) -> torch.Tensor:
        try:
            return from_bytes(row[name], shape, dtype)
        except ValueError as error:
            sample = row.get("sample_id") or row["caption"]
            raise DataFault(
                f"{self.path}: '{name}' of {sample} is damaged ({one_line(error)})", "encode again"
            ) from None

    def _row(self, parts: list[Part], location: _Location) -> dict:
        part = parts[location.part]
        return self._group(part, location).slice(location.row, 1).to_pylist()[0]

    def _group(self, part: Part, location: _Location) -> pa.Table:
        key = (part.path, location.group)
        if key not in self._groups:
            try:
                with self._opened(part) as file:
                    table = file.read_row_group(location.group)
            except (OSError, pa.ArrowException) as error:
                raise self._fault(part, location, error) from error
            self._groups[key] = table
            self._cached += table.nbytes
            while self._cached > CACHE_BYTES and len(self._groups) > 1:
                _, oldest = self._groups.popitem(last=False)
                self._cached -= oldest.nbytes
        self._groups.move_to_end(key)
        return self._groups[key]

    def _opened(self, part: Part) -> contextlib.AbstractContextManager[pq.ParquetFile]:
        return parquet.mapped(self.path / part.path, page_checksum_verification=True)

    def _fault(self, part: Part, location: _Location, error: Exception) -> DataFault:
        """The error for an unreadable row group, with the sample if its small columns can still be read."""
        sample = "unknown"
        try:
            with self._opened(part) as file:
                name = "sample_id" if "sample_id" in file.schema_arrow.names else "caption"
                sample = file.read_row_group(location.group, columns=[name]).column(0)[location.row].as_py()
        except (OSError, pa.ArrowException) as second:
            sample = f"unknown ({one_line(second)})"
        where = f"row group {location.group}, row {location.row}, sample {sample}"
        return DataFault(
            f"{self.path / part.path}, {where}: {one_line(error)}",
            "copy the file again, or encode again into another folder",
        )
