"""The decoders at work: OpenCV for JPEG, PNG and WebP, Pillow for the rest, and why one of them gave nothing.

OpenCV gives to the bit what Pillow gives, in half the time. It and libjpeg leave a damaged picture partly
gray with no more than a line on standard error: that line is read here. Used by `decode.py` alone.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from uhr.pixels import code_points, colour, pillow_formats
from uhr.pixels.decoder_noise import captured
from uhr.pixels.planes import Planes
from uhr.pixels.types import FaultKind, Header, PixelFault


def decode_planes(data: bytes, header: Header) -> Planes:
    """The whole image. Raises `PixelFault` and nothing else, whatever the bytes are."""
    if header.unsupported:
        raise PixelFault("unsupported", header.unsupported)
    with captured() as noise:
        if header.format in ("JPEG", "PNG", "WEBP"):
            planes = _with_opencv(data, header)
        else:
            planes = _with_pillow(data, header)
    if planes is None:
        raise _fault(data, header, noise)
    _check_noise(noise)
    planes.notes += [*header.notes, *noise]
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
    return planes


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """A view of [H, W, ...] as EXIF orientation 1..8 says it is to be displayed."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def _with_opencv(data: bytes, header: Header) -> Planes | None:
    """None where OpenCV gives no picture."""
    import cv2

    wants_alpha = header.has_alpha and header.mode != "L"
    flags = cv2.IMREAD_UNCHANGED if wants_alpha else cv2.IMREAD_COLOR
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error as error:
        if error.code == cv2.Error.StsNoMem:
            raise PixelFault("too large", "the memory does not suffice to decode it") from None
        raise PixelFault("corrupt", f"the decoder gave up ({error.err})") from None
    if pixels is None or pixels.ndim != 3:
        return None
    if pixels.dtype == np.uint16:
        pixels = np.right_shift(pixels, 8).astype(np.uint8)
    if pixels.shape[2] == 4:
        return Planes(cv2.cvtColor(pixels, cv2.COLOR_BGRA2BGR), alpha=pixels[..., 3])
    planes = Planes(pixels)
    if header.has_alpha:
        _add_colour_key(planes, data, header)
    return planes


def _add_colour_key(planes: Planes, data: bytes, header: Header) -> None:
    """Transparency of a gray PNG's colour key, which OpenCV does not give."""
    if header.bit_depth == 16:
        planes.notes.append("the transparent gray value of a 16-bit PNG is ignored")
        return
    image = pillow_formats.load(pillow_formats.open_image(io.BytesIO(data), (header.format,)))
    planes.alpha = np.array(image.convert("RGBA").getchannel("A"))


def _with_pillow(data: bytes, header: Header) -> Planes:
    image = pillow_formats.load(pillow_formats.open_image(io.BytesIO(data)))
    rgb, alpha, cmyk = pillow_formats.planes(image, header)
    if header.format == "TIFF":
        # Pillow turns TIFFs upright by itself: back to the stored grid
        back = {6: 8, 8: 6}.get(header.orientation, header.orientation)
        rgb = upright(rgb, back)
        alpha = None if alpha is None else upright(alpha, back)
        cmyk = None if cmyk is None else upright(cmyk, back)
    return Planes(np.ascontiguousarray(rgb[..., ::-1]), alpha, cmyk)


def _attach_colours(planes: Planes, data: bytes, header: Header) -> None:
    """The ICC profile that describes the colours, the file's own or one that equals its code points, and the
    conversion from it to sRGB. A profile that cannot be used is left out with a note.
    """
    if planes.profile is None and header.has_icc:
        try:
            planes.profile = _profile(data, header)
        except PixelFault as fault:
            planes.notes.append(f"ICC profile ignored: {fault.message}")
    elif planes.profile is None and header.colour is not None:
        planes.profile = code_points.icc_profile(header.colour)
    if planes.profile is None:
        return
    curve = colour.hdr_curve(planes.profile)
    if curve:
        raise PixelFault("unsupported", curve)
    mode = {"L": "L", "LA": "L", "CMYK": "CMYK"}.get(header.mode, "RGB")
    wanted = colour.conversion(planes.profile, mode)
    if wanted.note:
        planes.notes.append(wanted.note)
        planes.profile = None
    elif wanted.transform is not None:
        if mode == "CMYK" and planes.cmyk is None:
            planes.cmyk = _cmyk(data, header)
        planes.conversion = wanted


def _profile(data: bytes, header: Header) -> bytes:
    profile = _lazy(data, header).info.get("icc_profile")
    if not profile:
        raise PixelFault("corrupt", "it cannot be read")
    return bytes(profile)


def _cmyk(data: bytes, header: Header) -> np.ndarray:
    return np.array(pillow_formats.load(_lazy(data, header)))


def _lazy(data: bytes, header: Header) -> Any:
    formats = {"JPEG": ("JPEG", "MPO")}.get(header.format, (header.format,))
    return pillow_formats.open_image(io.BytesIO(data), formats)


def _check_noise(noise: list[str]) -> None:
    """Damage that libjpeg fills with gray or garbage and goes on. Stray bytes between segments do no harm."""
    for line in noise:
        harmless = "extraneous bytes" in line
        if ("Corrupt JPEG data" in line and not harmless) or "Premature end" in line:
            raise PixelFault("corrupt", line)


def _fault(data: bytes, header: Header, noise: list[str]) -> PixelFault:
    """Why a decoder gave nothing: the file stops early, or its bytes are wrong."""
    words = "; ".join(noise)
    kind: FaultKind = "corrupt"
    if "nsupported" in words:
        kind = "unsupported"
    elif _ends_early(data, header.format):
        kind = "truncated"
    what = {"truncated": "ends before the picture does", "unsupported": "is in a variant not read here"}
    return PixelFault(kind, f"the {header.format} {what.get(kind, 'is damaged')}{words and f' ({words})'}")


def _ends_early(data: bytes, format: str) -> bool:
    if format == "PNG":
        return data.rfind(b"IEND\xaeB`\x82") < 0
    if format == "WEBP":
        return int.from_bytes(data[4:8], "little") + 8 > len(data)
    # EOI behind the last scan: one in an embedded thumbnail lies before it
    return data.rfind(b"\xff\xd9") < data.rfind(b"\xff\xda")
