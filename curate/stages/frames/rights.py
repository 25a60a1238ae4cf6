"""What the image file itself says of its maker and its rights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from uhr.curate.frame import Frame
from uhr.curate.stage import FrameStage
from uhr.manifests.schema import Column


def _text(name: str, meaning: str, range: str = "", source: str = "") -> Column:
    return Column(name, pa.string(), meaning, range=range, source=source, stage="rights")


EMBEDDED_LICENSE = _text(
    "embedded_license",
    "the licence that the file contains in XMP: cc:license, dcterms:license, xmpRights:WebStatement or "
    "xmpRights:UsageTerms, the first that there is",
)


class RightsStage(FrameStage):
    """Reads XMP, IPTC and EXIF in the file's own segments. All columns are null for a file without them;
    damaged metadata do not fail the image.
    """

    name = "rights"
    inherited = True
    adds = (
        _text(
            "embedded_creator", "who made the image: dc:creator of XMP, else the by-line of IPTC, else EXIF"
        ),
        _text("embedded_copyright", "the copyright notice: dc:rights of XMP, else IPTC, else EXIF"),
        EMBEDDED_LICENSE,
        _text(
            "data_mining",
            "what the file says of data mining: the word of PLUS Data Mining in XMP, or `tdm-reservation: 1`",
            "DMI-ALLOWED, DMI-PROHIBITED, DMI-PROHIBITED-AIMLTRAINING, ...",
            "IPTC Photo Metadata 2023.1; TDM Reservation Protocol",
        ),
        _text(
            "digital_source_type",
            "how the image came to be, as the file says in XMP",
            "digitalCapture, trainedAlgorithmicMedia, ...",
            "IPTC Digital Source Type NewsCodes",
        ),
        Column("c2pa", pa.bool_(), "whether there is a C2PA manifest; it is not verified", stage="rights"),
        _text("rights_fault", "which metadata of the file are damaged; null where none are"),
    )

    def annotate(self, frame: Frame) -> Mapping[str, Any]:
        from uhr.pixels.embedded.rights import embedded_rights

        found = embedded_rights(frame.data, frame.header.format)
        return {
            "embedded_creator": found.creator,
            "embedded_copyright": found.copyright,
            "embedded_license": found.license,
            "data_mining": found.data_mining,
            "digital_source_type": found.source_type,
            "c2pa": found.c2pa,
            "rights_fault": found.fault,
        }
