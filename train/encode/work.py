"""The work on a unit of images, and on a unit of captions. Runs in this process or in a worker."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from uhr.runtime.units import Watch, Work
from uhr.train.encode import buckets as pixel_buckets
from uhr.train.encode.buckets import Bucket
from uhr.train.encode.config import EncodeConfig, latent_key
from uhr.train.encode.tensors import to_bytes

if TYPE_CHECKING:
    import numpy as np

    from uhr.models.zoo import Model

IMAGE_ITEMS = pa.schema(
    [
        ("sample_id", pa.string()),
        ("uri", pa.string()),
        ("box", pa.list_(pa.int32(), 4)),
        ("content_hash", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("text_key", pa.string()),
    ]
)
"""`width` and `height` are the size of the whole image in px. They are null if the manifest does not have
them, or if the row has a box.
"""

IMAGE_ROWS = pa.schema(
    [
        ("sample_id", pa.string()),
        ("uri", pa.string()),
        ("text_key", pa.string()),
        ("latent_key", pa.string()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("mean", pa.binary()),
        ("std", pa.binary()),
        ("reason", pa.string()),
        ("error", pa.string()),
    ]
)
"""A row with a `reason` has no latents: it is left out, and `error` is the message."""

TEXT_ITEMS = pa.schema([("text_key", pa.string()), ("caption", pa.string())])


def text_rows(encoders: Iterable[str], tensors: Iterable[str]) -> pa.Schema:
    """The columns of encoded captions: numbers of tokens by encoder, and the family's text tensors."""
    counts = [(f"{name}_tokens", pa.int32()) for name in encoders]
    return pa.schema([*TEXT_ITEMS, *counts, *((name, pa.binary()) for name in tensors)])


class CannotEncode(Exception):
    """An image cannot be encoded. `reason` is a short category, `error` the message."""

    def __init__(self, reason: str, error: str) -> None:
        self.reason, self.error = reason, error
        super().__init__(f"{reason}: {error}")


class ImageWork(Work):
    """Decode, choose the bucket, resize, crop, encode: VAE mean and standard deviation, unscaled."""

    def __init__(
        self,
        model: Model,
        config: EncodeConfig,
        buckets: tuple[Bucket, ...],
        vae_hash: str,
        root: Path,
        device: str,
    ) -> None:
        self.model, self.config, self.buckets = model, config, buckets
        self.vae_hash, self.root, self.device = vae_hash, root, device
        self._vae: Any = None

    def open(self) -> None:
        from uhr.models.zoo import load_vae

        self._vae = load_vae(self.model, "float32", self.device)

    def close(self) -> None:
        """Free the VAE's memory."""
        self._vae = None
        _empty_gpu_cache()

    def run(self, items: pa.Table, watch: Watch) -> pa.Table:
        rows = []
        for index, item in enumerate(items.to_pylist()):
            fault = watch.begin(index)
            row = {name: item[name] for name in ("sample_id", "uri", "text_key")}
            try:
                if fault is not None:
                    raise CannotEncode(fault.kind, fault.message)
                row |= self._encode(item)
            except CannotEncode as failure:
                row |= {"reason": failure.reason, "error": failure.error}
            rows.append(row)
        return pa.Table.from_pylist(rows, IMAGE_ROWS)

    def _encode(self, item: dict[str, Any]) -> dict[str, Any]:
        import numpy as np

        from uhr.base.errors import UserError
        from uhr.models.vae.codec import encode_moments

        box = tuple(item["box"]) if item["box"] else None
        content_hash, rgb = self._read(item, box)
        bucket = pixel_buckets.choose(*rgb.shape[:2], self.buckets)
        if not self.config.enlarge and not pixel_buckets.fits(*rgb.shape[:2], bucket):
            size = f"{rgb.shape[1]}x{rgb.shape[0]} px"
            raise CannotEncode(
                "too small", f"{size}, and its bucket is {bucket}; enlarge=true would enlarge it"
            )
        try:
            mean, std = encode_moments(self._vae, np.ascontiguousarray(cut(rgb, bucket))[None])
        except UserError as error:
            raise CannotEncode("not finite", error.what) from None
        cells = {"mean": to_bytes(mean[0], self.config.dtype), "std": to_bytes(std[0], self.config.dtype)}
        if not _finite(cells.values(), self.config.dtype):
            raise CannotEncode("not finite", f"latents beyond the range of {self.config.dtype}")
        key = latent_key(self.config, self.vae_hash, content_hash, box, bucket)
        return {"latent_key": key, "height": bucket.height, "width": bucket.width, **cells}

    def _read(self, item: dict[str, Any], box: tuple[int, int, int, int] | None) -> tuple[str, np.ndarray]:
        """Read an image: the hash of its file, and its upright sRGB pixels."""
        from uhr.manifests.uris import path_of
        from uhr.pixels.decode import decode, read_bytes
        from uhr.pixels.headers import read_header
        from uhr.pixels.types import PixelFault

        try:
            data = read_bytes(path_of(self.root, item["uri"]))
            content_hash = hashlib.sha256(data).hexdigest()
            if item["content_hash"] not in (None, content_hash):
                raise CannotEncode("changed", "the file is no longer the one that was curated")
            header = read_header(data)
            size, curated = (header.width, header.height), (item["width"], item["height"])
            # with an equal hash, the bytes are those that were curated
            if item["content_hash"] is None and None not in curated and size != curated:
                sizes = f"{size[0]}x{size[1]} px, and the manifest says {curated[0]}x{curated[1]}"
                raise CannotEncode("changed", f"the file is no longer the one that was curated: {sizes}")
            if box is not None and (box[0] + box[2] > header.width or box[1] + box[3] > header.height):
                raise CannotEncode(
                    "changed", f"its box {list(box)} is not inside {header.width}x{header.height} px"
                )
            return content_hash, decode(data, header=header).rgb(box)
        except PixelFault as fault:
            raise CannotEncode(fault.kind, fault.message) from None


def cut(rgb: np.ndarray, bucket: Bucket) -> np.ndarray:
    """Resize and crop uint8 [H, W, 3] to [bucket.height, bucket.width, 3]."""
    from uhr.pixels.decode import resize

    placement = pixel_buckets.place(*rgb.shape[:2], bucket)
    if (placement.height, placement.width) != rgb.shape[:2]:
        rgb = resize(rgb, placement.height, placement.width)
    return rgb[placement.top : placement.top + bucket.height, placement.left : placement.left + bucket.width]


def _finite(cells: Any, dtype: str) -> bool:
    import torch

    return all(
        bool(torch.isfinite(torch.frombuffer(bytearray(cell), dtype=getattr(torch, dtype))).all())
        for cell in cells
    )


class TextWork(Work):
    """Encode captions to embeddings, at the encoders' full padded lengths."""

    def __init__(self, model: Model, config: EncodeConfig, device: str) -> None:
        self.model, self.config, self.device = model, config, device
        self._encoders: Any = None

    def open(self) -> None:
        from uhr.models.zoo import load_text_encoders

        self._encoders = load_text_encoders(self.model, self.config.text_dtype, self.device)

    def close(self) -> None:
        """Free the encoders' memory, as the VAE is loaded next."""
        self._encoders = None
        _empty_gpu_cache()

    def run(self, items: pa.Table, watch: Watch) -> pa.Table:
        from uhr.base.errors import UserError
        from uhr.models.families.registry import FAMILIES
        from uhr.models.zoo import Prompt

        family, rows = FAMILIES[self.model.spec.family], []
        for index, item in enumerate(items.to_pylist()):
            fault = watch.begin(index)
            if fault is not None:
                raise UserError(f"encoding the caption '{item['caption'][:80]}' failed ({fault.message})")
            # one at a time: a caption's embedding must not depend on its neighbours
            found = family.embed(self._encoders, Prompt(item["caption"]))
            cells = {name: to_bytes(found.texts[name][0], self.config.text_dtype) for name in found.texts}
            if not _finite(cells.values(), self.config.text_dtype):
                raise UserError(
                    f"the embedding of '{item['caption'][:80]}' is not finite in {self.config.text_dtype}",
                    "--set text_dtype=float32",
                )
            tokens = {f"{count.encoder}_tokens": count.tokens[0] for count in found.counts}
            rows.append({**item, **tokens, **cells})
        schema = text_rows(self.model.spec.text_lengths, family.text_tensors)
        return pa.Table.from_pylist(rows, schema)


def _empty_gpu_cache() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
