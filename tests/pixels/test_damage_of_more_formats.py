"""Damaged files of the formats that OpenCV does not decode here: the right pixels, or a fault of the right
kind. Without a checksum a decoder may not know; with one it must.
"""

from __future__ import annotations

import numpy as np
import pytest

from uhr.pixels.decode import decode
from uhr.pixels.types import PixelFault

WIDTH, HEIGHT = 160, 120

FILES = {
    "tiff": ("TIFF", "RGB", {}),
    "tiff of 16 bits": ("TIFF", "I;16", {}),
    "tiff by deflate": ("TIFF", "RGB", {"compression": "tiff_adobe_deflate"}),
    "tiff by lzw": ("TIFF", "RGBA", {"compression": "tiff_lzw"}),
    "tiff by packbits": ("TIFF", "L", {"compression": "packbits"}),
    "tiff by jpeg": ("TIFF", "RGB", {"compression": "jpeg"}),
    "tiff of cmyk by jpeg": ("TIFF", "CMYK", {"compression": "jpeg"}),
    "tiff of a palette": ("TIFF", "P", {}),
    "tiff of cmyk": ("TIFF", "CMYK", {}),
    "fax": ("TIFF", "1", {"compression": "group4"}),
    "gif": ("GIF", "P", {}),
    "bmp": ("BMP", "RGB", {}),
    "bmp of a palette": ("BMP", "P", {}),
    "avif": ("AVIF", "RGB", {}),
    "avif with alpha": ("AVIF", "RGBA", {}),
    "jp2": ("JPEG2000", "RGB", {}),
    "codestream": ("JPEG2000", "L", {"no_jp2": True, "irreversible": True}),
    "tiles": ("JPEG2000", "RGB", {"tile_size": (64, 64)}),
    "ppm": ("PPM", "RGB", {}),
    "pgm": ("PPM", "L", {}),
    "qoi": ("QOI", "RGBA", {}),
    "icon": ("ICO", "RGBA", {"sizes": [(WIDTH, HEIGHT)]}),
    "icon of a bitmap": ("ICO", "RGB", {"sizes": [(WIDTH, HEIGHT)], "bitmap_format": "bmp"}),
}

WITH_CHECKSUMS = ("tiff by deflate", "icon")

UNKNOWABLE = ("jp2", "codestream")
"""A JPEG 2000 of one tile says its size once, and OpenJPEG takes any coefficients for it."""

OTHER_KINDS = {"unsupported", "not an image", "too large"}
"""What damage to a size or a signature may result in."""


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("seed", range(2))
def test_damage_is_a_fault_or_leaves_pixels_of_the_right_size(name, seed, forge, damage, outcome) -> None:
    format, mode, settings = FILES[name]
    whole = forge.encode(forge.image(WIDTH, HEIGHT, mode, seed), format, **settings)
    right = decode(whole).rgb()
    for damaged in damage.every_damage(whole, format, WIDTH, HEIGHT, seed):
        found = outcome(damaged.data)
        if isinstance(found, PixelFault):
            assert not damaged.harmless, f"{damaged.name}: {found}"
            assert found.kind in damaged.kinds(OTHER_KINDS), f"{damaged.name}: {found}"
            continue
        rgb = found.rgb()
        assert rgb.shape == (found.header.height, found.header.width, 3)
        if damaged.harmless:
            assert np.array_equal(rgb, right), damaged.name
        elif damaged.name.startswith("declared"):
            if name in UNKNOWABLE:
                continue
            # fewer rows than there are: those that are shown are right
            assert np.array_equal(rgb, right[: len(rgb)]), damaged.name
        else:
            assert not damaged.name.startswith("cut"), damaged.name
            assert name not in WITH_CHECKSUMS or np.array_equal(rgb, right), damaged.name


@pytest.mark.parametrize("name", FILES)
def test_a_cut_at_any_place_is_truncated(name, forge, outcome) -> None:
    format, mode, settings = FILES[name]
    whole = forge.encode(forge.image(WIDTH, HEIGHT, mode), format, **settings)
    places = sorted({*range(16, 400, 37), *np.linspace(400, len(whole) - 9, 40).astype(int).tolist()})
    for place in [*places, len(whole) - 1]:
        found = outcome(whole[:place])
        assert isinstance(found, PixelFault), f"{place} of {len(whole)} bytes"
        assert found.kind == "truncated", f"{place} of {len(whole)} bytes: {found}"


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_what_libjpeg_reports_of_a_jpeg_in_a_tiff_is_a_fault(mode, forge, damage, outcome) -> None:
    whole = forge.encode(forge.image(300, 200, mode), "TIFF", compression="jpeg", quality=90)
    random = np.random.default_rng(4)
    starts = random.integers(len(whole) // 4, len(whole) * 3 // 4, 40)
    found = [outcome(damage.overwritten(whole, int(start), 16, seed)) for seed, start in enumerate(starts)]
    assert sum(isinstance(one, PixelFault) for one in found) > 20
