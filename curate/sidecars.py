"""Sidecars: caption and metadata files next to an image. Their values are added to the image's row.

`lake.txt`, `lake.json`, `lake.jpg.txt` and `lake.jpg.json` are sidecars of `lake.jpg`; without such an image
they are ordinary files.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from uhr.curate.faults import CHANGED
from uhr.pixels.files import open_version
from uhr.pixels.types import PixelFault

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

SIDECAR_SUFFIXES = (".txt", ".json")
FIELDS = ("caption", "source_url", "author", "license")
LONGEST_BYTES = 16 * 2**20
MOST_DIGITS = 1000
"""Longest integer that is read; Python itself rejects more than 4300 digits."""

DEFAULT_KEYS: dict[str, list[str]] = {
    "caption": ["caption"],
    "source_url": ["source_url", "image_url", "url"],
    "author": ["author", "photographer"],
    "license": ["license", "licence"],
}
"""The JSON keys that fill each column: the first that is found. All other keys go to `source_meta`."""


class Sidecar(NamedTuple):
    """The values that the sidecars of one image add to its row, and their fault (None if they are valid)."""

    values: dict[str, str]
    fault: str | None


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


def read_sidecars(
    paths: Sequence[Path], keys: Mapping[str, Sequence[str]], versions: Sequence[str] | None = None
) -> Sidecar:
    """Read the sidecars of one image. Later files override earlier ones, and a caption file overrides a
    caption in JSON.

    A broken sidecar never fails its image: the fault is written to `source_meta` under `sidecar_fault`, and
    is returned. `versions` are the listed versions of `paths`; raises PixelFault("changed") if a sidecar has
    another version, or changes while it is read.
    """
    caption: str | None = None
    tree: dict[str, Any] = {}
    faults: list[str] = []
    for path, version in zip(paths, versions or [None] * len(paths), strict=True):
        try:
            text = _read(path, version)
            if path.name.lower().endswith(".txt"):
                caption = text.strip() or caption
            else:
                read, invalid = _object(text)
                tree.update(read)
                faults += [f"{_clean(path.name)}: {message}" for message in invalid]
        except PixelFault as fault:
            if fault.kind == CHANGED:
                raise PixelFault(fault.kind, f"{_clean(path.name)}: {fault.message}") from None
            faults.append(f"{_clean(path.name)}: {fault.message}")
        except (ValueError, RecursionError) as error:
            faults.append(f"{_clean(path.name)}: {_message(error)}")
    values = {} if caption is None else {"caption": _clean(caption)}
    for column in FIELDS:
        for key in keys.get(column, ()):
            value = tree.get(key)
            if column not in values and _is_scalar(value):
                values[column] = _clean(str(value).strip())
                del tree[key]
    fault = "; ".join(faults) or None
    if fault:
        tree["sidecar_fault"] = fault
    if tree:
        values["source_meta"] = _clean(json.dumps(tree, ensure_ascii=False, sort_keys=True))
    return Sidecar(values, fault)


def _read(path: Path, version: str | None) -> str:
    with open_version(path, version) as handle, open(handle, "rb", closefd=False) as file:
        data = file.read(LONGEST_BYTES + 1)
    if len(data) > LONGEST_BYTES:
        raise ValueError(f"longer than {LONGEST_BYTES // 2**20} MiB")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError("not UTF-8") from None


def _object(text: str) -> tuple[dict[str, Any], list[str]]:
    """Return the object, and a message for each number that became null: not every JSON reader accepts it."""
    invalid: list[str] = []

    def reject(number: str) -> None:
        invalid.append(f"{number if len(number) <= 20 else f'{number[:20]}...'} is no JSON number")

    def whole(digits: str) -> int | None:
        return int(digits) if len(digits) <= MOST_DIGITS else reject(digits)

    def real(digits: str) -> float | None:
        value = float(digits)  # 1e999 reads as infinity
        return value if math.isfinite(value) else reject(digits)

    try:
        tree = json.loads(text, parse_constant=reject, parse_float=real, parse_int=whole)
    except json.JSONDecodeError as error:
        raise ValueError(f"no JSON (line {error.lineno}: {error.msg})") from None
    if not isinstance(tree, dict):
        raise ValueError(f"holds a JSON {type(tree).__name__}, not an object")  # noqa: TRY004 - one kind for all
    return tree, invalid


def _is_scalar(value: Any) -> bool:
    return isinstance(value, str | int | float) and not isinstance(value, bool) and bool(str(value).strip())


def _message(error: Exception) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)


def _clean(text: str) -> str:
    """Replace lone surrogates, which come from JSON escapes and file names and cannot be encoded as UTF-8."""
    return text.encode("utf-8", "replace").decode("utf-8")
