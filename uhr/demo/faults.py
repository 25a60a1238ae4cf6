"""Planted faults: one file of each kind of fault and odd format that real folders contain."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from uhr.demo.planted import Planted, Status

if TYPE_CHECKING:
    from PIL import Image


class _File(NamedTuple):
    name: str
    data: bytes
    what: str
    status: Status = "kept"
    reason: str | None = None


def plant(folder: Path, photographs: Path, advance: Callable[..., None]) -> list[Planted]:
    """Write the faults below `folder`, made from the `photographs` of scikit-image, and list what each is."""
    folder.mkdir(parents=True, exist_ok=True)
    planted = []
    for file in (*_broken(photographs), *_odd(photographs), *_poor(photographs), *_doubles(photographs)):
        (folder / file.name).write_bytes(file.data)
        planted.append(Planted(f"{folder.name}/{file.name}", *file[2:], fault=True))
        advance(note=file.name)
    links = (
        ("link.png", "astronaut.png", Planted("", "a link to a photograph", "rejected", "duplicates")),
        ("broken-link.png", "nothing.png", Planted("", "a link to nothing", "failed", "broken link")),
    )
    for name, target, result in links:
        link = folder / name
        link.unlink(missing_ok=True)
        link.symlink_to(Path("..") / photographs.name / target)
        planted.append(
            Planted(f"{folder.name}/{name}", result.what, result.status, result.reason, fault=True)
        )
        advance(note=name)
    return planted


def _broken(photographs: Path) -> Iterator[_File]:
    """Files that cannot be decoded."""
    whole = (photographs / "rocket.jpg").read_bytes()
    photograph = (photographs / "coffee.png").read_bytes()
    yield _File("empty.jpg", b"", "no bytes at all", "failed", "empty file")
    yield _File("truncated.jpg", whole[: len(whole) // 2], "the first half of a JPEG", "failed", "truncated")
    yield _File(
        "truncated.png", photograph[: len(photograph) // 2], "the first half of a PNG", "failed", "truncated"
    )
    damaged = bytearray(photograph)
    damaged[len(damaged) // 2] ^= 0xFF
    yield _File("damaged.png", bytes(damaged), "one wrong byte in the middle", "failed", "corrupt")
    noise = np.random.default_rng(7).bytes(20_000)
    yield _File("noise.jpg", b"\x00" + noise, "random bytes", "failed", "not an image")
    yield _File("page.jpg", b"<!DOCTYPE html><html>404</html>", "a web page", "failed", "not an image")
    yield _File("bomb.png", _bomb(100_000, 100_000), "a header of 10,000 megapixels", "failed", "too large")


def _bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header claims a giant image."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def _odd(photographs: Path) -> Iterator[_File]:
    """Valid images in formats that simple readers get wrong, each of another part of a photograph."""
    from PIL import Image

    photo = Image.open(photographs / "hubble_deep_field.jpg").convert("RGB")
    parts = [photo.crop((30 * i, 20 * i, 30 * i + 600, 20 * i + 500)) for i in range(10)]
    yield _File("wrong-extension.png", encode(parts[0], "JPEG", quality=92), "a JPEG named as a PNG")
    yield _File("cmyk.jpg", encode(parts[1].convert("CMYK"), "JPEG", quality=92), "a CMYK JPEG")
    yield _File("sixteen-bit.png", _sixteen_bit(parts[2]), "a PNG of 16 bits per channel")
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = parts[3].transpose(Image.Transpose.ROTATE_90)
    yield _File(
        "rotated.jpg", encode(turned, "JPEG", quality=92, exif=exif), "rotated, with the orientation in EXIF"
    )
    yield _File("palette.png", encode(parts[4].quantize(256), "PNG"), "a palette of 256 colours")
    glass = parts[5].copy()
    glass.putalpha(Image.linear_gradient("L").resize(glass.size))
    yield _File("transparent.png", encode(glass, "PNG"), "fades to transparent")
    frames = [parts[6].quantize(64), parts[7].quantize(64)]
    animated = encode(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=100)
    yield _File("animated.gif", animated, "an animation of two frames")
    yield _File("camera.tif", encode(parts[8], "TIFF", compression="tiff_lzw"), "a compressed TIFF")
    yield _File("lossless.webp", encode(parts[9], "WEBP", lossless=True), "a lossless WebP")


def encode(image: Image.Image, format: str, **settings: object) -> bytes:
    """A Pillow image as the bytes of a file."""
    buffer = io.BytesIO()
    image.save(buffer, format, **settings)
    return buffer.getvalue()


def _sixteen_bit(image: Image.Image) -> bytes:
    import cv2

    wide = np.asarray(image)[..., ::-1].astype(np.uint16) * 257
    done, data = cv2.imencode(".png", wide)
    assert done
    return data.tobytes()


def _poor(photographs: Path) -> Iterator[_File]:
    """Valid images of low quality, and images that were enlarged."""
    from PIL import Image, ImageFilter

    photo = Image.open(photographs / "motorcycle_left.png").convert("RGB")
    yield _File(
        "thumbnail.jpg", encode(photo.resize((160, 108)), "JPEG"), "far too small", "rejected", "resolution"
    )
    ramp = np.tile(np.linspace(90, 110, 1280, dtype=np.uint8), (960, 1))
    flat = encode(Image.fromarray(ramp), "PNG")
    yield _File("flat.png", flat, "a smooth gray ramp", "rejected", "flatness")
    dark = photo.point(lambda value: value // 24)
    yield _File("dark.png", encode(dark, "PNG"), "a photograph 24 times too dark", "rejected", "flatness")
    blurred = photo.filter(ImageFilter.GaussianBlur(12))
    yield _File("blurred.jpg", encode(blurred, "JPEG", quality=92), "out of focus", "rejected", "flatness")
    board = np.kron(np.indices((80, 100)).sum(axis=0) % 2, np.ones((11, 11))).astype(np.uint8) * 255
    yield _File("two-tone.png", encode(Image.fromarray(board), "PNG"), "a chessboard", "rejected", "entropy")
    small = Image.open(photographs / "gravel.png")
    enlarged = small.resize((2048, 2048), Image.Resampling.BICUBIC)
    yield _File("enlarged.jpg", encode(enlarged, "JPEG", quality=92), "enlarged four times to look like more")


def _doubles(photographs: Path) -> Iterator[_File]:
    from PIL import Image

    original = (photographs / "astronaut.png").read_bytes()
    yield _File("same-bytes.png", original, "a photograph once more", "rejected", "duplicates")
    again = encode(Image.open(io.BytesIO(original)).convert("RGB"), "JPEG", quality=70)
    yield _File("same-picture.jpg", again, "a photograph once more, saved again: other bytes, one picture")
