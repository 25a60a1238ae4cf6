"""What a file says of its rights is found in each format, wherever its writer puts it."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from uhr.pixels.embedded.blocks import C2PA_UUID
from uhr.pixels.embedded.rights import EmbeddedRights, embedded_rights
from uhr.pixels.headers import FORMATS

XMP = """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about="" xmlns:plus="http://ns.useplus.org/ldf/xmp/1.0/"
    plus:DataMining="http://ns.useplus.org/ldf/vocab/DMI-PROHIBITED-AIMLTRAINING"/>
  <rdf:Description rdf:about="" xmlns:dc="http://purl.org/dc/elements/1.1/"
    xmlns:cc="http://creativecommons.org/ns#" xmlns:xmpRights="http://ns.adobe.com/xap/1.0/rights/"
    xmlns:ext="http://iptc.org/std/Iptc4xmpExt/2008-02-29/">
   <dc:creator><rdf:Seq><rdf:li>Ada Løvelace</rdf:li><rdf:li>Grace Hopper</rdf:li></rdf:Seq></dc:creator>
   <dc:rights><rdf:Alt><rdf:li xml:lang="de">Rechte &amp; Pflichten</rdf:li>
     <rdf:li xml:lang="x-default">© 2026 Ada</rdf:li></rdf:Alt></dc:rights>
   <xmpRights:WebStatement>https://example.org/terms</xmpRights:WebStatement>
   <cc:license rdf:resource="http://creativecommons.org/licenses/by/4.0/"/>
   <ext:DigitalSourceType>http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia</ext:DigitalSourceType>
   <ext:LocationShown><rdf:Bag><rdf:li rdf:parseType="Resource"><dc:creator>nobody</dc:creator></rdf:li>
     </rdf:Bag></ext:LocationShown>
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
<?xpacket end="w"?>""".encode()

STATED = EmbeddedRights(
    "Ada Løvelace; Grace Hopper",
    "© 2026 Ada",
    "http://creativecommons.org/licenses/by/4.0/",
    "DMI-PROHIBITED-AIMLTRAINING",
    "trainedAlgorithmicMedia",
    False,
    None,
)
NOTHING = EmbeddedRights(None, None, None, None, None, False, None)

IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (24, 32, 3), np.uint8))


def jumbf(label: bytes = b"c2pa") -> bytes:
    """A JUMBF superbox with its description box, as a C2PA manifest store begins."""
    kind = label + b"\0\x11\0\x10\x80\0\0\xaa\0\x38\x9b\x71"
    description = struct.pack(">I4s", 8 + 16 + 1 + len(label) + 1, b"jumd") + kind + b"\3" + label + b"\0"
    return struct.pack(">I4s", 8 + len(description), b"jumb") + description


def encoded(format: str, **options) -> bytes:
    buffer = io.BytesIO()
    IMAGE.save(buffer, format, **options)
    return buffer.getvalue()


def segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def jpeg(*segments: bytes) -> bytes:
    plain = encoded("JPEG")
    return plain[:2] + b"".join(segments) + plain[2:]


def png(*chunks: tuple[bytes, bytes], late: bool = False) -> bytes:
    plain = encoded("PNG")
    made = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
    at = len(plain) - 12 if late else 33
    return plain[:at] + made + plain[at:]


def webp(*chunks: tuple[bytes, bytes]) -> bytes:
    plain = encoded("WEBP")
    made = b"".join(k + struct.pack("<I", len(d)) + d + b"\0" * (len(d) % 2) for k, d in chunks)
    return plain[:4] + struct.pack("<I", len(plain) - 8 + len(made)) + plain[8:] + made


def photoshop(iptc: bytes) -> bytes:
    other = b"8BIM" + struct.pack(">H", 0x03ED) + b"\5hello" + struct.pack(">I", 3) + b"abc\0"
    return other + b"8BIM" + struct.pack(">H", 0x0404) + b"\0\0" + struct.pack(">I", len(iptc)) + iptc


def iptc(creator: bytes, notice: bytes, coding: bytes = b"") -> bytes:
    sets = [(1, 90, coding)] if coding else []
    sets += [(2, 80, creator), (2, 80, b"B"), (2, 116, notice)]
    return b"".join(struct.pack(">BBBH", 0x1C, r, n, len(v)) + v for r, n, v in sets)


def exif_block(order: str) -> bytes:
    """A TIFF structure with artist and copyright."""
    texts = [(315, b"Ada\0"), (33432, "© Ada\0".encode())]
    data = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8)
    data += struct.pack(f"{order}H", len(texts))
    at = 8 + 2 + 12 * len(texts) + 4
    for tag, text in texts:
        place = text.ljust(4, b"\0") if len(text) <= 4 else struct.pack(f"{order}I", at)
        data += struct.pack(f"{order}HHI", tag, 2, len(text)) + place
    return data + struct.pack(f"{order}I", 0) + texts[1][1]


XMP_FILES = {
    "JPEG": jpeg(segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + XMP)),
    "PNG": png((b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP)),
    "PNG after its image": png((b"iTXt", b"XML:com.adobe.xmp\0\0\0en\0\0" + XMP), late=True),
    "PNG, compressed": png((b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(XMP))),
    "PNG of ImageMagick": png(
        (
            b"zTXt",
            b"Raw profile type xmp\0\0" + zlib.compress(b"\nxmp\n%8d\n" % len(XMP) + XMP.hex().encode()),
        )
    ),
    "WEBP": webp((b"XMP ", XMP)),
    "TIFF": encoded("TIFF", tiffinfo={700: XMP}),
    "AVIF": encoded("AVIF", xmp=XMP),
    "JPEG of Pillow": encoded("JPEG", xmp=XMP),
    "WEBP of Pillow": encoded("WEBP", xmp=XMP),
}


@pytest.mark.parametrize("name", XMP_FILES)
def test_xmp_is_read_from_every_format(name):
    assert embedded_rights(XMP_FILES[name], name.partition(",")[0].split()[0]) == STATED


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF", "GIF", "BMP"])
def test_a_file_that_says_nothing_has_no_values(format):
    assert embedded_rights(encoded(format), format) == NOTHING


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("JPEG", jpeg(segment(0xEB, b"JP\0\1\0\0\0\1" + jumbf()))),
        ("PNG", png((b"caBX", jumbf()))),
        ("WEBP", webp((b"C2PA", jumbf()))),
        ("TIFF", encoded("TIFF", tiffinfo={52545: jumbf()})),
        ("AVIF", encoded("AVIF") + struct.pack(">I4s", 24 + 4, b"uuid") + C2PA_UUID + b"\0\0\0\0"),
    ],
)
def test_a_c2pa_manifest_is_seen(name, data):
    assert embedded_rights(data, name) == EmbeddedRights(None, None, None, None, None, True, None)


def test_another_jumbf_box_is_no_c2pa_manifest():
    assert not embedded_rights(jpeg(segment(0xEB, b"JP\0\1\0\0\0\1" + jumbf(b"json"))), "JPEG").c2pa


@pytest.mark.parametrize(
    ("creator", "coding", "text"),
    [("Løv".encode(), b"\x1b%G", "Løv; B"), ("Løv".encode(), b"", "Løv; B"), (b"L\xf8v", b"", "Løv; B")],
)
def test_iptc_is_read_in_the_coding_that_it_has(creator, coding, text):
    block = iptc(creator, b"all rights", coding)
    resources = photoshop(block)
    half = len(resources) // 2
    split = [b"Photoshop 3.0\0" + part for part in (resources[:half], resources[half:])]
    magick = b"\niptc\n%8d\n" % len(resources) + resources.hex().encode()
    for name, data in (
        ("JPEG", jpeg(*(segment(0xED, each) for each in split))),
        ("TIFF", encoded("TIFF", tiffinfo={33723: block})),
        ("TIFF", encoded("TIFF", tiffinfo={34377: resources})),
        ("PNG", png((b"tEXt", b"Raw profile type iptc\0" + magick))),
    ):
        found = embedded_rights(data, name)
        assert (found.creator, found.copyright, found.fault) == (text, "all rights", None)


@pytest.mark.parametrize("order", ["<", ">"])
def test_exif_and_texts_are_read_where_nothing_else_is(order):
    block = exif_block(order)
    info = PngInfo()
    info.add_text("Author", "Ada")
    info.add_itxt("Copyright", "© Ada")
    for name, data in (
        ("JPEG", jpeg(segment(0xE1, b"Exif\0\0" + block))),
        ("PNG", png((b"eXIf", block))),
        ("PNG", encoded("PNG", pnginfo=info)),
        ("WEBP", webp((b"EXIF", block))),
        ("TIFF", encoded("TIFF", tiffinfo={315: "Ada", 33432: "© Ada".encode()})),
    ):
        found = embedded_rights(data, name)
        assert (found.creator, found.copyright, found.fault) == ("Ada", "© Ada", None), name
    both = jpeg(segment(0xE1, b"Exif\0\0" + block), segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + XMP))
    assert embedded_rights(both, "JPEG") == STATED, "XMP goes before EXIF"


@pytest.mark.parametrize(
    ("packet", "fault"),
    [
        (XMP.replace(b"</rdf:RDF>", b""), "not well-formed"),
        (XMP.replace(b"<x:xmpmeta", b'<!DOCTYPE x [<!ENTITY a "b">]><x:xmpmeta'), "document type"),
        (b"<a>" * 100 + b"</a>" * 100, "nested more than"),
        (b"\xff\xfe\0", "not well-formed"),
    ],
)
def test_a_damaged_packet_is_a_fault_in_the_row_and_not_of_the_image(packet, fault):
    found = embedded_rights(png((b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + packet)), "PNG")
    assert found.fault is not None
    assert fault in found.fault
    assert found.creator is None


def test_a_machine_readable_reservation_is_data_mining_too():
    packet = b"""<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"
      xmlns:tdm="http://www.w3.org/ns/tdmrep/"><rdf:Description tdm:reservation="1"/></rdf:RDF>"""
    data = webp((b"XMP ", packet))
    assert embedded_rights(data, "WEBP").data_mining == "tdm-reservation: 1"


@given(st.sampled_from(sorted(XMP_FILES)), st.integers(0, 10_000), st.binary(max_size=8), st.booleans())
def test_damaged_files_raise_nothing(name, at, new, cut):
    data = XMP_FILES[name]
    at %= len(data)
    damaged = data[:at] if cut else data[:at] + new + data[at + len(new) :]
    assert isinstance(embedded_rights(damaged, name.partition(",")[0].split()[0]), EmbeddedRights)


@given(st.sampled_from(FORMATS), st.binary(max_size=400))
def test_any_bytes_raise_nothing(format, data):
    assert isinstance(embedded_rights(data, format), EmbeddedRights)
