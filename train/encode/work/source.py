"""Reads the image and the mask of an item: bytes, hash, upright sRGB pixels, crop to a bucket."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from uhr.train.encode import buckets as pixel_buckets
from uhr.train.encode.buckets import Bucket, CropPlacement
from uhr.train.encode.config import ALPHA

if TYPE_CHECKING:
    import numpy as np

    from uhr.manifests.sources.base import Source
    from uhr.pixels.decode import Decoded
    from uhr.pixels.types import Header

Box = tuple[int, int, int, int]
"""x, y, width, height in px of the upright image."""


class CannotEncode(Exception):
    """An image cannot be encoded. `reason` is a short category, `error` the message."""

    def __init__(self, reason: str, error: str) -> None:
        self.reason, self.error = reason, error
        super().__init__(f"{reason}: {error}")


@dataclass
class ImageFile:
    """The bytes of a file that were read once, and its pixels once they were decoded."""

    content_hash: str
    header: Header
    data: bytes
    _decoded: Decoded | None = None

    @classmethod
    def read(cls, source: Source, item: Mapping[str, Any]) -> ImageFile:
        """Read an item of the source. Raises CannotEncode if it cannot be read, or is not an image, and
        UserError if its store does not answer: the run ends, and no image is left out for that.
        """
        from uhr.base.errors import UserError
        from uhr.base.paths import unescaped
        from uhr.base.store import StoreError
        from uhr.pixels.headers import read_header
        from uhr.pixels.types import PixelFault

        try:
            data = source.open(item).read()
            return cls(hashlib.sha256(data).hexdigest(), read_header(data), data)
        except PixelFault as fault:
            if fault.kind == "unavailable" and not source.fetches_item(item):
                what = f"{unescaped(item['uri'])} cannot be read: {fault.message}"
                raise UserError(what, "fix the cause; the same command resumes the run") from None
            raise CannotEncode(fault.kind, fault.message) from None
        except StoreError:
            raise  # of the images that the manifest has stored
        except UserError as error:
            raise CannotEncode("unreadable", error.what) from None

    @property
    def decoded(self) -> Decoded:
        """The decoded image. Raises CannotEncode if the bytes are damaged."""
        from uhr.pixels.decode import decode
        from uhr.pixels.types import PixelFault

        if self._decoded is None:
            try:
                self._decoded = decode(self.data, header=self.header)
            except PixelFault as fault:
                raise CannotEncode(fault.kind, fault.message) from None
        return self._decoded


class LastFile:
    """Reads files, and keeps the last one, so that the patches of an image decode it once."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self._key, self._file = ("", None), None

    def read(self, item: Mapping[str, Any]) -> ImageFile:
        """Read an item of the source, unless it is the one that was read last."""
        key = item["uri"], item.get("source_name")
        if self._file is None or self._key != key:
            self._file = None
            self._file, self._key = ImageFile.read(self.source, item), key
        return self._file

    def forget(self) -> None:
        """Free the pixels."""
        self._file = None


@dataclass(frozen=True)
class ItemImage:
    """An item's image, whose bytes are those that were curated, and its place in a bucket.

    mask: the file of the mask, if it has one of its own.
    """

    file: ImageFile
    box: Box | None
    bucket: Bucket
    placement: CropPlacement
    mask: ImageFile | None = None

    @classmethod
    def open(
        cls,
        item: Mapping[str, Any],
        files: LastFile,
        masks: LastFile | None,
        buckets: tuple[Bucket, ...],
        enlarge: bool,
    ) -> ItemImage:
        """Read the item's bytes and choose its bucket; nothing is decoded.

        masks: reads the files of the items' masks; None if masks are not files. Raises CannotEncode if the
        file is not the one that was curated, if it does not contain the item's box, or if it is smaller than
        its bucket and `enlarge` is false.
        """
        file = files.read(item)
        header, known = file.header, item["content_hash"]
        if known not in (None, file.content_hash):
            raise CannotEncode("changed", "the file is no longer the one that was curated")
        size, curated = (header.width, header.height), (item["width"], item["height"])
        # with an equal hash, the bytes are those that were curated
        if known is None and None not in curated and size != curated:
            sizes = f"{size[0]}x{size[1]} px, and the manifest says {curated[0]}x{curated[1]}"
            raise CannotEncode("changed", f"the file is no longer the one that was curated: {sizes}")
        box: Box | None = tuple(item["box"]) if item["box"] else None
        if box is not None and (box[0] + box[2] > header.width or box[1] + box[3] > header.height):
            what = f"its box {list(box)} is not inside {header.width}x{header.height} px"
            raise CannotEncode("changed", what)
        height, width = (header.height, header.width) if box is None else (box[3], box[2])
        bucket = pixel_buckets.choose(height, width, buckets)
        if not enlarge and not pixel_buckets.fits(height, width, bucket):
            what = f"{width}x{height} px, and its bucket is {bucket}; enlarge=true would enlarge it"
            raise CannotEncode("too small", what)
        mask = None if masks is None else _mask_file(item, masks, header)
        return cls(file, box, bucket, pixel_buckets.place(height, width, bucket), mask)

    @property
    def content(self) -> tuple[str, ...]:
        """The hashes of the files that the result depends on."""
        return (self.file.content_hash, *([self.mask.content_hash] if self.mask is not None else []))

    def pixels(self) -> np.ndarray:
        """Decode, resize and crop: uint8 [bucket.height, bucket.width, 3], sRGB."""
        return cut(self.file.decoded.rgb(self.box), self.bucket)

    def coverage(self, mask: str, factor: int) -> np.ndarray:
        """The mask at the latents' resolution: uint8 [h, w], the mean over each latent's `factor` x `factor`
        pixels; that of the pixels themselves with factor 1.

        255 is an area that takes part in training, 0 one that does not. mask: as in the configuration.
        """
        import cv2
        import numpy as np

        gray = self._alpha() if mask == ALPHA else self._gray()
        if self.box is not None:
            x, y, width, height = self.box
            gray = gray[y : y + height, x : x + width]
        crop = np.ascontiguousarray(cut(gray, self.bucket)).astype(np.float32)
        rows, columns = self.bucket.height // factor, self.bucket.width // factor
        small = cv2.resize(crop, (columns, rows), interpolation=cv2.INTER_AREA)
        return np.rint(small).astype(np.uint8)

    def _alpha(self) -> np.ndarray:
        import numpy as np

        alpha = self.file.decoded.alpha()
        size = (self.file.header.height, self.file.header.width)
        return np.full(size, 255, np.uint8) if alpha is None else alpha

    def _gray(self) -> np.ndarray:
        import cv2

        assert self.mask is not None
        return cv2.cvtColor(self.mask.decoded.rgb(), cv2.COLOR_RGB2GRAY)


def _mask_file(item: Mapping[str, Any], masks: LastFile, header: Header) -> ImageFile:
    """Read the item's mask. Raises CannotEncode if it is missing, or not of the image's size."""
    if not item["mask"]:
        raise CannotEncode("mask", "the row has no mask")
    try:
        mask = masks.read({"uri": item["mask"], "source_name": item.get("source_name")})
    except CannotEncode as failure:
        raise CannotEncode("mask", f"{item['mask']}: {failure.error}") from None
    found, expected = (mask.header.width, mask.header.height), (header.width, header.height)
    if found != expected:
        sizes = f"{found[0]}x{found[1]} px, and its image {expected[0]}x{expected[1]} px"
        raise CannotEncode("mask", f"{item['mask']} is {sizes}")
    return mask


def cut(pixels: np.ndarray, bucket: Bucket) -> np.ndarray:
    """Resize and crop uint8 [H, W, 3] or [H, W] to the bucket's height and width."""
    from uhr.pixels.decode import resize

    placement = pixel_buckets.place(*pixels.shape[:2], bucket)
    if (placement.height, placement.width) != pixels.shape[:2]:
        pixels = resize(pixels, placement.height, placement.width)
    rows = slice(placement.top, placement.top + bucket.height)
    return pixels[rows, placement.left : placement.left + bucket.width]
