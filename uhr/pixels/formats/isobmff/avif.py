"""AVIF (AV1 Image File Format 1.1, HEIF ISO/IEC 23008-12): its header box by box, its pixels by libavif.

Size, depth, transparency, orientation and colours are what the properties of the primary item say, or those
of the first track in a sequence. Orientation is `irot` and `imir` alone: the standard leaves the one in EXIF
without effect. libavif, through Pillow, decodes; 10 and 12 bits are rounded to 8 there.
"""

from __future__ import annotations

import io
import struct
from fractions import Fraction

import numpy as np

from uhr.pixels import code_points
from uhr.pixels.formats.isobmff import av1, heif
from uhr.pixels.formats.isobmff import boxes as isobmff
from uhr.pixels.formats.isobmff.heif import ImageFacts
from uhr.pixels.planes import Planes
from uhr.pixels.types import FileBytes, Header, PixelFault

_TURNED = {(0, None): 1, (1, None): 8, (2, None): 3, (3, None): 6}
_MIRRORED = {(0, 0): 4, (1, 0): 5, (2, 0): 2, (3, 0): 7, (0, 1): 2, (1, 1): 7, (2, 1): 4, (3, 1): 5}
_ORIENTATIONS: dict[tuple[int, int | None], int] = {**_TURNED, **_MIRRORED}
"""(quarter turns anticlockwise of `irot`, axis of `imir`) -> EXIF orientation."""


def header(source: FileBytes) -> Header:
    """Read the header of an AVIF file. Raises `PixelFault` if it is incomplete or the image is not AV1."""
    facts = heif.read(source)
    try:
        return _header(source, facts)
    except (struct.error, IndexError, ValueError, ZeroDivisionError) as error:
        raise PixelFault("corrupt", f"the properties of the AVIF are damaged ({error})") from None


def _header(source: FileBytes, facts: ImageFacts) -> Header:
    _, _, width, height = _crop(facts)
    bits, gray = _depth(facts)
    notes = []
    shape = facts.find(b"pasp")
    if shape is not None and len(set(struct.unpack_from(">II", shape))) == 2:
        notes.append("the pixel aspect ratio (pasp) is ignored")
    icc, tags = _colours(source, facts)
    if tags.note and not icc:
        notes.append(tags.note)
    mode = ("LA" if facts.alpha else "L") if gray else ("RGBA" if facts.alpha else "RGB")
    return Header(
        "AVIF",
        width,
        height,
        mode,
        bits,
        _orientation(facts),
        facts.alpha,
        icc is not None,
        facts.frames > 1,
        None if icc else tags.space,
        tags.unsupported,
        tuple(notes),
    )


def _depth(facts: ImageFacts) -> tuple[int | None, bool]:
    """Return the bits per channel, and whether the image is gray, from av1C, else from pixi."""
    if len(facts.config) >= 3:
        flags = facts.config[2]
        return (8, 10, 10, 12)[flags >> 5 & 3], bool(flags & 0x10)
    pixi = facts.find(b"pixi")
    if pixi is None:
        return None, False
    channels = set(pixi[5 : 5 + pixi[4]])
    return (channels.pop() if len(channels) == 1 else None), pixi[4] == 1


def _orientation(facts: ImageFacts) -> int:
    turn, mirror = facts.find(b"irot"), facts.find(b"imir")
    return _ORIENTATIONS[(turn[0] & 3 if turn else 0, mirror[0] & 1 if mirror else None)]


def _crop(facts: ImageFacts) -> tuple[int, int, int, int]:
    """x, y, width and height of the part of the coded image that is shown: its clean aperture (`clap`,
    ISO/IEC 14496-12 12.1.4), fractions of a size and of the distance between the centres.
    """
    width, height = facts.size
    box = facts.find(b"clap")
    if box is None:
        return 0, 0, width, height
    fields = struct.unpack_from(">IIIIiIiI", box)
    wide, high, right, down = (Fraction(a, b) for a, b in zip(fields[::2], fields[1::2], strict=True))
    x, y = right + (width - wide) / 2, down + (height - high) / 2
    if any(part.denominator != 1 for part in (wide, high, x, y)):
        raise PixelFault("unsupported", "an AVIF with a clean aperture (clap) that cuts through its pixels")
    if x < 0 or y < 0 or wide < 1 or high < 1 or x + wide > width or y + high > height:
        raise PixelFault("corrupt", "the AVIF has a clean aperture (clap) outside its image")
    return int(x), int(y), int(wide), int(high)


def _colours(source: FileBytes, facts: ImageFacts) -> tuple[bytes | None, code_points.ColourTags]:
    """The ICC profile, and the meaning of the code points: of `nclx`, else of the AV1 sequence header."""
    boxes = [data for kind, data in facts.properties if kind == b"colr"]
    icc = next((data[4:] for data in boxes if data[:4] in (b"prof", b"rICC")), None)
    nclx = next((data for data in boxes if data[:4] == b"nclx"), None)
    if nclx is not None:
        return icc, code_points.from_code_points(*struct.unpack_from(">HH", nclx, 4), "its nclx box")
    sequence = _sequence_header(source, facts)
    if sequence is None:
        return icc, code_points.ColourTags()
    return icc, code_points.from_code_points(sequence.primaries, sequence.transfer, "its AV1 sequence header")


def _sequence_header(source: FileBytes, facts: ImageFacts) -> av1.SequenceHeader | None:
    if facts.bitstream is None:
        return None
    start, count = facts.bitstream
    return av1.sequence_header(source.at(start, min(count, 512)))


def planes(data: bytes, header: Header) -> Planes:
    """The pixels of the primary image, or of a sequence's first frame. Raises `PixelFault` for a file that is
    cut or damaged.
    """
    from PIL import AvifImagePlugin

    source = FileBytes(data, len(data))
    facts = heif.read(source)
    if isobmff.ends_early(source) or facts.end > len(data):
        raise PixelFault("truncated", "the AVIF ends before its image data do")
    sequence = _sequence_header(source, facts)
    layered = any(facts.find(kind) is not None for kind in (b"a1op", b"lsel", b"a1lx"))
    if sequence is not None and (sequence.width, sequence.height) != facts.tile and not layered:
        # libavif would stretch it
        size = (
            f"{sequence.width} x {sequence.height} pixels are coded, {facts.tile[0]} x {facts.tile[1]} named"
        )
        raise PixelFault("corrupt", f"the AVIF contradicts itself: {size}")
    major = b"avis" if facts.sequence else b"avif"
    if data[8:12] != major:
        # Pillow and libavif go by the major brand; the facts are of the image that this brand selects
        data = data[:8] + major + data[12:]
    try:
        image = AvifImagePlugin.AvifImageFile(io.BytesIO(data))
        image.load()
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - libavif's failures come as several kinds; the message is kept
        raise _fault(str(error)) from None
    if (image.width, image.height) != facts.size:
        raise PixelFault(
            "corrupt", f"the AVIF names {facts.size}, {image.width} x {image.height} pixels are coded"
        )
    x, y, width, height = _crop(facts)
    image = image.crop((x, y, x + width, y + height))
    rgb = np.array(image.convert("RGB"))
    alpha = np.array(image.getchannel("A")) if header.has_alpha and image.mode == "RGBA" else None
    return Planes(np.ascontiguousarray(rgb[..., ::-1]), alpha, profile=_colours(source, facts)[0])


def _fault(message: str) -> PixelFault:
    """Return the fault for a message of libavif's, a text of `avifResultToString`."""
    if "Truncated" in message:
        return PixelFault("truncated", f"the AVIF ends before its image data do ({message})")
    unsupported = ("Conversion from YUV", "Not implemented", "Unsupported", "No codec")
    if any(text in message for text in unsupported):
        return PixelFault("unsupported", f"an AVIF in a variant that libavif does not decode ({message})")
    return PixelFault("corrupt", f"the AVIF cannot be decoded ({message})")
