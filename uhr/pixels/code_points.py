"""Colour spaces that a file specifies by numbers instead of an ICC profile, and the equal ICC profile of
each.

Numbers are the code points of ITU-T H.273 (AVIF's `nclx`, PNG's `cICP`), chromaticities with a gamma (PNG's
`cHRM` and `gAMA`, TIFF), or a well-known name (Adobe RGB in EXIF). The rules, which docs/decisions/0002
states for users:

- Display curves are inverted: sRGB (13), gamma 2.2 (4), gamma 2.8 (5), linear (8).
- Camera curves (BT.709, BT.601, SMPTE 240M, BT.1361, xvYCC, BT.2020) are read as the sRGB curve, as in web
  browsers, with a note: such images are prepared on a display, and the inverse of a camera's curve is not a
  display's.
- The HDR curves PQ (16) and HLG (18), and curves without an agreed 8-bit rendering, are unsupported.
- Unspecified (2) is sRGB; reserved numbers are read as sRGB, with a note.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

Chromaticities = tuple[float, float, float, float, float, float, float, float]
"""CIE 1931 x and y of white, red, green and blue, in this order."""

_D65, _C, _E = (0.3127, 0.3290), (0.310, 0.316), (1 / 3, 1 / 3)
_BT709 = (0.640, 0.330, 0.300, 0.600, 0.150, 0.060)
_SMPTE170M = (0.630, 0.340, 0.310, 0.595, 0.155, 0.070)

SRGB: Chromaticities = (*_D65, *_BT709)

PRIMARIES: dict[int, Chromaticities] = {
    1: SRGB,
    4: (*_C, 0.67, 0.33, 0.21, 0.71, 0.14, 0.08),
    5: (*_D65, 0.64, 0.33, 0.29, 0.60, 0.15, 0.06),
    6: (*_D65, *_SMPTE170M),
    7: (*_D65, *_SMPTE170M),
    8: (*_C, 0.681, 0.319, 0.243, 0.692, 0.145, 0.049),
    9: (*_D65, 0.708, 0.292, 0.170, 0.797, 0.131, 0.046),
    10: (*_E, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0),
    11: (0.314, 0.351, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
    12: (*_D65, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
    22: (*_D65, 0.630, 0.340, 0.295, 0.605, 0.155, 0.077),
}
"""ColourPrimaries of ITU-T H.273, table 2."""

_CAMERA_CURVES = {1: "BT.709", 6: "BT.601", 7: "SMPTE 240M", 11: "xvYCC", 12: "BT.1361"} | dict.fromkeys(
    (14, 15), "BT.2020"
)
_GAMMAS = {4: 2.2, 5: 2.8, 8: 1.0}
_UNSUPPORTED_CURVES = {
    9: "the logarithmic transfer curve 9",
    10: "the logarithmic transfer curve 10",
    16: "the HDR transfer curve PQ (SMPTE ST 2084)",
    17: "the cinema transfer curve SMPTE ST 428-1",
    18: "the HDR transfer curve HLG (ARIB STD-B67)",
}
_UNSPECIFIED = 2

_SAME_CHROMATICITY = 0.001
_SAME_GAMMA = 0.05
"""Relative to 2.2: libpng's threshold, below which it does not change pixels."""


@dataclass(frozen=True, slots=True)
class ColourSpace:
    """An additive RGB space: `chromaticities`, and the exponent `gamma` of its display curve; None is the
    sRGB curve.
    """

    chromaticities: Chromaticities
    gamma: float | None = None


ADOBE_RGB = ColourSpace((*_D65, 0.64, 0.33, 0.21, 0.71, 0.15, 0.06), 563 / 256)
"""Adobe RGB (1998), section 4.3.4."""


class ColourTags(NamedTuple):
    """The meaning of a file's numbers.

    `space` is None for sRGB. `note` describes what was ignored, `unsupported` why correct sRGB pixels cannot
    be computed.
    """

    space: ColourSpace | None = None
    note: str = ""
    unsupported: str = ""


def from_code_points(primaries: int, transfer: int, source: str) -> ColourTags:
    """Return the meaning of two code points of H.273; `source` ("cICP", "nclx") is the subject of
    messages."""
    if transfer in _UNSUPPORTED_CURVES:
        return ColourTags(
            unsupported=f"{source} names {_UNSUPPORTED_CURVES[transfer]}, which sRGB cannot show"
        )
    notes = []
    points = PRIMARIES.get(primaries, SRGB)
    if primaries not in PRIMARIES and primaries != _UNSPECIFIED:
        notes.append(f"colour primaries {primaries} are not defined, taken as sRGB's")
    gamma = _GAMMAS.get(transfer)
    if transfer in _CAMERA_CURVES:
        notes.append(f"the {_CAMERA_CURVES[transfer]} camera curve is taken as the sRGB curve")
    elif gamma is None and transfer not in (13, _UNSPECIFIED):
        notes.append(f"transfer curve {transfer} is not defined, taken as sRGB's")
    space = None if points == SRGB and gamma is None else ColourSpace(points, gamma)
    return ColourTags(space, f"{source}: {'; '.join(notes)}" if notes else "")


def from_chromaticities(given: Chromaticities | None, gamma: float | None, source: str) -> ColourTags:
    """Return the meaning of chromaticities and a display gamma; sRGB's replace those that are None.

    sRGB's primaries with a gamma of 2.2 are sRGB, since that is what their writers mean.
    """
    if gamma is not None and not 0.1 <= gamma <= 10:
        return ColourTags(note=f"{source} ignored: a gamma of {gamma:g}")
    if given is not None and not _spans_a_gamut(given):
        return ColourTags(note=f"{source} ignored: its chromaticities span no gamut")
    if given is None or _close(given, SRGB):
        if gamma is None or abs(gamma / 2.2 - 1) <= _SAME_GAMMA:
            return ColourTags()
        given = SRGB
    return ColourTags(ColourSpace(given, gamma))


def chromaticities(values: Sequence[float]) -> Chromaticities:
    """Return the chromaticities of eight numbers in the order of `Chromaticities`."""
    wx, wy, rx, ry, gx, gy, bx, by = values
    return wx, wy, rx, ry, gx, gy, bx, by


def _close(one: Chromaticities, other: Chromaticities) -> bool:
    return max(abs(a - b) for a, b in zip(one, other, strict=True)) <= _SAME_CHROMATICITY


def _spans_a_gamut(chromaticities: Chromaticities) -> bool:
    """Whether the primaries span a triangle, whose white weights are positive."""
    wx, wy, rx, ry, gx, gy, bx, by = chromaticities
    if wy <= 0 or any(abs(value) > 2 for value in chromaticities):
        return False
    area = (gx - rx) * (by - ry) - (bx - rx) * (gy - ry)
    if abs(area) < 1e-4:
        return False
    # white inside the triangle: its barycentric coordinates, all of one sign with the area
    first = (gx - wx) * (by - wy) - (bx - wx) * (gy - wy)
    second = (bx - wx) * (ry - wy) - (rx - wx) * (by - wy)
    third = (rx - wx) * (gy - wy) - (gx - wx) * (ry - wy)
    return all(part / area > 0 for part in (first, second, third))


def icc_profile(space: ColourSpace) -> bytes:
    """Return an ICC profile (version 4.3, matrix and curves) of the space.

    White is adapted to D50 by the Bradford transform, as ICC.1:2010 annex E requires.
    """
    import numpy as np

    wx, wy, *primaries = space.chromaticities
    white = np.array([wx / wy, 1.0, (1 - wx - wy) / wy])
    # columns: x, y, z of each primary, scaled so that their sum is white
    columns = np.array([[x, y, 1 - x - y] for x, y in zip(primaries[::2], primaries[1::2], strict=True)]).T
    matrix = columns * np.linalg.solve(columns, white)
    bradford = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
    d50 = np.array([0.9642, 1.0, 0.8249])
    adapt = np.linalg.solve(bradford, (bradford @ d50 / (bradford @ white))[:, None] * bradford)
    red, green, blue = (adapt @ matrix).T
    curve = _curve(space.gamma)
    tags = [
        (b"desc", _text("RGB space named by code points")),
        (b"cprt", _text("no copyright, use freely")),
        (b"wtpt", b"XYZ \0\0\0\0" + _fixed(*d50)),
        (b"chad", b"sf32\0\0\0\0" + _fixed(*adapt.ravel())),
        *(
            (kind, b"XYZ \0\0\0\0" + _fixed(*v))
            for kind, v in ((b"rXYZ", red), (b"gXYZ", green), (b"bXYZ", blue))
        ),
        *((kind, curve) for kind in (b"rTRC", b"gTRC", b"bTRC")),
    ]
    table, body = struct.pack(">I", len(tags)), b""
    start = 128 + 4 + 12 * len(tags)
    for kind, value in tags:
        table += kind + struct.pack(">II", start + len(body), len(value))
        body += value.ljust(-(-len(value) // 4) * 4, b"\0")
    size = start + len(body)
    head = struct.pack(">I4xI", size, 0x04300000) + b"mntrRGB XYZ " + struct.pack(">6H", 2024, 1, 1, 0, 0, 0)
    head += b"acsp" + bytes(28) + _fixed(*d50)
    return head.ljust(128, b"\0") + table + body


def _curve(gamma: float | None) -> bytes:
    """Return a parametricCurveType: an exponent, or the curve of IEC 61966-2-1."""
    if gamma is not None:
        return b"para\0\0\0\0\0\0\0\0" + _fixed(gamma)
    return b"para\0\0\0\0\0\3\0\0" + _fixed(2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)


def _fixed(*values: float) -> bytes:
    """Encode numbers as s15Fixed16Number."""
    return struct.pack(f">{len(values)}i", *(round(float(value) * 65536) for value in values))


def _text(text: str) -> bytes:
    """Return a multiLocalizedUnicodeType of one language."""
    data = text.encode("utf-16-be")
    return b"mluc\0\0\0\0" + struct.pack(">II", 1, 12) + b"enUS" + struct.pack(">II", len(data), 28) + data
