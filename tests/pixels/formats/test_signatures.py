"""`not an image` is only what no signature claims; a known format that is not read is named."""

import struct

import pytest

from uhr.pixels.decode import decode
from uhr.pixels.headers import read_header
from uhr.pixels.types import PixelFault


def fault_of(data: bytes) -> PixelFault:
    with pytest.raises(PixelFault) as caught:
        read_header(data)
    return caught.value


def media(brand: bytes, compatible: bytes = b"") -> bytes:
    """A file of the ISO base media format with these brands."""
    return struct.pack(">I", 16 + len(compatible)) + b"ftyp" + brand + bytes(4) + compatible + bytes(300)


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (media(b"heic", b"mif1heic"), "HEIC"),
        (media(b"mif1"), "HEIF"),
        (media(b"crx ", b"crx isom"), "camera raw"),
        (media(b"isom", b"isomiso2avc1mp41"), "video"),
        (media(b"qt  "), "video"),
        (media(b"M4A "), "M4A"),
        (b"\xff\x0a" + bytes(50), "JPEG XL"),
        (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(50), "JPEG XL"),
        (b"\xff\xd8\xff\xf7" + bytes(50), "JPEG-LS"),
        (b"II\xbc\x01" + bytes(50), "JPEG XR"),
        (b"8BPS\0\1" + bytes(50), "Photoshop"),
        (b"8BPS\0\2" + bytes(50), "Photoshop"),
        (b"v/1\x01\2\0\0\0", "OpenEXR"),
        (b"DDS \x7c\0\0\0", "DirectDraw"),
        (b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n", "Radiance"),
        (b"#?RGBE\n", "Radiance"),
        (b"SIMPLE  =                    T", "FITS"),
        (b"\x0a\x05\x01\x08" + bytes(124), "PCX"),
        (b"\x01\xda\x01\x01" + bytes(500), "SGI"),
        (b"\x59\xa6\x6a\x95" + bytes(50), "Sun raster"),
        (b"icns" + bytes(50), "icon"),
        (b"gimp xcf v011\0", "GIMP"),
        (b"SDPX" + bytes(50), "DPX"),
        (b"\x80\x2a\x5f\xd7" + bytes(50), "Cineon"),
        (b"\xabKTX 20\xbb\r\n\x1a\n", "KTX"),
        (b"BPG\xfb" + bytes(20), "BPG"),
        (b"FLIF" + bytes(20), "FLIF"),
        (b"farbfeld" + bytes(20), "farbfeld"),
        (b"\x8aMNG\r\n\x1a\n" + bytes(20), "MNG"),
        (b"\x8bJNG\r\n\x1a\n" + bytes(20), "JNG"),
        (bytes(128) + b"DICM", "DICOM"),
        (b"AT&TFORM" + bytes(20), "DjVu"),
        (b"FORM\0\0\0\x40ILBM", "ILBM"),
        (b"RIFF\x40\0\0\0AVI LIST", "video"),
        (b"\x1a\x45\xdf\xa3" + bytes(20), "video"),
        (b"\0\0\0\x20moov" + bytes(30), "video"),
        (b"II*\0\x10\0\0\0CR\2\0" + bytes(50), "camera raw"),
        (b"FUJIFILMCCD-RAW 0201", "camera raw"),
        (b"IIRO\x08\0\0\0", "camera raw"),
        (b"IIU\0\x18\0\0\0", "camera raw"),
        (b"\0MRM" + bytes(20), "camera raw"),
        (b"FOVb" + bytes(20), "camera raw"),
        (b"P7\nWIDTH 1\n", "PAM"),
        (b"Pf\n1 1\n-1.0\n", "PFM"),
        (b"%PDF-1.7\n", "PDF"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "PostScript"),
        (b"\xc5\xd0\xd3\xc6" + bytes(20), "EPS"),
        (b"<svg/>", "SVG"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"\xef\xbb\xbf<?xml version='1.0'?>\n<!-- a comment -->\n<svg viewBox='0 0 1 1'/>", "SVG"),
        (b"\n <!DOCTYPE svg PUBLIC '-//W3C//DTD SVG 1.1//EN' ''>\n<svg/>", "SVG"),
    ],
)
def test_a_known_format_that_is_not_read_is_unsupported_and_named(data, name) -> None:
    fault = fault_of(data)
    assert fault.kind == "unsupported", fault
    assert name in fault.message


@pytest.mark.parametrize(
    "data",
    [
        b"hello world",
        b"P3 is not the plan",
        b"P5 is a pentagon",
        b"BM is a text, as good as any other one",
        b"<!DOCTYPE html><html><body>404</body></html>",
        b"<?xml version='1.0'?><rss><item>no drawing</item></rss>",
        b'{"a": 1}',
        b"PK\x03\x04" + bytes(50),
        b"\n\n\n\n and a text behind empty lines",
        b"#?/bin/sh\n",
        bytes(1000),
        b"\0\0\1\0\0\0" + bytes(20),
        b"RIFF\x24\0\0\0WAVEfmt ",
        b"\xff\xfb\x90\x44" + bytes(50),
    ],
)
def test_what_no_signature_claims_is_not_an_image(data) -> None:
    assert fault_of(data).kind == "not an image"


@pytest.mark.parametrize(
    "format", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "AVIF", "JPEG2000", "QOI", "BMP", "PPM", "ICO"]
)
def test_every_cut_of_a_header_is_truncated_once_the_signature_is_known(forge, format) -> None:
    data = forge.encode(forge.image(40, 30), format)
    few = {"BMP": 10, "PPM": 3, "ICO": 6, "WEBP": 4, "AVIF": 8, "QOI": 4, "GIF": 4, "JPEG2000": 4}.get(
        format, 4
    )
    for keep in range(few, 16):
        with pytest.raises(PixelFault) as caught:
            decode(data[:keep])
        assert caught.value.kind == "truncated", keep
