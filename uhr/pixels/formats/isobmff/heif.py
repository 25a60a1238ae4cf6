"""Read from a HEIF file's boxes (ISO/IEC 23008-12) its primary image's facts, or its first AV1 track's."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from uhr.pixels.formats.isobmff import boxes as isobmff
from uhr.pixels.types import FileBytes, PixelFault

_ALPHA = (b"urn:mpeg:mpegB:cicp:systems:auxiliary:alpha\0", b"urn:mpeg:hevc:2015:auxid:1\0")


_MOST_EXTENTS = 100_000
"""Most extents of all items together: entries without bytes could keep a walk busy for hours."""

Property = tuple[bytes, bytes]
"""Kind and content of a property box."""


@dataclass
class HeifItem:
    """An item of the `meta` box: its type, its properties in the order of their use, and the places
    (offset, bytes) of its data, in the file or else in the `idat` box.
    """

    kind: bytes = b""
    properties: list[Property] = field(default_factory=list)
    extents: list[tuple[int, int]] = field(default_factory=list)
    in_file: bool = True

    def find(self, kind: bytes) -> bytes | None:
        return next((data for found, data in self.properties if found == kind), None)


@dataclass
class Meta:
    """The `meta` box: the number of the primary item, all items, and references (kind, from, to)."""

    primary: int = 0
    items: dict[int, HeifItem] = field(default_factory=dict)
    references: list[tuple[bytes, int, list[int]]] = field(default_factory=list)

    def item(self, number: int) -> HeifItem:
        return self.items.setdefault(number, HeifItem())


@dataclass
class ImageFacts:
    """The facts of the image from the primary item, or from the first track of a sequence.

    `size` is the stored width and height in pixels, `tile` that of the first tile of a grid or the same.
    `config` is the content of the `av1C` box, `bitstream` the place (offset, bytes) of the first tile's AV1
    data where it is known. `end` is the offset after the last byte that an
    item needs. `sequence`: it is a track, of `frames` frames.
    """

    size: tuple[int, int]
    tile: tuple[int, int]
    properties: list[Property]
    config: bytes
    alpha: bool
    bitstream: tuple[int, int] | None = None
    end: int = 0
    sequence: bool = False
    frames: int = 1

    def find(self, kind: bytes) -> bytes | None:
        """Return the content of the first property of a kind."""
        return next((data for found, data in self.properties if found == kind), None)


def read(source: FileBytes) -> ImageFacts:
    """Read the facts of an AVIF file. Raises `PixelFault` if it is truncated, damaged, or not coded as
    AV1."""
    try:
        return _read(source)
    except (struct.error, LookupError, ValueError) as error:
        raise PixelFault("corrupt", f"the boxes of the HEIF are damaged ({error})") from None


def _read(source: FileBytes) -> ImageFacts:
    meta = tracks = None
    major = b""
    for box in isobmff.walk(source):
        if box.kind == b"ftyp":
            major = isobmff.content(source, box)[:4]
        elif box.kind == b"meta" and meta is None:
            meta = _meta(isobmff.content(source, box))
        elif box.kind == b"moov" and tracks is None:
            tracks = isobmff.content(source, box)
        if tracks is not None or (meta is not None and major != b"avis"):
            break
    # the major brand decides, as in libavif; without it a primary image does
    if tracks is not None and (major == b"avis" or meta is None or not meta.primary):
        return _of_track(tracks)
    if meta is None or not meta.primary:
        kind = "truncated" if isobmff.ends_early(source) else "corrupt"
        raise PixelFault(kind, "the HEIF names no primary image")
    return _of_item(meta)


def _of_item(meta: Meta) -> ImageFacts:
    primary = meta.item(meta.primary)
    if primary.kind not in (b"av01", b"grid", b""):
        codec = primary.kind.decode("latin-1")
        raise PixelFault("unsupported", f"a HEIF whose image is coded as '{codec}', not as AV1")
    size = primary.find(b"ispe")
    if size is None:
        raise PixelFault("corrupt", "the HEIF does not say how large its image is (no ispe)")
    first = primary
    if primary.kind == b"grid":
        tiles = [to for kind, of, to in meta.references if kind == b"dimg" and of == meta.primary]
        first = meta.item(tiles[0][0]) if tiles and tiles[0] else primary
    alpha = any(
        kind == b"auxl" and meta.primary in to and (meta.item(of).find(b"auxC") or b"")[4:].startswith(_ALPHA)
        for kind, of, to in meta.references
    )
    bitstream = first.extents[0] if first.in_file and first.extents else None
    width, height = struct.unpack_from(">II", size, 4)
    tile_width, tile_height = struct.unpack_from(">II", first.find(b"ispe") or size, 4)
    properties = [*primary.properties, *(entry for entry in first.properties if entry[0] == b"colr")]
    end = max(
        (sum(place) for item in meta.items.values() if item.in_file for place in item.extents), default=0
    )
    tile, config = (tile_width, tile_height), first.find(b"av1C") or b""
    return ImageFacts((width, height), tile, properties, config, alpha, bitstream, end)


def _meta(data: bytes) -> Meta:
    meta = Meta()
    for kind, body in isobmff.children(data, 4):
        if kind == b"pitm":
            meta.primary = int.from_bytes(body[4 : 6 if body[0] == 0 else 8], "big")
        elif kind == b"iinf":
            skip = 6 if body[0] == 0 else 8
            for _, entry in isobmff.children(body, skip):
                # infe: id, protection, type
                wide = 2 if entry[0] == 2 else 4
                meta.item(int.from_bytes(entry[4 : 4 + wide], "big")).kind = entry[6 + wide : 10 + wide]
        elif kind == b"iref":
            meta.references += _references(body)
        elif kind == b"iprp":
            _properties(meta, body)
        elif kind == b"iloc":
            _locations(meta, body)
    return meta


def _references(body: bytes) -> list[tuple[bytes, int, list[int]]]:
    wide = "H" if body[0] == 0 else "I"
    found = []
    for kind, entry in isobmff.children(body, 4):
        of, count = struct.unpack_from(f">{wide}H", entry)
        found.append(
            (kind, of, list(struct.unpack_from(f">{count}{wide}", entry, struct.calcsize(f">{wide}H"))))
        )
    return found


def _properties(meta: Meta, body: bytes) -> None:
    known: list[tuple[bytes, bytes]] = []
    for kind, entry in isobmff.children(body):
        if kind == b"ipco":
            known = list(isobmff.children(entry))
        elif kind == b"ipma":
            _associations(meta, entry, known)


def _associations(meta: Meta, entry: bytes, known: list[tuple[bytes, bytes]]) -> None:
    version, flags = entry[0], entry[3]
    (count,) = struct.unpack_from(">I", entry, 4)
    position = 8
    for _ in range(count):
        wide = "H" if version == 0 else "I"
        number, many = struct.unpack_from(f">{wide}B", entry, position)
        position += struct.calcsize(f">{wide}B")
        for _ in range(many):
            if flags & 1:
                index = struct.unpack_from(">H", entry, position)[0] & 0x7FFF
            else:
                index = entry[position] & 0x7F
            position += 2 if flags & 1 else 1
            if 0 < index <= len(known):
                meta.item(number).properties.append(known[index - 1])


def _locations(meta: Meta, body: bytes) -> None:
    version = body[0]
    sizes = body[4:6]
    offset, length, base, index = sizes[0] >> 4, sizes[0] & 15, sizes[1] >> 4, sizes[1] & 15
    wide = 4 if version == 2 else 2
    position, total = 6, 0

    def take(count: int) -> int:
        nonlocal position
        if position + count > len(body):
            raise ValueError("an iloc box that is too short")
        position += count
        return int.from_bytes(body[position - count : position], "big")

    for _ in range(take(wide)):
        item = meta.item(take(wide))
        item.in_file = version == 0 or take(2) & 15 == 0
        take(2)
        start = take(base)
        for _ in range(take(2)):
            if version > 0:
                take(index)
            where = start + take(offset)
            item.extents.append((where, take(length)))
            total += 1
            if total > _MOST_EXTENTS:
                raise ValueError(f"more than {_MOST_EXTENTS} extents")


def _of_track(moov: bytes) -> ImageFacts:
    """Return the facts of the first track of AV1 images that is not another's auxiliary."""
    found: ImageFacts | None = None
    alpha = False
    for kind, track in isobmff.children(moov):
        table = _sample_table(track) if kind == b"trak" else {}
        entries = [
            body for name, body in isobmff.children(table.get(b"stsd", bytes(8)), 8) if name == b"av01"
        ]
        if not entries:
            continue
        auxiliary = any(
            name == b"tref" and any(reference == b"auxl" for reference, _ in isobmff.children(body))
            for name, body in isobmff.children(track)
        )
        if auxiliary:
            alpha = True
        elif found is None:
            found = _of_sample_entry(entries[0], table)
    if found is None:
        raise PixelFault("corrupt", "the AVIF sequence has no track of AV1 images")
    found.alpha = alpha
    return found


def _of_sample_entry(entry: bytes, table: dict[bytes, bytes]) -> ImageFacts:
    """VisualSampleEntry: 24 bytes before the size, 78 before its boxes."""
    properties = list(isobmff.children(entry, 78))
    config = next((body for name, body in properties if name == b"av1C"), b"")
    width, height = struct.unpack_from(">HH", entry, 24)
    each, frames, *sizes = struct.unpack_from(
        ">III" if table[b"stsz"][4:8] == bytes(4) else ">II", table[b"stsz"], 4
    )
    first = sizes[0] if sizes else each
    wide = b"co64" in table
    (offset,) = struct.unpack_from(">Q" if wide else ">I", table[b"co64" if wide else b"stco"], 8)
    place = (offset, first)
    size = (width, height)
    return ImageFacts(size, size, properties, config, False, place, sum(place), sequence=True, frames=frames)


def _sample_table(track: bytes) -> dict[bytes, bytes]:
    """Return the boxes of a track's sample table by kind; empty if there is none."""
    boxes = dict(isobmff.children(track))
    for kind in (b"mdia", b"minf", b"stbl"):
        boxes = dict(isobmff.children(boxes.get(kind, b"")))
    return boxes
