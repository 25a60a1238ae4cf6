"""The format of a file by its first bytes: one that is read here, one that is only recognised, or not an
image.

The file's name is never looked at. Short signatures that ordinary text or any bytes may begin with (BM, P6,
PCX) count only with a plausible field after them. TGA has no signature and is never recognised.
"""

from __future__ import annotations

import re

from uhr.pixels.formats.isobmff import boxes as isobmff
from uhr.pixels.types import PixelFault

READ_HERE: tuple[tuple[bytes, str], ...] = (
    # stray bytes may be between SOI and the next marker
    (b"\xff\xd8", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
    # seen in the wild with the number in the other byte order
    (b"MM*\0", "TIFF"),
    (b"II\0*", "TIFF"),
    (b"qoif", "QOI"),
    (b"\0\0\1\0", "ICO"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG2000"),
    (b"\xff\x4f\xff\x51", "JPEG2000"),
)
"""Signatures at the start of a file -> format. AVIF, WebP, BMP and PNM need further checks."""

_RAW, _VIDEO = "a camera raw file", "a video"

_KNOWN: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\xff\xd8\xff\xf7", "a JPEG-LS file"),
    (0, b"\xff\x0a", "a JPEG XL image"),
    (0, b"\0\0\0\x0cJXL \r\n\x87\n", "a JPEG XL image"),
    (0, b"II\xbc", "a JPEG XR image"),
    (0, b"\x97JB2\r\n\x1a\n", "a JBIG2 file"),
    (0, b"\x8aMNG\r\n\x1a\n", "an MNG animation"),
    (0, b"\x8bJNG\r\n\x1a\n", "a JNG image"),
    (0, b"8BPS", "a Photoshop document"),
    (0, b"gimp xcf ", "a GIMP document"),
    (0, b"v/1\x01", "an OpenEXR image"),
    (0, b"#?RADIANCE", "a Radiance HDR image"),
    (0, b"#?RGBE", "a Radiance HDR image"),
    (0, b"SDPX", "a DPX image"),
    (0, b"XPDS", "a DPX image"),
    (0, b"\x80\x2a\x5f\xd7", "a Cineon image"),
    (0, b"DDS ", "a DirectDraw surface"),
    (0, b"\xabKTX ", "a KTX texture"),
    (0, b"SIMPLE  =", "a FITS image"),
    (128, b"DICM", "a DICOM file"),
    (0, b"icns", "a macOS icon file"),
    (0, b"BPG\xfb", "a BPG image"),
    (0, b"FLIF", "a FLIF image"),
    (0, b"farbfeld", "a farbfeld image"),
    (0, b"\x59\xa6\x6a\x95", "a Sun raster image"),
    (0, b"/* XPM */", "an XPM image"),
    (0, b"id=ImageMagick", "a MIFF image"),
    (0, b"AT&TFORM", "a DjVu document"),
    (0, b"\xd7\xcd\xc6\x9a", "a Windows metafile"),
    (0, b"%PDF-", "a PDF document"),
    (0, b"%!PS-Adobe", "a PostScript document"),
    (0, b"\xc5\xd0\xd3\xc6", "an EPS document"),
    (0, b"II\x1a\0\0\0HEAPCCDR", _RAW),
    (0, b"FUJIFILMCCD-RAW", _RAW),
    (0, b"IIRO", _RAW),
    (0, b"IIRS", _RAW),
    (0, b"MMOR", _RAW),
    (0, b"IIU\0", _RAW),
    (0, b"\0MRM", _RAW),
    (0, b"FOVb", _RAW),
    (0, b"\x1a\x45\xdf\xa3", _VIDEO),
    (0, b"\0\0\1\xba", _VIDEO),
    (0, b"\0\0\1\xb3", _VIDEO),
    (0, b"FLV\1", _VIDEO),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", _VIDEO),
    (4, b"moov", _VIDEO),
    (4, b"mdat", _VIDEO),
)
"""Signatures at an offset, of files that cannot be opened here, or that are not a single image."""

_NAMES = {(offset, signature): name for offset, signature, name in _KNOWN}
_AT = tuple(
    (offset, re.compile(b"|".join(re.escape(signature) for at, signature, _ in _KNOWN if at == offset)))
    for offset in sorted({offset for offset, _, _ in _KNOWN})
)
"""The signatures of `_KNOWN` at each offset in one pattern: every file is compared with all of them."""

_KNOWN_BY_TWO: tuple[tuple[bytes, int, bytes, str], ...] = (
    (b"II*\0", 8, b"CR\2\0", _RAW),
    (b"FORM", 8, b"ILBM", "an Amiga ILBM image"),
    (b"FORM", 8, b"PBM ", "an Amiga PBM image"),
    (b"\1\0\0\0", 40, b" EMF", "an enhanced metafile"),
    (b"RIFF", 8, b"AVI ", _VIDEO),
    (b"RIFF", 8, b"ACON", "an animated cursor"),
)
"""Signatures at the start together with a second one at an offset, for the same kinds of files."""

_AVIF = {b"avif", b"avis", b"MA1A", b"MA1B"}
_HEIC = {b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"hevm", b"hevs"}
_HEIF = {
    b"mif1",
    b"mif2",
    b"msf1",
    b"miaf",
    b"1pic",
    b"avci",
    b"avcs",
    b"vvic",
    b"vvis",
    b"jpeg",
    b"jpgs",
    b"j2ki",
}
_BMP_HEADERS = {12, 16, 40, 52, 56, 64, 108, 124}
_PCX_CODINGS = {bytes([1, bits]) for bits in (1, 2, 4, 8)}
_PNM = re.compile(rb"P[1-6](?:[ \t\n\v\f\r]|#[^\n\r]*[\n\r])+(?:[0-9]|(?:#[^\n\r]*)?\Z)")
_SVG = re.compile(rb"(?:\xef\xbb\xbf)?\s*(?:<\?xml.{0,2000})?(?:<!DOCTYPE svg|<svg[\s/>])", re.DOTALL)

_PAM_PFM = re.compile(rb"P([7fF])[ \t]*\r?\n")


def format_of(first: bytes) -> str:
    """Return the format of a file from its first bytes (a few hundred, or all that it has).

    Raises `PixelFault`: `unsupported` names a format that is not read here, `truncated` is a file that ends
    within its signature, and `not an image` is what no signature claims.
    """
    name = _known(first)
    if name:
        raise PixelFault("unsupported", f"{name} cannot be opened here")
    for signature, format in READ_HERE:
        if first.startswith(signature) and (format != "ICO" or first[4:6] != b"\0\0"):
            return format
    if first.startswith(b"RIFF") and first[8:12] == b"WEBP":
        return "WEBP"
    if first[4:8] == b"ftyp" and len(first) >= 12:
        return _media(first)
    if first.startswith(b"BM") and int.from_bytes(first[14:18], "little") in _BMP_HEADERS:
        return "BMP"
    if _PNM.match(first):
        return "PPM"
    if _ends_in_a_signature(first):
        raise PixelFault("truncated", f"the file ends within its signature, after {len(first)} bytes")
    raise PixelFault("not an image", "no image format begins like this")


def _known(first: bytes) -> str:
    """Return the name of a format that is recognised and not read here, or ""."""
    for offset, pattern in _AT:
        if (match := pattern.match(first, offset)) is not None:
            return _NAMES[offset, match[0]]
    for start, offset, signature, name in _KNOWN_BY_TWO:
        if first.startswith(start) and first.startswith(signature, offset):
            return name
    if first[:1] == b"\n" and len(first) > 3 and first[1] in (0, 2, 3, 4, 5) and first[2:4] in _PCX_CODINGS:
        return "a PCX image"
    if first[:2] == b"\x01\xda" and len(first) > 3 and first[2] in (0, 1) and first[3] in (1, 2):
        return "an SGI image"
    variant = _PAM_PFM.match(first)
    if variant:
        return "a PAM image (P7)" if variant[1] == b"7" else "a PFM image of floating-point values"
    return "an SVG drawing" if _SVG.match(first[:4096]) else ""


def _media(first: bytes) -> str:
    """Return AVIF if any brand in the `ftyp` box is AVIF's. Raises the fault that names the file
    otherwise."""
    length = int.from_bytes(first[:4], "big")
    brands = isobmff.brands(first[8 : max(length, 12)] if length else first[8:])
    if _AVIF.intersection(brands):
        return "AVIF"
    shown = brands[0].decode("latin-1").strip()
    if _HEIC.intersection(brands) or _HEIF.intersection(brands):
        name = "a HEIC image" if _HEIC.intersection(brands) else "a HEIF image"
        raise PixelFault(
            "unsupported", f"{name} (brand '{shown}') cannot be opened here: convert it to AVIF or PNG"
        )
    if b"crx " in brands:
        raise PixelFault("unsupported", f"{_RAW} (Canon CR3) cannot be opened here")
    raise PixelFault("unsupported", f"{_VIDEO} or another media file (brand '{shown}') cannot be opened here")


def _ends_in_a_signature(first: bytes) -> bool:
    """Whether these few bytes are the whole file and begin a signature of what is read here: four of them, or
    two where they are no text.
    """
    few = 2 if first[:1] >= b"\x80" else 4
    if len(first) < few:
        return False
    starts = [signature for signature, _ in READ_HERE]
    if any(signature.startswith(first) for signature in starts):
        return True
    riff = first.startswith(b"RIFF") and b"WEBP".startswith(first[8:12]) and len(first) < 12
    return riff or (first[4:8] == b"ftyp" and len(first) < 12) or _is_cut_bmp(first)


def _is_cut_bmp(first: bytes) -> bool:
    """Fewer bytes than a BMP's first two fields, with the reserved ones zero."""
    return first.startswith(b"BM") and 10 <= len(first) < 18 and first[6:10] == bytes(4)
