"""Find the blocks of metadata in a file: XMP, IPTC, EXIF, texts, and whether there is a C2PA manifest."""

from __future__ import annotations

import contextlib
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from uhr.pixels import exif
from uhr.pixels.formats.isobmff import boxes
from uhr.pixels.formats.tiff.directory import first_directory
from uhr.pixels.types import FileBytes, PixelFault

LARGEST = 16 << 20
"""Bytes of one block that are read, also after it is inflated."""

_XMP = b"http://ns.adobe.com/xap/1.0/\0"
_EXIF = b"Exif\0\0"
_PHOTOSHOP = b"Photoshop 3.0\0"

C2PA_UUID = bytes.fromhex("d8fec3d61b0e483c92975828877ec481")
"""The user type of the box of a C2PA manifest in an ISO base media file (C2PA 2.1, A.5)."""

_C2PA_TYPE = b"c2pa\0\x11\0\x10\x80\0\0\xaa\0\x38\x9b\x71"
"""The type of the JUMBF superbox of a C2PA manifest store (C2PA 2.1, 11.1)."""

_ARTIST, _COPYRIGHT = 315, 33432
_XMP_TAG, _IPTC_TAG, _PHOTOSHOP_TAG, _C2PA_TAG = 700, 33723, 34377, 52545
_TEXT_TAGS = {_ARTIST: "Author", _COPYRIGHT: "Copyright"}
"""Tags of a TIFF, and under which keyword of a PNG a text means the same."""


@dataclass
class Blocks:
    """The blocks of a file. `exif` is a TIFF structure; `texts` are those of a PNG by their keyword, and of
    a TIFF.

    `faults` says which blocks are damaged.
    """

    xmp: bytes = b""
    iptc: bytes = b""
    exif: bytes = b""
    texts: dict[str, str] = field(default_factory=dict)
    c2pa: bool = False
    faults: list[str] = field(default_factory=list)


def blocks_of(data: bytes, format: str) -> Blocks:
    """Find the blocks of a file of one of `headers.FORMATS`. Raises nothing, whatever the bytes are.

    JPEG, PNG, WebP and TIFF are walked by their segments, chunks and tags. In other formats an XMP packet is
    searched for in all bytes, as the XMP specification (part 3, 1.1) describes.
    """
    found = Blocks()
    walk = _WALKS.get(format, _packet)
    try:
        walk(data, found)
    except (PixelFault, struct.error) as fault:
        found.faults.append(f"{format}: {fault.message if isinstance(fault, PixelFault) else 'it is cut'}")
    return found


def _jpeg(data: bytes, found: Blocks) -> None:
    photoshop = []
    for marker, start, end in _segments(data):
        if marker == 0xE1 and data.startswith(_XMP, start) and not found.xmp:
            found.xmp = data[start + len(_XMP) : end]
        elif marker == 0xE1 and data.startswith(_EXIF, start) and not found.exif:
            found.exif = data[start + len(_EXIF) : end]
        elif marker == 0xED and data.startswith(_PHOTOSHOP, start):
            photoshop.append(data[start + len(_PHOTOSHOP) : end])
        elif marker == 0xEB and data.startswith(b"JP", start):
            # the common identifier, box instance and sequence number (ISO 19566-5, D.2), then the boxes
            found.c2pa |= _is_c2pa(data[start + 8 : min(end, start + 64)])
    if photoshop:
        found.iptc = _iptc_of_photoshop(b"".join(photoshop), found)


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield marker, start and end of the content of the segments before the first scan."""
    at = 2
    while at + 4 <= len(data):
        if data[at] != 0xFF:
            # junk between segments is skipped, as libjpeg does
            at = data.find(b"\xff", at)
            if at < 0:
                return
            continue
        marker = data[at + 1]
        if marker in (0xDA, 0xD9):
            return
        if marker == 0xFF or marker <= 0x01 or 0xD0 <= marker <= 0xD7:
            at += 1 if marker == 0xFF else 2
            continue
        length = max(struct.unpack_from(">H", data, at + 2)[0], 2)
        yield marker, at + 4, min(at + 2 + length, len(data))
        at += 2 + length


def _is_c2pa(jumbf: bytes) -> bool:
    """Whether a JUMBF superbox begins that is a C2PA manifest store: `jumb`, in it `jumd` with its type."""
    return jumbf[4:8] == b"jumb" and jumbf[12:16] == b"jumd" and jumbf[16:32] == _C2PA_TYPE


def _iptc_of_photoshop(resources: bytes, found: Blocks) -> bytes:
    """Return resource 0x0404 of Photoshop's image resources; empty if there is none."""
    at = 0
    while resources.startswith(b"8BIM", at) and at + 12 <= len(resources):
        kind = struct.unpack_from(">H", resources, at + 4)[0]
        # a Pascal string, padded to an even number of bytes
        name = 1 + resources[at + 6]
        start = at + 6 + name + name % 2
        if start + 4 > len(resources):
            break
        size = struct.unpack_from(">I", resources, start)[0]
        if kind == 0x0404:
            if start + 4 + size > len(resources):
                found.faults.append("IPTC: it is cut")
            return resources[start + 4 : start + 4 + size]
        at = start + 4 + size + size % 2
    return b""


def _png(data: bytes, found: Blocks) -> None:
    at = 8
    while at + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        start, end = at + 8, min(at + 8 + length, len(data))
        if kind == b"eXIf" and not found.exif:
            found.exif = data[start:end]
        elif kind == b"caBX":
            found.c2pa |= _is_c2pa(data[start : start + 64])
        elif kind in (b"tEXt", b"zTXt", b"iTXt") and length <= LARGEST:
            _png_text(kind, data[start:end], found)
        elif kind == b"IEND":
            return
        at += 12 + length


def _png_text(kind: bytes, chunk: bytes, found: Blocks) -> None:
    """Take over a text chunk: XMP, the hexadecimal blocks that ImageMagick writes, or the text itself."""
    keyword, _, rest = chunk.partition(b"\0")
    if kind == b"iTXt":
        compressed, rest = rest[:1] == b"\1", rest[2:]
        rest = rest.partition(b"\0")[2].partition(b"\0")[2]
    else:
        compressed, rest = kind == b"zTXt", rest[1:] if kind == b"zTXt" else rest
    name = keyword.decode("latin-1")
    if name != "XML:com.adobe.xmp" and not name.startswith("Raw profile type ") and name not in _TEXTS:
        return
    if compressed:
        try:
            rest = zlib.decompressobj().decompress(rest, LARGEST)
        except zlib.error:
            found.faults.append(f"{name}: it cannot be inflated")
            return
    if name == "XML:com.adobe.xmp":
        found.xmp = found.xmp or rest
    elif name.startswith("Raw profile type "):
        _raw_profile(name.rpartition(" ")[2], rest, found)
    else:
        coding = "utf-8" if kind == b"iTXt" else "latin-1"
        found.texts.setdefault(name, rest.decode(coding, "replace").strip())


_TEXTS = ("Author", "Copyright")
"""Keywords of a PNG (third edition, 11.3.3.2) that are about its maker and its rights."""


def _raw_profile(kind: str, text: bytes, found: Blocks) -> None:
    if kind not in ("iptc", "xmp", "APP1"):
        return
    try:
        # a newline, the name, the number of bytes, and digits in lines
        block = bytes.fromhex(b"".join(text.split()[2:]).decode("ascii"))
    except ValueError:
        found.faults.append(f"Raw profile type {kind}: its digits are damaged")
        return
    if kind == "iptc":
        found.iptc = found.iptc or _iptc_of_photoshop(block, found) or block
    elif kind == "xmp" or block.startswith(_XMP):
        found.xmp = found.xmp or block.removeprefix(_XMP)


def _webp(data: bytes, found: Blocks) -> None:
    at = 12
    while at + 8 <= len(data):
        kind, length = struct.unpack_from("<4sI", data, at)
        block = slice(at + 8, min(at + 8 + length, len(data)))
        if kind == b"XMP ":
            found.xmp = found.xmp or data[block]
        elif kind == b"EXIF":
            found.exif = found.exif or data[block].removeprefix(_EXIF)
        elif kind == b"C2PA":
            found.c2pa |= _is_c2pa(data[block][:64])
        at += 8 + length + length % 2


def _tiff(data: bytes, found: Blocks) -> None:
    directory = first_directory(FileBytes(data, len(data)))
    for tag in (_ARTIST, _COPYRIGHT, _XMP_TAG, _PHOTOSHOP_TAG, _IPTC_TAG, _C2PA_TAG):
        if tag not in directory:
            continue
        try:
            block = directory.data(tag)
        except PixelFault as fault:
            found.faults.append(f"TIFF: {fault.message}")
            continue
        if tag in _TEXT_TAGS:
            found.texts[_TEXT_TAGS[tag]] = exif.text(block)
        elif tag == _XMP_TAG:
            found.xmp = block
        elif tag == _PHOTOSHOP_TAG:
            found.iptc = _iptc_of_photoshop(block, found)
        elif tag == _IPTC_TAG:
            found.iptc = block
        else:
            found.c2pa = _is_c2pa(block[:64])


def _packet(data: bytes, found: Blocks) -> None:
    start = data.find(b"<x:xmpmeta")
    end = data.find(b"</x:xmpmeta>", start)
    if 0 <= start < end and end - start < LARGEST:
        found.xmp = data[start : end + len(b"</x:xmpmeta>")]
    if data[4:8] == b"ftyp":
        source = FileBytes(data, len(data))
        # a damaged container is a fault of the image, which the decoder reports
        with contextlib.suppress(PixelFault):
            found.c2pa = any(
                box.kind == b"uuid" and source.at(box.start, 16) == C2PA_UUID for box in boxes.walk(source)
            )


_WALKS: dict[str, Callable[[bytes, Blocks], None]] = {
    "JPEG": _jpeg,
    "PNG": _png,
    "WEBP": _webp,
    "TIFF": _tiff,
}
