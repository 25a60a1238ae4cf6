"""The work on a unit of images: decode, crop to a bucket, encode. Runs in this process or in a worker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pyarrow as pa

from uhr.runtime.units import UnitFault, Watch, Work
from uhr.train.encode.buckets import Bucket
from uhr.train.encode.config import ALPHA, EncodeConfig, latent_key
from uhr.train.encode.stored.reuse import StoredRows
from uhr.train.encode.stored.tensors import all_finite, to_bytes
from uhr.train.encode.work.memory import empty_gpu_cache, images_together, tiled
from uhr.train.encode.work.source import CannotEncode, ItemImage, LastFile

if TYPE_CHECKING:
    import numpy as np
    import torch

    from uhr.manifests.sources.base import Source
    from uhr.models.zoo import Model

IMAGE_ITEMS = pa.schema(
    [
        ("sample_id", pa.string()),
        ("uri", pa.string()),
        ("box", pa.list_(pa.int32(), 4)),
        ("content_hash", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("mask", pa.string()),
        ("text_keys", pa.list_(pa.string())),
    ]
)
"""`width` and `height` are the size of the whole image in px. They are null if the manifest does not have
them, or if the row has a box. `mask` is the path of the mask, null if masks are not files. `text_keys` has
one key for each caption column, null where the row has no caption."""

PLACED = ("resized_width", "resized_height", "crop_left", "crop_top")
"""How an image was placed in its bucket, px (`manifests.schema`)."""

DECODE, TOGETHER, ALONE = 0, 1, 2
"""Steps of an item (`Watch.begin`): its pixels; the VAE with its neighbours; the VAE by itself, after the
process died in the step before."""


def image_rows(config: EncodeConfig) -> pa.Schema:
    """The columns of a unit's part. A row with a `reason` is not encoded, and `error` is the message.

    `height` and `width` are those of the bucket in px; `reused` is whether the tensors were copied from
    another folder.
    """
    return pa.schema(
        [
            ("sample_id", pa.string()),
            ("uri", pa.string()),
            ("text_keys", pa.list_(pa.string())),
            ("latent_key", pa.string()),
            ("height", pa.int32()),
            ("width", pa.int32()),
            *((name, pa.int32()) for name in PLACED),
            ("reused", pa.bool_()),
            *((name, pa.binary()) for name in config.tensors),
            ("reason", pa.string()),
            ("error", pa.string()),
        ]
    )


@dataclass(frozen=True)
class ImageTask:
    """What `ImageWork` does with every image.

    factor: px per latent of the VAE. source: opens the images. reuse: encoded folders whose
    tensors are taken over.
    """

    model: Model
    config: EncodeConfig
    buckets: tuple[Bucket, ...]
    factor: int
    vae_hash: str
    source: Source
    device: str
    reuse: tuple[Path, ...] = ()


@dataclass
class _Ready:
    """A decoded item that waits for the VAE."""

    index: int
    bucket: Bucket
    rgb: np.ndarray
    cells: dict[str, bytes] = field(default_factory=dict)


class ImageWork(Work):
    """Encode a unit of images: the VAE's mean and standard deviation, unscaled, or the pixels themselves.

    Consecutive images of one bucket go through the VAE together if they fit into memory; what is stored does
    not depend on that beyond rounding.
    """

    reports: ClassVar[bool] = True

    def __init__(self, task: ImageTask) -> None:
        self.task = task
        self._vae: Any = None
        self._stored: StoredRows | None = None
        self._together: dict[Bucket, int] = {}

    def open(self) -> None:
        if self.task.reuse:
            self._stored = StoredRows.latents(self.task.reuse)
        else:
            self._load()

    def _load(self) -> None:
        """Load the VAE; where tensors are reused, only for the first image that has none."""
        from uhr.models.zoo import load_vae

        task = self.task
        if self._vae is None and not task.config.pixels:
            self._vae = load_vae(task.model, "float32", task.device)
            if task.config.tiling == "exact":
                tiled(self._vae)

    def close(self) -> None:
        """Free the VAE's memory."""
        self._vae = None
        empty_gpu_cache()

    def run(self, items: pa.Table, watch: Watch) -> pa.Table:
        files = LastFile(self.task.source)
        masks = LastFile(self.task.source) if self.task.config.mask not in (None, ALPHA) else None
        rows: list[dict[str, Any]] = []
        waiting: list[_Ready] = []
        for index, item in enumerate(items.to_pylist()):
            # those that wait are the last ones
            watch.done(index - len(waiting))
            row = {name: item[name] for name in ("sample_id", "uri", "text_keys")}
            rows.append(row)
            fault = watch.begin(index, DECODE)
            try:
                if fault is not None and fault.step == DECODE:
                    raise CannotEncode(fault.kind, fault.message)
                ready = self._decode(index, item, row, files, masks)
            except CannotEncode as failure:
                _fail(row, failure)
                continue
            if ready is None:
                continue
            if waiting and waiting[0].bucket != ready.bucket:
                self._encode(waiting, rows, watch)
                waiting = []
            waiting.append(ready)
            if len(waiting) >= self._most(ready.bucket):
                self._encode(waiting, rows, watch)
                waiting = []
        files.forget()
        self._encode(waiting, rows, watch)
        return pa.Table.from_pylist(rows, image_rows(self.task.config))

    def _decode(
        self,
        index: int,
        item: Mapping[str, Any],
        row: dict[str, Any],
        files: LastFile,
        masks: LastFile | None,
    ) -> _Ready | None:
        """Fill the row's key and placement, and return its pixels; None if the row is complete."""
        task, config = self.task, self.task.config
        image = ItemImage.open(item, files, masks, task.buckets, config.enlarge)
        bucket, placement = image.bucket, image.placement
        key = latent_key(config, task.vae_hash, image.content, image.box, bucket)
        row |= {"latent_key": key, "height": bucket.height, "width": bucket.width, "reused": False}
        row |= dict(
            zip(PLACED, (placement.width, placement.height, placement.left, placement.top), strict=True)
        )
        stored = None if self._stored is None else self._stored.get(key, config.tensors)
        if stored is not None:
            row |= {**stored, "reused": True}
            return None
        ready = _Ready(index, bucket, image.pixels())
        if config.mask is not None:
            factor = 1 if config.pixels else task.factor
            ready.cells["mask"] = image.coverage(config.mask, factor).tobytes()
        if config.pixels:
            row |= {"pixels": ready.rgb.tobytes(), **ready.cells}
            return None
        return ready

    def _most(self, bucket: Bucket) -> int:
        """How many images of the bucket go through the VAE together."""
        self._load()
        if bucket not in self._together:
            self._together[bucket] = images_together(self._vae, bucket.height, bucket.width)
        return self._together[bucket]

    def _encode(self, waiting: Sequence[_Ready], rows: list[dict[str, Any]], watch: Watch) -> None:
        """Encode images of one bucket, and complete their rows."""
        if not waiting:
            return
        if len(waiting) > 1 and watch.begin(waiting[0].index, TOGETHER) is None:
            cells = self._tensors(waiting)
            if cells is not None:
                for ready, found in zip(waiting, cells, strict=True):
                    rows[ready.index] |= found
                return
        for ready in waiting:
            fault = watch.begin(ready.index, ALONE)
            try:
                rows[ready.index] |= self._alone(ready, fault)
            except CannotEncode as failure:
                _fail(rows[ready.index], failure)
            watch.done(ready.index + 1)

    def _tensors(self, waiting: Sequence[_Ready]) -> list[dict[str, bytes]] | None:
        """Encode the images in one call; None if they must be encoded one by one, because they do not fit
        into memory or one of them is not finite.
        """
        import torch

        from uhr.base.errors import UserError

        try:
            return [self._checked(cells) for cells in self._moments(waiting)]
        except (torch.OutOfMemoryError, UserError, CannotEncode):
            empty_gpu_cache()
            return None

    def _alone(self, ready: _Ready, fault: UnitFault | None) -> dict[str, bytes]:
        from uhr.base.errors import UserError

        if fault is not None and fault.step == ALONE:
            raise CannotEncode(fault.kind, fault.message)
        try:
            (cells,) = self._moments([ready])
        except UserError as error:
            raise CannotEncode("not finite", error.what) from None
        return self._checked(cells)

    def _moments(self, waiting: Sequence[_Ready]) -> list[dict[str, bytes]]:
        """Mean and standard deviation of the images, and of their guides, as cells."""
        import numpy as np

        from uhr.models.ops.latents import to_images
        from uhr.models.vae.codec import moments

        config = self.task.config
        images = to_images(np.stack([ready.rgb for ready in waiting]))
        found = dict(zip(("mean", "std"), moments(self._vae, images), strict=True))
        if config.guide is not None:
            small = moments(self._vae, guide_images(images, config.guide))
            found |= dict(zip(("guide_mean", "guide_std"), small, strict=True))
        return [
            ready.cells | {name: to_bytes(value[i], config.dtype) for name, value in found.items()}
            for i, ready in enumerate(waiting)
        ]

    def _checked(self, cells: dict[str, bytes]) -> dict[str, bytes]:
        """Return the cells. Raises CannotEncode if a value is beyond the range of the stored dtype."""
        dtype = self.task.config.dtype
        if not all(all_finite(cell, dtype) for name, cell in cells.items() if name != "mask"):
            raise CannotEncode("not finite", f"latents beyond the range of {dtype}")
        return cells


def guide_images(images: torch.Tensor, guide: int) -> torch.Tensor:
    """The low-resolution guide of images [B, 3, H, W]: [B, 3, H / guide, W / guide].

    Bicubic without antialiasing or clipping, as UltraGen's training code samples it (`F.interpolate`).
    """
    from torch.nn import functional as F

    size = images.shape[-2] // guide, images.shape[-1] // guide
    return F.interpolate(images, size=size, mode="bicubic", align_corners=False)


def _fail(row: dict[str, Any], failure: CannotEncode) -> None:
    """Leave in the row what identifies it, and the failure."""
    for name in set(row) - {"sample_id", "uri", "text_keys"}:
        del row[name]
    row |= {"reason": failure.reason, "error": failure.error}
