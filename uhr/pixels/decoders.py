"""Call the decoders: OpenCV for JPEG, PNG and WebP, a module of this package for each other format.

OpenCV's pixels are bitwise those of Pillow, in half the time. For a damaged image it and libjpeg return a
partly gray one and print a line on standard error, which is read here. Used by `decode.py` only.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from uhr.pixels import code_points, colour
from uhr.pixels.decoder_noise import LOGGED, captured, stable_text
from uhr.pixels.formats import bmp, gif, ico, jpeg, jpeg2000, netpbm, pillow_formats, png, qoi
from uhr.pixels.formats.isobmff import avif
from uhr.pixels.formats.jpeg import JpegFile
from uhr.pixels.formats.png import PngFile
from uhr.pixels.formats.tiff import pixels as tiff_pixels
from uhr.pixels.formats.webp import WebpFile
from uhr.pixels.planes import Planes
from uhr.pixels.types import LARGEST_PROFILE, FaultKind, FileBytes, Header, PixelFault

_FILES = {"JPEG": JpegFile, "PNG": PngFile, "WEBP": WebpFile}
"""Formats that OpenCV decodes. Each class prepares the bytes for the decoder and interprets what it
prints."""

_OWN: dict[str, Callable[[bytes, Header], Planes]] = {
    "AVIF": avif.planes,
    "BMP": bmp.planes,
    "GIF": gif.planes,
    "ICO": ico.planes,
    "JPEG2000": jpeg2000.planes,
    "PPM": netpbm.planes,
    "QOI": qoi.planes,
    "TIFF": tiff_pixels.planes,
}
"""Formats whose pixels and ICC profile are read by a module of this package."""

_LONGEST_SIDE = {"JPEG": jpeg.LONGEST_SIDE, "PNG": png.LONGEST_SIDE}


def decode_planes(data: bytes, header: Header) -> Planes:
    """Decode the whole image. Raises `PixelFault` and nothing else, whatever the bytes are."""
    try:
        return _decoded(data, header)
    except MemoryError:
        raise _no_memory() from None


def _decoded(data: bytes, header: Header) -> Planes:
    if header.unsupported:
        raise PixelFault("unsupported", header.unsupported)
    if header.format == "ICO" and ico.is_png(data):
        data, header = ico.largest(FileBytes(data, len(data))), replace(header, format="PNG")
    planes = _with_opencv(data, header) if header.format in _FILES else _alone(data, header)
    if planes.bgr.shape[:2] != (header.raw_height, header.raw_width):
        found = f"{planes.bgr.shape[1]} x {planes.bgr.shape[0]}"
        raise PixelFault(
            "corrupt", f"the header says {header.raw_width} x {header.raw_height}, found {found}"
        )
    if planes.alpha is not None and planes.alpha.min() == 255:
        planes.alpha = None
    _attach_colours(planes, data, header)
    if planes.conversion is None:
        planes.cmyk = None
    planes.notes = [stable_text(note) for note in (*header.notes, *planes.notes)]
    return planes


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Return a view of [H, W, ...] as it is displayed with EXIF orientation 1..8."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def _with_opencv(data: bytes, header: Header) -> Planes:
    import cv2

    longest = _LONGEST_SIDE.get(header.format)
    if longest is not None and max(header.raw_width, header.raw_height) > longest:
        size = f"{header.raw_width} x {header.raw_height}"
        limit = f"its decoder is limited to {longest:,} px a side"
        raise PixelFault("unsupported", f"the {header.format} has {size} px, {limit}")
    file = _FILES[header.format](data)
    with captured() as lines:
        pixels = _imdecode(file.decodable, header)
    if pixels is None or pixels.ndim != 3:
        raise _fault(file, header, lines)
    file.judge([line for line in lines if not line.startswith(LOGGED)])
    notes = [*file.notes, *(line for line in lines if line.startswith(LOGGED))]
    if pixels.dtype == np.uint16:
        pixels = np.right_shift(pixels, 8).astype(np.uint8)
    if pixels.shape[2] == 4:
        planes = Planes(cv2.cvtColor(pixels, cv2.COLOR_BGRA2BGR), alpha=pixels[..., 3], notes=notes)
    else:
        planes = Planes(pixels, notes=notes)
        if isinstance(file, PngFile) and file.key and header.mode == "L":
            planes.alpha = _colour_key(file, header, pixels)
    if header.has_icc:
        try:
            planes.profile = file.profile()
        except PixelFault as fault:
            planes.notes.append(f"ICC profile ignored: {fault.message}")
    return planes


def _imdecode(data: bytes, header: Header) -> np.ndarray | None:
    """Return BGR or BGRA, uint8 or uint16 [H, W, C]; None if OpenCV returns no image."""
    import cv2

    with_alpha = header.has_alpha and header.mode != "L"
    flags = cv2.IMREAD_UNCHANGED if with_alpha else cv2.IMREAD_COLOR
    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), flags | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error as error:
        raise _fault_of_opencv(error.err) from None


def _colour_key(file: PngFile, header: Header, pixels: np.ndarray) -> np.ndarray:
    """Return the alpha of a gray PNG with one transparent value, which OpenCV does not return."""
    import cv2

    depth = header.bit_depth or 8
    value = int.from_bytes(file.key[:2], "big") & (1 << depth) - 1
    if depth == 16:
        flags = cv2.IMREAD_GRAYSCALE | cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION
        with captured():
            gray = cv2.imdecode(np.frombuffer(file.decodable, np.uint8), flags)
    else:
        gray, value = pixels[..., 0], value * 255 // ((1 << depth) - 1)
    return np.where(gray == value, np.uint8(0), np.uint8(255))


def _alone(data: bytes, header: Header) -> Planes:
    """Decode by the module of the format; some of them call OpenCV."""
    import cv2

    try:
        return _OWN[header.format](data, header)
    except cv2.error as error:
        raise _fault_of_opencv(error.err) from None


def _attach_colours(planes: Planes, data: bytes, header: Header) -> None:
    """Set the ICC profile of the colours and the conversion from it to sRGB.

    The profile is the file's own, or equals its code points. One that cannot be used is dropped with a note.
    """
    if planes.profile is None and header.colour is not None and not header.has_icc:
        planes.profile = code_points.icc_profile(header.colour)
    if planes.profile is not None and len(planes.profile) > LARGEST_PROFILE:
        planes.notes.append(f"ICC profile ignored: it has more than {LARGEST_PROFILE >> 20} MiB")
        planes.profile = None
    if planes.profile is None:
        return
    curve = colour.hdr_curve(planes.profile)
    if curve:
        raise PixelFault("unsupported", curve)
    mode = {"L": "L", "LA": "L", "CMYK": "CMYK"}.get(header.mode, "RGB")
    conversion = colour.conversion(planes.profile, mode)
    if conversion.note:
        planes.notes.append(conversion.note)
        planes.profile = None
    elif conversion.transform is not None:
        if mode == "CMYK" and planes.cmyk is None:
            planes.cmyk = _cmyk(data)
        planes.conversion = conversion


def _cmyk(data: bytes) -> np.ndarray:
    """Return the CMYK values of a JPEG, uint8 [H, W, 4], which OpenCV does not return."""
    image = pillow_formats.open_image(io.BytesIO(JpegFile(data).without_metadata()), ("JPEG",))
    return np.array(pillow_formats.load(image))


def _no_memory() -> PixelFault:
    return PixelFault("too large", "the memory does not suffice to decode it")


def _fault_of_opencv(message: str) -> PixelFault:
    """Return the fault for an exception of OpenCV."""
    if "llocate" in message or "nsufficient memory" in message:
        return _no_memory()
    if "CV_IO_MAX_IMAGE" in message:
        limit = "see CV_IO_MAX_IMAGE_PIXELS in the documentation of OpenCV"
        return PixelFault("unsupported", f"more pixels than OpenCV decodes ({message}; {limit})")
    return PixelFault("corrupt", f"the decoder gave up ({message})")


def _fault(file: JpegFile | PngFile | WebpFile, header: Header, lines: list[str]) -> PixelFault:
    """Return the fault for a file without an image from OpenCV: it is truncated, unsupported or damaged."""
    printed = "; ".join(lines)
    if "llocate" in printed or "CV_IO_MAX_IMAGE" in printed:
        # older versions print what newer ones raise
        return _fault_of_opencv(printed)
    kind: FaultKind = "corrupt"
    if file.truncated:
        kind = "truncated"
    elif "nsupported" in printed:
        kind = "unsupported"
    what = {"truncated": "ends before the image does", "unsupported": "is in a variant not read here"}
    return PixelFault(
        kind, f"the {header.format} {what.get(kind, 'is damaged')}{printed and f' ({printed})'}"
    )
