"""Maker, copyright, licence and reservations that are embedded in an image file."""

from __future__ import annotations

from dataclasses import dataclass

from uhr.pixels import exif
from uhr.pixels.embedded import iptc, xmp
from uhr.pixels.embedded.blocks import Blocks, blocks_of

_DC = "http://purl.org/dc/elements/1.1/"
_TERMS = "http://purl.org/dc/terms/"
_CC = "http://creativecommons.org/ns#"
_XMP_RIGHTS = "http://ns.adobe.com/xap/1.0/rights/"
_PLUS = "http://ns.useplus.org/ldf/xmp/1.0/"
_IPTC_EXT = "http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
_TDM = "http://www.w3.org/ns/tdmrep/"

LICENSES = (
    f"{_CC}license",
    f"{_TERMS}license",
    f"{_XMP_RIGHTS}WebStatement",
    f"{_XMP_RIGHTS}UsageTerms",
)
"""Properties that name a licence, from the most to the least exact."""

_ARTIST, _COPYRIGHT = 315, 33432


@dataclass(frozen=True)
class EmbeddedRights:
    """What a file says of its rights; None where it says nothing.

    creator, copyright: of XMP (dc:creator, dc:rights), else IPTC (2:80, 2:116), else EXIF (315, 33432) or the
    texts of a PNG. license: a URL or text of XMP. data_mining: PLUS Data Mining (IPTC Photo Metadata 2023.1)
    as a word such as DMI-PROHIBITED, or `tdm-reservation: 1`. source_type: the IPTC digital source type, such
    as trainedAlgorithmicMedia. c2pa: whether there is a C2PA manifest; it is not verified. fault: which
    blocks are damaged.
    """

    creator: str | None
    copyright: str | None
    license: str | None
    data_mining: str | None
    source_type: str | None
    c2pa: bool
    fault: str | None


def embedded_rights(data: bytes, format: str) -> EmbeddedRights:
    """Read the rights in the bytes of a file, whose format is one of `headers.FORMATS`. Raises nothing."""
    blocks = blocks_of(data, format)
    found = _properties(blocks)
    sets = iptc.datasets(blocks.iptc)
    tags = exif.texts(blocks.exif, (_ARTIST, _COPYRIGHT))
    creator = (
        found.get(f"{_DC}creator")
        or sets.get(iptc.CREATOR)
        or _one(tags.get(_ARTIST) or blocks.texts.get("Author"))
    )
    rights = (
        found.get(f"{_DC}rights", [])[:1]
        or sets.get(iptc.COPYRIGHT)
        or _one(tags.get(_COPYRIGHT) or blocks.texts.get("Copyright"))
    )
    return EmbeddedRights(
        _joined(creator),
        _joined(rights),
        next((found[name][0] for name in LICENSES if found.get(name)), None),
        _data_mining(found),
        _last_part(found.get(f"{_IPTC_EXT}DigitalSourceType")),
        blocks.c2pa,
        "; ".join(blocks.faults) or None,
    )


def _properties(blocks: Blocks) -> dict[str, list[str]]:
    if not blocks.xmp:
        return {}
    try:
        return xmp.properties(blocks.xmp)
    except xmp.XmpFault as fault:
        blocks.faults.append(f"XMP: {fault}")
        return {}


def _data_mining(found: dict[str, list[str]]) -> str | None:
    if (stated := _last_part(found.get(f"{_PLUS}DataMining"))) is not None:
        return stated
    return "tdm-reservation: 1" if found.get(f"{_TDM}reservation") == ["1"] else None


def _last_part(values: list[str] | None) -> str | None:
    """The word at the end of a term's URL."""
    return values[0].rstrip("/").rpartition("/")[2] if values else None


def _one(value: str | None) -> list[str]:
    return [value] if value else []


def _joined(values: list[str] | None) -> str | None:
    return "; ".join(value for value in values or () if value) or None
