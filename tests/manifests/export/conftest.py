"""A curated set of real image files for the exports: each format, an odd colour, a rotation, a patch."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from uhr.manifests.manifest import Manifest
from uhr.manifests.schema import patch_id, sample_id

KEPT = {"status": "kept", "reason": None, "error": None}


def noise(seed: int, size: tuple[int, int]) -> Image.Image:
    width, height = size
    draw = np.random.default_rng(seed)
    return Image.fromarray(draw.integers(0, 256, (height, width, 3), dtype=np.uint8))


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory, make: Callable[..., Manifest]) -> Manifest:
    """12 kept images (6 JPEG, 3 PNG, 2 WebP, 1 TIFF), a patch of the first, 1 rejected, 1 failed."""
    folder = tmp_path_factory.mktemp("export")
    source = folder / "source"
    files: dict[str, tuple[bytes, dict[str, Any]]] = {}
    for number in range(6):
        exif = Image.Exif()
        exif[0x0112] = 6 if number == 2 else 1
        data = encoded(noise(number, (40, 24)), "JPEG", exif=exif, quality=95)
        size = (24, 40) if number == 2 else (40, 24)
        files[f"a/{number}.jpg"] = (data, {"format": "JPEG", "size": size, "caption": f'lake "{number}" ä'})
    for number in range(6, 9):
        files[f"b/{number}.png"] = (
            encoded(noise(number, (16, 16)), "PNG"),
            {"format": "PNG", "size": (16, 16)},
        )
    alpha = noise(9, (16, 20))
    alpha.putalpha(128)
    files["b/8.png"] = (encoded(alpha, "PNG"), {"format": "PNG", "size": (16, 20)})
    for number in range(9, 11):
        data = encoded(noise(number, (32, 16)), "WEBP", lossless=True)
        files[f"c/{number}.webp"] = (data, {"format": "WEBP", "size": (32, 16), "caption": "a sea"})
    files["d/11.tif"] = (encoded(noise(11, (20, 10)), "TIFF"), {"format": "TIFF", "size": (20, 10)})
    rows = []
    for number, (uri, (data, facts)) in enumerate(sorted(files.items())):
        (source / uri).parent.mkdir(parents=True, exist_ok=True)
        (source / uri).write_bytes(data)
        width, height = facts.pop("size")
        row = {
            "uri": uri,
            "sample_id": sample_id(uri),
            "content_hash": hashlib.sha256(data).hexdigest(),
            "file_size": len(data),
            "license": "CC0-1.0" if number % 3 else None,
            "entropy": number / 2,
            "width": width,
            "height": height,
            **facts,
            **KEPT,
        }
        rows.append(row)
    box = [8, 4, 16, 12]
    patch = {
        **rows[0],
        "sample_id": patch_id(rows[0]["sample_id"], tuple(box)),
        "parent_id": rows[0]["sample_id"],
    }
    rows.insert(1, {**patch, "box": box, "width": 16, "height": 12})
    rows.append(
        {
            **rows[-1],
            "uri": "e/12.jpg",
            "sample_id": sample_id("e/12.jpg"),
            "status": "rejected",
            "reason": "entropy",
        }
    )
    failed = {"status": "failed", "reason": "not an image", "error": "no known image format"}
    rows.append({"uri": "e/13.jpg", "sample_id": sample_id("e/13.jpg"), **failed})
    return make(folder / "set", rows, root=source)
