"""Damaged files of the formats that OpenCV decodes: the right pixels, or a fault of the right kind, and never
other pixels where the decoder reported damage.
"""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from uhr.pixels.decode import decode
from uhr.pixels.types import PixelFault

WIDTH, HEIGHT = 300, 200

FILES = {
    "baseline": ("JPEG", "RGB", {"quality": 90}),
    "gray": ("JPEG", "L", {"quality": 70}),
    "cmyk": ("JPEG", "CMYK", {}),
    "progressive": ("JPEG", "RGB", {"progressive": True}),
    "restarts": ("JPEG", "RGB", {"restart_marker_blocks": 5, "optimize": True}),
    "png": ("PNG", "RGB", {}),
    "png with alpha": ("PNG", "RGBA", {}),
    "palette": ("PNG", "P", {"transparency": 3}),
    "16 bit": ("PNG", "I;16", {}),
    "lossy webp": ("WEBP", "RGB", {}),
    "lossless webp": ("WEBP", "RGBA", {"lossless": True}),
}


def printed_by_opencv(data: bytes, capfd) -> str:
    """Return what the decoder prints for the unchanged file."""
    capfd.readouterr()
    cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    return capfd.readouterr().err


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("seed", range(3))
def test_damage_is_a_fault_or_was_not_reported_by_the_decoder(
    name, seed, forge, damage, outcome, capfd
) -> None:
    format, mode, settings = FILES[name]
    whole = forge.encode(forge.image(WIDTH, HEIGHT, mode, seed), format, **settings)
    right = decode(whole).rgb()
    for damaged in damage.every_damage(whole, format, WIDTH, HEIGHT, seed):
        found = outcome(damaged.data)
        if isinstance(found, PixelFault):
            assert not damaged.harmless, f"{damaged.name}: {found}"
            assert found.kind in damaged.kinds({"unsupported"}), f"{damaged.name}: {found}"
        elif not np.array_equal(found.rgb(), right):
            assert not damaged.harmless, f"{damaged.name}: other pixels"
            assert format != "PNG", f"{damaged.name}: checksums reveal any damage"
            assert found.notes == [], damaged.name
            assert printed_by_opencv(damaged.data, capfd) == "", damaged.name


@pytest.mark.parametrize("settings", [{}, {"progressive": True}, {"restart_marker_rows": 1}])
def test_small_damages_of_a_jpeg_are_kept_only_where_libjpeg_is_silent(
    settings, forge, damage, outcome, capfd
) -> None:
    whole = forge.encode(forge.image(WIDTH, HEIGHT), "JPEG", quality=90, **settings)
    start, end = damage.jpeg_scan(whole)
    random = np.random.default_rng(5)
    faults = 0
    for seed in range(100):
        data = damage.overwritten(whole, int(random.integers(start, end - 16)), 16, seed)
        found = outcome(data)
        if isinstance(found, PixelFault):
            assert found.kind in ("corrupt", "truncated")
            faults += 1
        else:
            assert found.notes == []
            assert printed_by_opencv(data, capfd) == ""
    assert faults > 20
