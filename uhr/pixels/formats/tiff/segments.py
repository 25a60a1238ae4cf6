"""Strips and tiles of a TIFF: their places, and their decompressed samples."""

from __future__ import annotations

import functools
import io
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from uhr.pixels.decoder_noise import captured
from uhr.pixels.formats import header_walks, pillow_formats
from uhr.pixels.formats.jpeg import JpegFile
from uhr.pixels.formats.tiff import header as tiff
from uhr.pixels.formats.tiff.directory import Directory
from uhr.pixels.formats.tiff.header import TiffLayout
from uhr.pixels.types import FileBytes, PixelFault

_REVERSED = bytes(int(f"{value:08b}"[::-1], 2) for value in range(256))
_BATCH = 1 << 26
"""Most decompressed bytes of a batch of segments, which share one call of libtiff."""

_CHUNK, _MOST_LEFT = 1 << 20, 1 << 26
"""Bytes that are inflated at a time, and at most, after the pixels of a deflated segment."""

_OFFSETS, _COUNTS = {False: 273, True: 324}, {False: 279, True: 325}
"""Tags with the place and the length of each strip (False) or tile (True), in bytes."""

_JPEG_TABLES, _FILL_ORDER = 347, 266

_OPTIONAL = {34925: "lzma", 50000: "zstd"}
"""Compressions that libtiff may be built without, with Pillow's names."""

_MOST_PADDING = 64
"""Pixels by which the JPEG of a segment may be wider and higher than the segment. A larger difference is
damage, and would take memory: a few bytes may state a huge size."""

_MOST_UNPACKED = 1 << 22
"""Most samples that are unpacked at a time where they are not whole bytes."""


class Segment(NamedTuple):
    """A strip or tile: its number, its place in pixels, the first of its samples, and its rows (those of the
    image in a last strip, all of a tile).
    """

    index: int
    x: int
    y: int
    sample: int
    rows: int


def segments(layout: TiffLayout) -> Iterator[Segment]:
    """Yield all segments in the order of the file."""
    index = 0
    for sample in range(layout.samples if layout.planar else 1):
        for y in range(0, layout.height, layout.down):
            rows = layout.down if layout.tiled else min(layout.down, layout.height - y)
            for x in range(0, layout.width, layout.across):
                yield Segment(index, x, y, sample, rows)
                index += 1


@dataclass
class SegmentReader:
    """Reads the segments of an image.

    data: the whole file. offsets, counts: where each segment begins and how long it is, in bytes; 0 where the
    file does not say. tables: the tables that all JPEG segments share, itself a JPEG stream; may be empty.
    """

    data: bytes
    directory: Directory
    layout: TiffLayout
    offsets: tuple[int, ...]
    counts: tuple[int, ...]
    tables: bytes

    @classmethod
    def of(cls, data: bytes, directory: Directory, layout: TiffLayout) -> SegmentReader:
        """Make the reader of the image that `directory` and `layout` describe.

        Raises PixelFault if the file has fewer segments than its image needs, or does not say their lengths.
        """
        needed = -(-layout.width // layout.across) * -(-layout.height // layout.down)
        needed *= layout.samples if layout.planar else 1
        offsets = directory.numbers(_OFFSETS[layout.tiled], most=needed)
        counts = directory.numbers(_COUNTS[layout.tiled], most=needed)
        name = "tiles" if layout.tiled else "strips"
        if len(offsets) < needed:
            raise PixelFault("corrupt", f"the TIFF lists {len(offsets)} {name}, and its image has {needed}")
        if len(counts) < needed:
            if layout.compression != tiff.NONE and needed > 1:
                raise PixelFault("corrupt", f"the TIFF does not say how long its {name} are")
            counts = (0,) * needed
        tables = directory.data(_JPEG_TABLES) if _JPEG_TABLES in directory else b""
        return cls(data, directory, layout, offsets, counts, tables)

    @property
    def _width(self) -> int:
        """Samples in a pixel of a segment."""
        return 1 if self.layout.planar else self.layout.samples

    def read(self) -> Iterator[tuple[Segment, np.ndarray]]:
        """Yield each segment with its stored samples: uint8 or uint16 [rows, across, samples]."""
        layout = self.layout
        if layout.compression == tiff.JPEG:
            yield from ((segment, self._jpeg(segment)) for segment in segments(layout))
            return
        for batch in self._batches():
            for segment, data in zip(batch, self._unwrapped(batch), strict=True):
                yield segment, self._samples(segment, data)

    def _row(self) -> int:
        """Bytes in a row of a segment, or for subsampled YCbCr in a row of units."""
        h, v = self.layout.fractions
        if (h, v) != (1, 1):
            return -(-self.layout.across // h) * (h * v + 2)
        return -(-self.layout.across * self._width * self.layout.bits // 8)

    def _needed(self, segment: Segment) -> int:
        """Return the bytes of a decompressed segment."""
        return self._row() * -(-segment.rows // self.layout.fractions[1])

    def _batches(self) -> Iterator[list[Segment]]:
        """Yield batches of about `_BATCH` bytes; only the last segment of a batch may have fewer rows."""
        batch: list[Segment] = []
        size = 0
        for segment in segments(self.layout):
            batch.append(segment)
            size += self._needed(segment)
            if size >= _BATCH or segment.rows != self.layout.down:
                yield batch
                batch, size = [], 0
        if batch:
            yield batch

    def _unwrapped(self, batch: list[Segment]) -> list[bytes]:
        """Return the decompressed bytes of each segment. Raises PixelFault if they are damaged or too few."""
        layout = self.layout
        stored = [self._stored(segment) for segment in batch]
        if layout.reversed_bits:
            stored = [data.translate(_REVERSED) for data in stored]
        if layout.compression in tiff.LIBTIFF:
            whole = self._through_libtiff(stored, batch)
            ends = np.cumsum([self._needed(segment) for segment in batch])
            stored = [
                whole[end - self._needed(segment) : end] for segment, end in zip(batch, ends, strict=True)
            ]
        elif layout.compression in tiff.DEFLATE:
            stored = [self._inflated(data, segment) for data, segment in zip(stored, batch, strict=True)]
        for data, segment in zip(stored, batch, strict=True):
            if len(data) < self._needed(segment):
                size = f"{len(data)} bytes, not {self._needed(segment)}"
                raise PixelFault("corrupt", f"segment {segment.index} of the TIFF has {size}")
        return stored

    def _samples(self, segment: Segment, data: bytes) -> np.ndarray:
        layout = self.layout
        data = data[: self._needed(segment)]
        if layout.fractions != (1, 1):
            return self._subsampled(segment, data)
        values = _unpacked(data, self._row(), layout, self._width, self.directory.order)
        if layout.predictor == 2:
            np.cumsum(values, axis=1, dtype=values.dtype, out=values)
        return values

    def _stored(self, segment: Segment) -> bytes:
        """Return the bytes of a segment in the file."""
        offset, count = self.offsets[segment.index], self.counts[segment.index]
        if offset == 0:
            raise PixelFault("unsupported", f"a sparse TIFF: it leaves out its segment {segment.index}")
        if count == 0:
            plain = self.layout.compression == tiff.NONE
            count = self._needed(segment) if plain else len(self.data) - offset
        if offset + count > len(self.data):
            message = f"the TIFF ends before its segment {segment.index} of {count} bytes at byte {offset}"
            raise PixelFault("truncated", message)
        return self.data[offset : offset + count]

    def _inflated(self, stored: bytes, segment: Segment) -> bytes:
        """Inflate a segment, and return its pixels alone: some writers pad the last strip. What follows is
        read too, for the checksum."""
        stream = zlib.decompressobj()
        try:
            found = stream.decompress(stored, max(self._needed(segment), 1))
            rest, left = stream.unconsumed_tail, _MOST_LEFT
            while rest and left > 0:
                left -= len(stream.decompress(rest, _CHUNK))
                rest = stream.unconsumed_tail
        except zlib.error as error:
            raise PixelFault("corrupt", f"segment {segment.index} of the TIFF is damaged ({error})") from None
        if not stream.eof:
            raise PixelFault(
                "corrupt", f"segment {segment.index} of the TIFF does not end where its pixels do"
            )
        return found

    def _through_libtiff(self, stored: list[bytes], batch: list[Segment]) -> bytes:
        """Decompress a batch by libtiff, as the strips of a gray image with one byte per pixel."""
        layout = self.layout
        fax = layout.compression in tiff.CCITT
        rows = sum(-(-segment.rows // layout.fractions[1]) for segment in batch)
        tags = {256: layout.across if fax else self._row(), 257: rows, 258: 1 if fax else 8}
        tags |= {259: layout.compression, 262: 1, 278: -(-layout.down // layout.fractions[1])}
        if fax:
            tags[_FILL_ORDER] = self.directory.number(_FILL_ORDER, 1)
        options = {3: 292, 4: 293}.get(layout.compression)
        if options is not None:
            tags[options] = self.directory.number(options, 0)
        whole = _tiff(tags, stored)
        if layout.compression in _OPTIONAL and not _libtiff_has(_OPTIONAL[layout.compression]):
            name = _OPTIONAL[layout.compression]
            raise PixelFault(
                "unsupported", f"a TIFF compressed by {name}, which this libtiff was built without"
            )
        found, fault = b"", None
        with captured() as lines:
            try:
                found = _fax(whole) if fax else _bytes(whole)
            except PixelFault as error:
                fault = error
        if fault is not None and fault.kind != "corrupt":
            raise fault
        if lines or fault is not None:
            why = lines[0] if lines or fault is None else fault.message
            raise PixelFault("corrupt", f"the TIFF is damaged ({why})")
        return found

    def _jpeg(self, segment: Segment) -> np.ndarray:
        """Decode a segment that is a JPEG stream: uint8 [rows, across, samples].

        Whether its components are YCbCr is only in the TIFF; an Adobe marker in the stream tells the decoder.
        """
        layout = self.layout
        stored = self._stored(segment)
        transform = 1 if layout.photometric == tiff.YCBCR else 0
        marker = b"\xff\xee\0\x0eAdobe" + struct.pack(">HHHB", 100, 0, 0, transform)
        stream = b"\xff\xd8" + marker + self.tables[2:-2] + stored[2:]
        try:
            frame = header_walks.jpeg(FileBytes(stream, len(stream)))
            wide = layout.across <= frame.raw_width < layout.across + _MOST_PADDING
            high = segment.rows <= frame.raw_height < layout.down + _MOST_PADDING
            if not wide or not high:
                raise PixelFault("corrupt", f"a JPEG of {frame.raw_width} x {frame.raw_height} pixels")
            values = _jpeg(stream, self._width)
        except PixelFault as fault:
            kind = "corrupt" if fault.kind == "truncated" else fault.kind
            raise PixelFault(kind, f"segment {segment.index} of the TIFF: {fault.message}") from None
        return values[: segment.rows, : layout.across]

    def _subsampled(self, segment: Segment, data: bytes) -> np.ndarray:
        """Expand subsampled YCbCr, stored in units of h x v luma samples and one of each colour: uint8 [rows,
        across, 3]."""
        (h, v), across = self.layout.fractions, self.layout.across
        wide, high = -(-across // h), -(-segment.rows // v)
        units = np.frombuffer(data, np.uint8).reshape(high, wide, h * v + 2)
        luma = units[..., : h * v].reshape(high, wide, v, h).swapaxes(1, 2).reshape(high * v, wide * h)
        colours = units[..., h * v :].repeat(v, axis=0).repeat(h, axis=1)
        return np.concatenate([luma[..., None], colours], axis=2)[: segment.rows, :across]


def _tiff(tags: dict[int, int], strips: list[bytes]) -> bytes:
    """Write a little-endian BigTIFF of these strips, after its directory."""
    count = len(strips)
    start = 16 + 8 + 20 * (len(tags) + 2) + 8
    sizes = np.array([len(strip) for strip in strips], "<u8")
    places = start + (16 * count if count > 1 else 0) + np.cumsum(sizes) - sizes
    lists = (places.astype("<u8").tobytes(), sizes.tobytes())
    entries = {tag: struct.pack("<HHQQ", tag, 4, 1, value) for tag, value in tags.items()}
    for tag, data, place in ((273, lists[0], start), (279, lists[1], start + 8 * count)):
        value = data if count == 1 else struct.pack("<Q", place)
        entries[tag] = struct.pack("<HHQ", tag, 16, count) + value
    table = b"".join(entry for _, entry in sorted(entries.items()))
    head = b"II+\0" + struct.pack("<HHQQ", 8, 0, 16, len(entries))
    return head + table + bytes(8) + (b"".join(lists) if count > 1 else b"") + b"".join(strips)


@functools.cache
def _libtiff_has(compression: str) -> bool:
    from PIL import Image

    with captured():
        try:
            Image.new("L", (8, 8)).save(io.BytesIO(), "TIFF", compression=compression)
        except OSError:
            return False
    return True


def _bytes(data: bytes) -> bytes:
    """Decode a gray 8-bit TIFF by Pillow's libtiff."""
    return pillow_formats.load(pillow_formats.open_image(io.BytesIO(data), ("TIFF",))).tobytes()


def _fax(data: bytes) -> bytes:
    """Decode a fax to packed bits (1 is white) by OpenCV, which unlike Pillow prints libtiff's warnings."""
    import cv2

    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)
    return b"" if pixels is None else np.packbits(pixels > 127, axis=1).tobytes()


def _jpeg(stream: bytes, width: int) -> np.ndarray:
    """Decode a JPEG stream: uint8 [h, w, width], gray, RGB or CMYK. Raises `PixelFault` for a damaged
    stream."""
    import cv2

    file = JpegFile(stream)
    encoded = np.frombuffer(file.decodable, np.uint8)
    with captured() as lines:
        if width == 4:
            # Pillow hides libjpeg's warnings, so OpenCV decodes too; by itself it would convert CMYK
            cv2.imdecode(encoded, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
            image = pillow_formats.load(pillow_formats.open_image(io.BytesIO(file.decodable), ("JPEG",)))
            # Pillow inverts the inks of a JPEG, as Photoshop stores them; a TIFF does not
            pixels = 255 - np.asarray(image)
        else:
            flags = cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION
            pixels = cv2.imdecode(encoded, flags)
    file.judge(lines)
    if pixels is None or file.truncated:
        raise PixelFault("corrupt", "a damaged JPEG")
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    if pixels.shape[2] != width:
        raise PixelFault("corrupt", f"a JPEG of {pixels.shape[2]} components, not {width}")
    return pixels[..., ::-1] if width == 3 else pixels


def _unpacked(data: bytes, row: int, layout: TiffLayout, width: int, order: str) -> np.ndarray:
    """Unpack samples of 1 to 16 bits, the first in the upper bits: uint8 or uint16 [rows, across, width]."""
    count = layout.across * width
    if layout.bits in (8, 16):
        values = np.frombuffer(data, np.uint8 if layout.bits == 8 else f"{order}u2")
        return values.astype(np.uint8 if layout.bits == 8 else np.uint16).reshape(-1, layout.across, width)
    packed = np.frombuffer(data, np.uint8).reshape(-1, row)
    values = np.empty((len(packed), count), np.uint8 if layout.bits < 8 else np.uint16)
    weights = 1 << np.arange(layout.bits - 1, -1, -1, dtype=np.uint16)
    step = max(1, _MOST_UNPACKED // max(count, 1))
    for start in range(0, len(packed), step):
        bits = np.unpackbits(packed[start : start + step], axis=1, count=count * layout.bits)
        values[start : start + step] = bits.reshape(-1, count, layout.bits) @ weights
    return values.reshape(-1, layout.across, width)
