"""Every readable format by every kind of damage, through the command line: the right pixels, or a row that
failed with the right kind; and `uhr sample --image` opens exactly what curation keeps.
"""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from uhr.base.errors import UserError
from uhr.cli import main
from uhr.manifests.manifest import Manifest
from uhr.models.generate.input_images import InputImage, open_image

WIDTH, HEIGHT = 96, 64

VARIANTS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "jpeg baseline": ("JPEG", "RGB", {"quality": 90}),
    "jpeg progressive": ("JPEG", "RGB", {"quality": 90, "progressive": True}),
    "jpeg gray": ("JPEG", "L", {"quality": 90}),
    "jpeg with restarts": ("JPEG", "RGB", {"quality": 90, "restart_marker_blocks": 4}),
    "jpeg cmyk": ("JPEG", "CMYK", {"quality": 90}),
    "png": ("PNG", "RGB", {}),
    "png 16 bit gray": ("PNG", "I;16", {}),
    "png palette": ("PNG", "P", {}),
    "png with alpha": ("PNG", "RGBA", {}),
    "webp lossy": ("WEBP", "RGB", {"quality": 90}),
    "webp lossless with alpha": ("WEBP", "RGBA", {"lossless": True}),
    "png animated": ("PNG", "RGB", {"save_all": True}),
    "webp animated": ("WEBP", "RGB", {"save_all": True, "lossless": True}),
    "gif": ("GIF", "P", {}),
    "gif animated": ("GIF", "P", {"save_all": True}),
    "tiff": ("TIFF", "RGB", {}),
    "tiff deflate": ("TIFF", "RGB", {"compression": "tiff_adobe_deflate"}),
    "tiff lzw 16 bit": ("TIFF", "I;16", {"compression": "tiff_lzw"}),
    "tiff big": ("TIFF", "RGB", {"big_tiff": True}),
    "tiff cmyk": ("TIFF", "CMYK", {"compression": "packbits"}),
    "bmp": ("BMP", "RGB", {}),
    "avif": ("AVIF", "RGB", {"quality": 90}),
    "avif with alpha": ("AVIF", "RGBA", {"quality": 90}),
    "jpeg 2000": ("JPEG2000", "RGB", {}),
    "jpeg 2000 codestream": ("JPEG2000", "RGB", {"no_jp2": True}),
    "ppm": ("PPM", "RGB", {}),
    "pgm": ("PPM", "L", {}),
    "qoi": ("QOI", "RGB", {}),
    "ico": ("ICO", "RGBA", {"sizes": [(WIDTH, HEIGHT)]}),
    "ico bmp": ("ICO", "RGBA", {"sizes": [(WIDTH, HEIGHT)], "bitmap_format": "bmp"}),
}
"""Name -> Pillow's format, mode and settings; `save_all` adds a second frame."""

LOSSY = {name for name, (format, *_) in VARIANTS.items() if format in ("JPEG", "AVIF")} | {"webp lossy"}

PROVEN = {name for name, (format, *_) in VARIANTS.items() if format == "PNG"}
"""A checksum covers every byte that a pixel depends on: no damage may pass."""

MEASURED = ("entropy", "luma_mean", "dark_fraction", "clipped_fraction", "laplacian_var", "blockiness")

KINDS = {"cut": {"truncated"}, "metadata": set(), "other": {"corrupt", "truncated", "unsupported"}}


@dataclass
class File:
    """One damaged file, its row, and what `uhr sample` opens of it (the reason where it refuses)."""

    variant: str
    damage: str
    harmless: bool
    data: bytes
    row: dict[str, Any]
    preview: bytes | None
    given: InputImage | str


def name_of(variant: str, damage: str) -> str:
    return f"{variant}, {damage}".replace("%", " percent")


@pytest.fixture(scope="module")
def files(forge, damage, warm_curation, tmp_path_factory) -> dict[str, list[File]]:
    """By variant: the undamaged file first, then each damage of it, after one run of `quickstart`."""
    work = tmp_path_factory.mktemp("damaged images")
    source, made = work / "in", []
    source.mkdir()
    for seed, (variant, (format, mode, settings)) in enumerate(VARIANTS.items()):
        if "save_all" in settings:
            settings = {**settings, "append_images": [forge.image(WIDTH, HEIGHT, mode, seed + 100)]}
        whole = forge.encode(forge.image(WIDTH, HEIGHT, mode, seed), format, **settings)
        made.append((variant, damage.Damaged("undamaged", whole, True)))
        made += [(variant, one) for one in damage.every_damage(whole, format, WIDTH, HEIGHT, seed)]
    for variant, one in made:
        (source / name_of(variant, one.name)).write_bytes(one.data)
    rules = ("resolution", "flatness", "entropy", "duplicates")
    sets = [word for rule in rules for word in ("--set", f"rules.{rule}=null")]
    arguments = ["curate", "run", "quickstart", "--source", source, "--out", work / "out", *sets]
    with warm_curation.workers():
        assert main([str(word) for word in (*arguments, "--engine", "local", "--workers", 1)]) == 0
    manifest = Manifest.open(work / "out")
    rows = {row["uri"]: row for row in manifest.table().to_pylist()}
    previews = manifest.previews([row["sample_id"] for row in rows.values()])
    found: dict[str, list[File]] = {}
    for variant, one in made:
        path = source / name_of(variant, one.name)
        row = rows[path.name]
        preview = previews.get(row["sample_id"])
        file = File(variant, one.name, one.harmless, one.data, row, preview, opened(path))
        found.setdefault(variant, []).append(file)
    return found


def opened(path: Path) -> InputImage | str:
    try:
        return open_image(path)
    except UserError as error:
        return str(error)


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_undamaged_file_is_kept_with_the_pixels_that_were_written(variant, files, forge):
    whole = files[variant][0]
    assert whole.row["status"] == "kept", whole.row["error"]
    assert isinstance(whole.given, InputImage), whole.given
    if variant not in LOSSY:
        _, mode, _ = VARIANTS[variant]
        written = forge.image(WIDTH, HEIGHT, mode, list(VARIANTS).index(variant))
        if mode == "I;16":
            expected = np.repeat((np.asarray(written) >> 8).astype(np.uint8)[..., None], 3, axis=2)
        else:
            expected = np.asarray(written.convert("RGB"))
        seen = np.asarray(whole.given.rgb)
        if whole.given.alpha is not None:
            visible = np.asarray(whole.given.alpha) > 0
            seen, expected = seen[visible], expected[visible]
        assert np.array_equal(seen, expected)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_damaged_file_gives_the_right_pixels_or_fails_with_the_right_kind(variant, files):
    whole, *damaged = files[variant]
    wrong = [verdict for file in damaged if (verdict := complaint(file, whole))]
    assert not wrong, "\n".join(wrong)


def complaint(file: File, whole: File) -> str:
    """What is wrong with a row, empty where nothing is."""
    where = f"{file.variant}, {file.damage}: "
    row = file.row
    if row["status"] == "kept":
        if same_pixels(file, whole) or (file.variant not in PROVEN and nobody_knows(file.data)):
            return ""
        return f"{where}kept with wrong pixels"
    if file.harmless:
        return f"{where}{row['status']} although no pixel changed ({row['reason']}: {row['error']})"
    kinds = KINDS["cut" if file.damage.startswith("cut") else "other"]
    if row["status"] != "failed" or row["reason"] not in kinds:
        wanted = " or ".join(sorted(kinds))
        return f"{where}{row['status']} as {row['reason']} instead of {wanted} ({row['error']})"
    return ""


def same_pixels(file: File, whole: File) -> bool:
    """Equal pixels give the same JPEG for people, byte by byte, and the same numbers."""
    sides = ("width", "height", *MEASURED)
    equal = all(file.row[name] == whole.row[name] for name in sides) and file.preview == whole.preview
    if isinstance(file.given, InputImage) and isinstance(whole.given, InputImage):
        equal = equal and file.given.rgb.tobytes() == whole.given.rgb.tobytes()
    return equal


def nobody_knows(data: bytes) -> bool:
    """Whether Pillow, and OpenCV for its formats, called directly, decode the bytes without an error, a
    warning or a line on standard error.
    """
    with printed() as lines, warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            with Image.open(io.BytesIO(data)) as image:
                image.load()
                format = image.format
        except Exception:  # noqa: BLE001 - whatever it is, a decoder knows
            return False
        if format in ("JPEG", "PNG", "WEBP"):
            pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
            if pixels is None:
                return False
    return not lines


@contextlib.contextmanager
def printed() -> Iterator[list[str]]:
    """The lines that are printed to standard error in the block, by C libraries too."""
    lines: list[str] = []
    terminal = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield lines
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)
            file.seek(0)
            lines += file.read().decode(errors="replace").splitlines()


@pytest.mark.parametrize("variant", VARIANTS)
def test_sample_opens_what_curation_keeps_and_refuses_what_it_fails(variant, files):
    differs = [
        f"{file.damage}: {file.row['status']} ({file.row['error']}), and {file.given}"
        for file in files[variant]
        if (file.row["status"] == "kept") != isinstance(file.given, InputImage)
    ]
    assert not differs, "\n".join(differs)


def test_every_readable_format_is_among_them_and_few_damages_pass_unseen(files):
    from uhr.pixels.headers import FORMATS

    assert {format for format, _, _ in VARIANTS.values()} == set(FORMATS)
    damaged = [file for variant in files for file in files[variant] if not file.harmless]
    failed = [file for file in damaged if file.row["status"] == "failed"]
    assert len(failed) > len(damaged) / 2
