"""TIFF and BigTIFF: the first directory, and the header that follows from it.

The pixels are put together in `pixels.py`; Pillow and libtiff only take the compression off. Which
variants are read is decided here: a layout that is not read right is `unsupported`, and named.
"""

from __future__ import annotations

from dataclasses import dataclass

from uhr.pixels import code_points
from uhr.pixels.code_points import ColourTags
from uhr.pixels.formats.tiff.directory import Directory, first_directory, sub_directories
from uhr.pixels.types import FileBytes, Header, PixelFault

WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, CMYK, YCBCR = 0, 1, 2, 3, 5, 6
"""Photometric interpretations that are read."""

_COLOURS = {WHITE_IS_ZERO: 1, BLACK_IS_ZERO: 1, RGB: 3, PALETTE: 1, CMYK: 4, YCBCR: 3}
_MODES = {WHITE_IS_ZERO: "L", BLACK_IS_ZERO: "L", RGB: "RGB", PALETTE: "P", CMYK: "CMYK", YCBCR: "YCbCr"}
_OTHER = {4: "a transparency mask", 8: "CIELab colours", 9: "ICCLab colours", 10: "ITULab colours"}
_OTHER |= {
    32803: "a colour filter array",
    34892: "linear raw values",
    32844: "LogL values",
    32845: "LogLuv values",
}
_RAW = (32803, 34892)

NONE, CCITT, LZW, OLD_JPEG, JPEG, DEFLATE, PACKBITS = 1, (2, 3, 4), 5, 6, 7, (8, 32946), 32773
LIBTIFF = (LZW, PACKBITS, *CCITT, 34925, 50000)
"""Compressions that libtiff decodes: LZW, PackBits, CCITT, LZMA, Zstandard."""

PREDICTED = (LZW, *DEFLATE, 34925, 50000)
"""Compressions that may be combined with a predictor."""

_COMPRESSIONS = {
    6: "old-style JPEG",
    32809: "ThunderScan",
    34887: "LERC",
    34712: "JPEG 2000",
    33003: "JPEG 2000",
}
_COMPRESSIONS |= {33005: "JPEG 2000", 34676: "SGI LogLuv", 34677: "SGI LogLuv", 34661: "JBIG", 50001: "WebP"}
_COMPRESSIONS |= {
    34892: "lossy JPEG (DNG)",
    22610: "JPEG XR",
    34934: "JPEG XR",
    50002: "JPEG XL",
    52546: "JPEG XL",
}

ASSOCIATED, UNASSOCIATED = 1, 2
_COREL_ALPHA = 999

_MOST_SAMPLES = 64
"""Most bands of a pixel that are read: with a million, a pixel would take a megabyte."""

_MOST_TILE = 1 << 26
"""Most pixels of a tile that is larger than its image; beyond, the file is damaged."""


@dataclass(frozen=True, slots=True)
class TiffLayout:
    """How the samples of an image are stored.

    `width` and `height` of the image in pixels, `across` and `down` those of a strip or tile; `samples` per
    pixel of `bits` each; `alpha` is the index of the sample that is opacity, None without; `fractions` is the
    subsampling of YCbCr.
    """

    width: int
    height: int
    across: int
    down: int
    tiled: bool
    samples: int
    bits: int
    photometric: int
    compression: int
    planar: bool
    predictor: int
    reversed_bits: bool
    alpha: int | None
    associated: bool
    fractions: tuple[int, int]

    @property
    def colours(self) -> int:
        return _COLOURS[self.photometric]


@dataclass
class Reading:
    """The layout, or the reason why it is not read (`unsupported`), and the rest of a header."""

    layout: TiffLayout | None
    unsupported: str
    notes: list[str]
    bits: int | None
    mode: str
    has_alpha: bool


def header(source: FileBytes) -> Header:
    """Read the header of the first image. Raises `PixelFault` for a truncated or damaged file or a camera
    raw."""
    directory = first_directory(source)
    _refuse_camera_raw(directory)
    width, height = directory.number(256, 0), directory.number(257, 0)
    reading = read(directory)
    tags = _colours(directory)
    orientation = directory.number(274, 1)
    if tags.note:
        reading.notes.append(tags.note)
    return Header(
        "TIFF",
        width,
        height,
        reading.mode,
        reading.bits,
        orientation if 1 <= orientation <= 8 else 1,
        reading.has_alpha,
        34675 in directory,
        colour=tags.space,
        unsupported=reading.unsupported,
        notes=tuple(reading.notes),
    )


def _refuse_camera_raw(directory: Directory) -> None:
    """Raise for a camera raw: a TIFF whose first image is its thumbnail, or whose pixels have one colour
    each."""
    raw = bool(directory.number(254, 0) & 1) or 50706 in directory or directory.number(262, -1) in _RAW
    if not raw and 330 in directory:
        raw = any(part.number(262, -1) in _RAW for part in sub_directories(directory))
    if raw:
        raise PixelFault("unsupported", "a camera raw file cannot be opened here")


def _colours(directory: Directory) -> ColourTags:
    """Return the meaning of WhitePoint and PrimaryChromaticities, without an ICC profile."""
    if 34675 in directory:
        return ColourTags()
    white, primaries = directory.rationals(318), directory.rationals(319)
    tags = ColourTags()
    if len(white) == 2 and len(primaries) == 6:
        given = code_points.chromaticities([*white, *primaries])
        tags = code_points.from_chromaticities(given, None, "PrimaryChromaticities")
    if 301 in directory and not tags.note:
        tags = tags._replace(note="the TransferFunction is ignored")
    return tags


def read(directory: Directory) -> Reading:
    """Read the layout of a directory's samples. Raises `PixelFault` if it contradicts itself."""
    photometric = directory.number(262, -1)
    compression = directory.number(259, 1)
    bits = directory.numbers(258, (1,))
    samples = directory.number(277, len(bits))
    # one value for all samples is against the rules, and common
    depths = set(bits[:samples] if len(bits) >= samples else bits)
    depth = depths.pop() if len(depths) == 1 else None
    notes: list[str] = []
    if photometric < 0:
        photometric = RGB if samples >= 3 else BLACK_IS_ZERO
        notes.append("the TIFF names no photometric interpretation")
    mode = _MODES.get(photometric, "")
    why = _unsupported(directory, photometric, compression, samples, depth)
    if why:
        return Reading(None, why, notes, depth, mode, False)
    extra = samples - _COLOURS[photometric]
    kinds = directory.numbers(338)[:extra]
    if photometric == RGB and extra == 1 and not kinds:
        notes.append("the fourth sample is not described, taken for opacity")
        kinds = (UNASSOCIATED,)
    kinds = tuple(UNASSOCIATED if kind == _COREL_ALPHA else kind for kind in kinds)
    alphas = [place for place, kind in enumerate(kinds) if kind in (ASSOCIATED, UNASSOCIATED)]
    if extra > len(alphas[:1]):
        notes.append(f"{extra - len(alphas[:1])} extra samples are ignored")
        if _COLOURS[photometric] == 1 and not alphas and extra > 1:
            return Reading(None, f"a TIFF of {samples} bands that are no colours", notes, depth, mode, False)
    alpha = _COLOURS[photometric] + alphas[0] if alphas else None
    associated = bool(alphas) and kinds[alphas[0]] == ASSOCIATED
    if associated and photometric in (PALETTE, CMYK, YCBCR):
        return Reading(None, f"a {mode} TIFF with premultiplied opacity", notes, depth, mode, True)
    assert depth is not None, "channels of different depths were rejected"
    layout = _layout(directory, photometric, compression, samples, depth, alpha, associated)
    if alpha is not None and mode in ("L", "RGB", "P"):
        mode += "A"
    return Reading(layout, "", notes, depth, mode, alpha is not None)


def _unsupported(
    directory: Directory, photometric: int, compression: int, samples: int, depth: int | None
) -> str:
    """Return why the samples of a directory are not read here, or ""."""
    if photometric not in _COLOURS:
        return f"a TIFF of {_OTHER.get(photometric, f'photometric interpretation {photometric}')}"
    known = compression in (NONE, JPEG, *DEFLATE, *LIBTIFF)
    if not known:
        return f"a TIFF compressed by {_COMPRESSIONS.get(compression, f'method {compression}')}"
    if samples < _COLOURS[photometric]:
        raise PixelFault("corrupt", f"a {_MODES[photometric]} TIFF of {samples} samples per pixel")
    if samples > _MOST_SAMPLES:
        return f"a TIFF of {samples} samples per pixel"
    if depth is None:
        return "a TIFF whose samples differ in depth"
    formats = set(directory.numbers(339, (1,)))
    name = {2: "signed integers", 3: "floating-point values", 5: "complex integers", 6: "complex values"}
    for kind in sorted(formats - {1, 4}):
        return f"a TIFF of {depth}-bit {name.get(kind, f'values of format {kind}')}"
    if not 1 <= depth <= 16:
        return f"a TIFF of {depth}-bit integers"
    if compression in CCITT and (depth, samples) != (1, 1):
        return f"a fax-compressed TIFF of {depth} bits"
    return _unsupported_by_photometric(directory, photometric, compression, depth)


def _unsupported_by_photometric(directory: Directory, photometric: int, compression: int, depth: int) -> str:
    planar = directory.number(284, 1) == 2
    samples = directory.number(277, len(directory.numbers(258, (1,))))
    if compression == JPEG and not _is_plain_jpeg(photometric, samples, depth, planar):
        return f"a JPEG-compressed {_MODES[photometric]} TIFF of {samples} samples of {depth} bits"
    if photometric == PALETTE and depth > 8:
        return f"a palette TIFF of {depth} bits"
    if photometric == CMYK and directory.number(332, 1) != 1:
        return "a TIFF of other inks than CMYK"
    if photometric == YCBCR:
        if depth != 8 or planar:
            return f"a YCbCr TIFF of {depth} bits{' in separate planes' if planar else ''}"
        if compression != JPEG and not _is_plain_ycbcr(directory):
            return "a YCbCr TIFF with coefficients or a reference range of its own"
    predictor = directory.number(317, 1)
    if compression in PREDICTED and (predictor not in (1, 2) or (predictor == 2 and depth not in (8, 16))):
        return f"a TIFF of {depth} bits with predictor {predictor}"
    return ""


def _is_plain_jpeg(photometric: int, samples: int, depth: int, planar: bool) -> bool:
    """Whether a JPEG stream's components are exactly the colours."""
    if depth != 8 or photometric == PALETTE:
        return False
    return planar or samples == _COLOURS[photometric]


def _is_plain_ycbcr(directory: Directory) -> bool:
    """Whether coefficients are BT.601's and the range is full, as in JPEG."""
    coefficients = directory.rationals(529) or [0.299, 0.587, 0.114]
    reference = directory.rationals(532) or [0, 255, 128, 255, 128, 255]
    expected = [0.299, 0.587, 0.114, 0, 255, 128, 255, 128, 255]
    given = [*coefficients, *reference]
    return len(given) == 9 and all(abs(a - b) < 0.001 for a, b in zip(given, expected, strict=True))


def _layout(
    directory: Directory,
    photometric: int,
    compression: int,
    samples: int,
    bits: int,
    alpha: int | None,
    associated: bool,
) -> TiffLayout:
    width, height = directory.number(256, 0), directory.number(257, 0)
    tiled = 324 in directory
    if tiled:
        across, down = directory.number(322, 0), directory.number(323, 0)
    else:
        across, down = width, min(directory.number(278, height), height)
    if across < 1 or down < 1 or across * down > max(4 * width * height, _MOST_TILE):
        raise PixelFault(
            "corrupt", f"the TIFF has {'tiles' if tiled else 'strips'} of {across} x {down} pixels"
        )
    fractions = (1, 1)
    if photometric == YCBCR and compression != JPEG:
        given = directory.numbers(530, (2, 2))
        fractions = (given[0], given[1]) if len(given) == 2 else (0, 0)
        if not set(fractions) <= {1, 2, 4}:
            raise PixelFault("corrupt", f"the YCbCr TIFF is subsampled by {fractions}")
    return TiffLayout(
        width,
        height,
        across,
        down,
        tiled,
        samples,
        bits,
        photometric,
        compression,
        directory.number(284, 1) == 2 and samples > 1,
        directory.number(317, 1) if compression in PREDICTED else 1,
        directory.number(266, 1) == 2 and compression not in (JPEG, *CCITT),
        alpha,
        associated,
        fractions,
    )
