"""The files of generated images: PNG, JPEG and WebP, and the text of a record inside them.

A PNG has the record in a text chunk. JPEG and WebP have no such chunks: it is in the comment of their EXIF
(tag 0x9286, UserComment), as ASCII.
"""

from __future__ import annotations

import contextlib
import io
import struct
from collections.abc import Generator
from pathlib import Path, PurePath
from typing import Any, Literal

from pydantic import Field

from uhr.base.config import Config
from uhr.base.errors import UserError, one_line
from uhr.models.generate.input_images import CHUNK

SEARCHED = 1 << 26
"""Up to this many px a PNG is decoded to find a record after its pixels, where some editors put it."""

SUFFIXES: dict[str, Literal["png", "jpeg", "webp"]] = {
    ".png": "png",
    ".jpg": "jpeg",
    ".jpeg": "jpeg",
    ".webp": "webp",
}
"""The suffixes of files that can be written, with their formats."""

NAMES = {"png": "PNG", "jpeg": "JPEG", "webp": "WebP"}

LONGEST_SIDE = {"png": 2**31 - 1, "jpeg": 65_535, "webp": 16_383}
"""The largest width and height in px that a format can store."""

QUALITY = 95
"""The quality of JPEG and WebP if the user gives none."""

LOSSLESS = "lossless"

_EXIF, _COMMENT, _ASCII = 0x8769, 0x9286, b"ASCII\0\0\0"
_MOST_EXIF = 65_533 - 128
"""The bytes that one segment of a JPEG has for a comment, next to the other entries of its EXIF."""

_MOST_RECORD = 1 << 26
"""Bytes of the longest EXIF that is read."""

_DAMAGE = (OSError, SyntaxError, ValueError, TypeError, KeyError, struct.error)
"""What PIL raises for files that are damaged in some way."""


class Encoding(Config):
    """How a file stores an image. `quality` is 1 to 100, or None for a lossless file.

    JPEG is written without chroma subsampling (4:4:4). Lossy WebP has 4:2:0, the only kind that it knows.
    """

    format: Literal["png", "jpeg", "webp"] = "png"
    quality: int | None = Field(default=None, ge=1, le=100)

    @classmethod
    def of(cls, name: str, quality: str | None = None) -> Encoding:
        """Return the encoding for a file's name and the text of `--quality`.

        Raises UserError for a suffix that cannot be written, and for a quality that the format does not have.
        """
        form = SUFFIXES.get(PurePath(name).suffix.lower())
        if form is None:
            raise UserError(
                f"--out {name} is not a PNG, JPEG or WebP", "name a file that ends in .png, .jpg or .webp"
            )
        if form == "png":
            if quality not in (None, LOSSLESS):
                raise UserError(f"--quality {quality} for a PNG, which is lossless", "leave it out")
            return cls()
        if quality == LOSSLESS:
            if form == "jpeg":
                raise UserError(
                    f"--quality {quality} for a JPEG, which is lossy", "give 1 to 100, or write a PNG or WebP"
                )
            return cls(format=form)
        if quality is not None and not (quality.isdecimal() and 1 <= int(quality) <= 100):
            raise UserError(f"--quality {quality} is invalid", f"give 1 to 100, or {LOSSLESS} for a WebP")
        return cls(format=form, quality=QUALITY if quality is None else int(quality))

    @property
    def exact(self) -> bool:
        """Whether the file has the pixels as they were generated."""
        return self.quality is None

    def check(self, name: str, width: int, height: int, transparent: bool) -> None:
        """Raise UserError if the format cannot store an image of that size, or its transparency."""
        most = LONGEST_SIDE[self.format]
        if max(width, height) > most:
            what = f"--out {name}: a {NAMES[self.format]} has at most {most} px a side"
            raise UserError(f"{what}, and this image {width}x{height}", "write a PNG")
        if transparent and self.format == "jpeg":
            raise UserError(
                f"--out {name}: a JPEG has no transparency, and the image has", "write a PNG or WebP"
            )

    def fits(self, text: str) -> bool:
        """Whether a record of this text is short enough for the file."""
        return self.format != "jpeg" or len(text.encode()) <= _MOST_EXIF

    def encode(self, image: Any, text: str | None) -> bytes:
        """Return the bytes of the file of a PIL image, with its colour profile, and `text` (ASCII) as its
        record."""
        file = io.BytesIO()
        profile = image.info.get("icc_profile")
        if self.format == "png":
            from PIL.PngImagePlugin import PngInfo

            info = PngInfo()
            if text is not None:
                info.add_text(CHUNK, text)
            image.save(file, format="PNG", pnginfo=info, icc_profile=profile)
            return file.getvalue()
        options: dict[str, Any] = {"exif": _exif(text)} if text is not None else {}
        if profile is not None:
            options["icc_profile"] = profile
        if self.format == "jpeg":
            image.save(file, format="JPEG", quality=self.quality, subsampling="4:4:4", **options)
        elif self.quality is None:
            image.save(file, format="WEBP", lossless=True, exact=True, **options)
        else:
            image.save(file, format="WEBP", quality=self.quality, **options)
        return file.getvalue()

    def stored(self, image: Any) -> Any:
        """Return a PIL image as a reader of its file sees it."""
        from PIL import Image

        if self.exact:
            return image
        with _without_limit(), open_file(io.BytesIO(self.encode(image, None)), self.format) as found:
            found.load()
            return Image.frombytes(found.mode, found.size, found.tobytes())


def _exif(text: str) -> Any:
    from PIL import Image

    exif = Image.Exif()
    exif.get_ifd(_EXIF)[_COMMENT] = _ASCII + text.encode("ascii")
    return exif


def open_written(path: Path, size: tuple[int, int] | None = None) -> Any:
    """Open a PNG, JPEG or WebP with PIL, not decoded yet; callers that decode it check its size first.

    PNG and JPEG may have any size, a WebP 179 megapixels, or the (width, height) that is expected: PIL
    prepares to decode it when it is opened. Raises UserError for a file that cannot be read.
    """
    try:
        with open(path, "rb") as file:
            form = _format_of(file.read(12))
        expected = form == "webp" and size is not None and _size_of(path) == size
        with _without_limit() if expected else contextlib.nullcontext():
            return open_file(path, form)
    except _damage() as error:
        raise UserError(f"{path} cannot be read ({one_line(error)})", "name a PNG, JPEG or WebP") from error


@contextlib.contextmanager
def _without_limit() -> Generator[None]:
    """Lift PIL's limit on decompressed images, which is for files of others, in a `with` block."""
    from PIL import Image

    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def _size_of(path: Path) -> tuple[int, int] | None:
    """The width and height in a WebP's header."""
    from uhr.pixels.headers import read_header
    from uhr.pixels.types import PixelFault

    try:
        found = read_header(path)
    except PixelFault:
        return None
    return found.width, found.height


def _damage() -> tuple[type[Exception], ...]:
    """What PIL raises for files that are damaged in some way, or larger than its limit."""
    from PIL.Image import DecompressionBombError

    return (*_DAMAGE, DecompressionBombError)


def _format_of(head: bytes) -> str:
    if head.startswith(b"\xff\xd8"):
        return "jpeg"
    return "webp" if head[:4] == b"RIFF" and head[8:12] == b"WEBP" else "png"


def open_file(file: Any, form: str) -> Any:
    """Open a file of a known format with PIL, without its limit of size."""
    from PIL.JpegImagePlugin import JpegImageFile
    from PIL.PngImagePlugin import PngImageFile
    from PIL.WebPImagePlugin import WebPImageFile

    if form == "jpeg":
        return JpegImageFile(file)
    return WebPImageFile(file) if form == "webp" else PngImageFile(file)


def texts_of(path: Path, names: tuple[str, ...]) -> dict[str, str]:
    """Return the texts of a PNG under these keywords, or the comment of another image's EXIF under "exif".

    Only texts that exist are returned. Raises UserError for a file that is not such an image.
    """
    if (comment := _webp_comment(path)) is not None:
        return {"exif": comment} if comment else {}
    with open_written(path) as image:
        if image.format == "PNG":
            found = {name: image.info.get(name) for name in names}
            try:
                if not any(found.values()) and image.width * image.height <= SEARCHED:
                    found = {name: image.text.get(name) for name in names}
            except _DAMAGE as error:
                raise UserError(f"{path} cannot be read ({one_line(error)})", "name a PNG") from error
            return {name: str(text) for name, text in found.items() if isinstance(text, str)}
        comment = _comment(image.info.get("exif", b""))
        return {} if comment is None else {"exif": comment}


def _webp_comment(path: Path) -> str | None:
    """The comment of a WebP's EXIF, "" if it has none; None for a file that is not a WebP. It is not
    decoded."""
    try:
        with open(path, "rb") as file:
            head = file.read(12)
            if _format_of(head) != "webp":
                return None
            while len(head := file.read(8)) == 8:
                length = int.from_bytes(head[4:], "little")
                if head[:4] == b"EXIF":
                    return _comment(file.read(min(length, _MOST_RECORD))) or ""
                file.seek(length + length % 2, io.SEEK_CUR)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({one_line(error)})", "name a PNG, JPEG or WebP") from error
    return ""


def _comment(exif: bytes) -> str | None:
    """The comment in the bytes of an EXIF: ASCII, or as other programs write it in UTF-16."""
    from PIL import Image

    try:
        tree = Image.Exif()
        tree.load(exif)
        data = tree.get_ifd(_EXIF).get(_COMMENT)
    except _DAMAGE:
        return None
    if not isinstance(data, bytes):
        return data if isinstance(data, str) else None
    code, text = data[:8], data[8:]
    if code == b"UNICODE\0":
        # the standard leaves the order of the bytes to the file's; most programs write big endian
        encoding = "utf-16-le" if text[1:2] == b"\0" and text[:1] != b"\0" else "utf-16-be"
        return text.decode(encoding, "replace").rstrip("\0")
    return (text if code in (_ASCII, b"\0" * 8) else data).decode("utf-8", "replace").rstrip("\0")
