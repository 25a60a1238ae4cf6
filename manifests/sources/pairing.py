"""Which files beside an image are its sidecars: by their names alone, in a folder or an archive.

`lake.txt`, `lake.caption`, `lake.json`, `lake.jpg.txt` and so on are sidecars of `lake.jpg`; without such an
image they are ordinary files.
"""

from __future__ import annotations

from collections.abc import Iterable

IMAGE_SUFFIXES = frozenset(
    [
        "jpg",
        "jpeg",
        "jpe",
        "jfif",
        "png",
        "apng",
        "webp",
        "gif",
        "bmp",
        "dib",
        "tif",
        "tiff",
        "avif",
        "heic",
        "heif",
        "hif",
        "jxl",
        "jp2",
        "j2k",
        "jpx",
        "jpf",
        "ppm",
        "pgm",
        "pbm",
        "pnm",
        "pfm",
        "tga",
        "icb",
        "dds",
        "ico",
        "icns",
        "psd",
        "exr",
        "hdr",
        "qoi",
        "svg",
        "dng",
        "cr2",
        "nef",
        "arw",
        "raw",
    ]
)
"""Suffixes of the files that a sidecar may belong to. The format of a file is decided by its content."""

SIDECAR_SUFFIXES = (".txt", ".caption", ".json")


def sidecars_in(names: Iterable[str], readable: Iterable[str]) -> dict[str, list[str]]:
    """Return the sidecars of each image among the file names of one folder, `lake.jpg.txt` after `lake.txt`.

    Only `readable` files can be sidecars: a broken link next to an image is a row of its own.
    """
    names = list(names)
    candidates = [name for name in readable if name.lower().endswith(SIDECAR_SUFFIXES)]
    if not candidates:
        return {}
    images: dict[str, list[str]] = {}
    for name in names:
        stem, _, suffix = name.rpartition(".")
        if stem and suffix.lower() in IMAGE_SUFFIXES:
            images.setdefault(stem, []).append(name)
            images.setdefault(name, []).append(name)
    found: dict[str, list[str]] = {}
    # shorter base names first, so that lake.jpg.txt comes after lake.txt and wins
    for name in sorted(candidates, key=lambda name: (len(name.rpartition(".")[0]), name)):
        for image in images.get(name.rpartition(".")[0], ()):
            found.setdefault(image, []).append(name)
    return found
