"""Caption and metadata files that lie beside an image and belong into its row.

`lake.txt`, `lake.json`, `lake.jpg.txt` and `lake.jpg.json` belong to `lake.jpg`; without such an image they
are files like any other.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from uhr.curate.faults import CHANGED
from uhr.pixels.files import opened
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
"""File names that a sidecar may belong to. What a file is, its content decides."""

SIDECAR_SUFFIXES = (".txt", ".json")
FIELDS = ("caption", "source_url", "author", "license")
LONGEST_BYTES = 16 * 2**20
MOST_DIGITS = 1000
"""Of a whole number; Python itself refuses to read more than 4300."""

DEFAULT_KEYS: dict[str, list[str]] = {
    "caption": ["caption"],
    "source_url": ["source_url", "image_url", "url"],
    "author": ["author", "photographer"],
    "license": ["license", "licence"],
}
"""Which JSON keys fill which column, first found first; the rest goes into `source_meta`."""


class Sidecar(NamedTuple):
    """What the sidecars of one image say: values for its row, and what was wrong with them (None:
    nothing).
    """

    values: dict[str, str]
    fault: str | None


def sidecars_in(names: Iterable[str], readable: Iterable[str]) -> dict[str, list[str]]:
    """The sidecars of each image among the file names of one folder; the more particular ones last.

    Only what is `readable` can be a sidecar: a broken link beside an image is a row of its own.
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
    """The values of one image's sidecars, later files over earlier ones; a caption file over a JSON caption.

    A broken sidecar never fails its image: the fault is in `source_meta` under `sidecar_fault`, and is
    returned. `versions` are those that were listed, one for each path; raises `PixelFault("changed")` for a
    sidecar that has another one by now, or changes while it is read.
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
                read, odd = _object(text)
                tree.update(read)
                faults += [f"{_clean(path.name)}: {words}" for words in odd]
        except PixelFault as fault:
            if fault.kind == CHANGED:
                raise PixelFault(fault.kind, f"{_clean(path.name)}: {fault.message}") from None
            faults.append(f"{_clean(path.name)}: {fault.message}")
        except (ValueError, RecursionError) as error:
            faults.append(f"{_clean(path.name)}: {_words(error)}")
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
    with opened(path, version) as handle, open(handle, "rb", closefd=False) as file:
        data = file.read(LONGEST_BYTES + 1)
    if len(data) > LONGEST_BYTES:
        raise ValueError(f"longer than {LONGEST_BYTES // 2**20} MiB")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError("not UTF-8") from None


def _object(text: str) -> tuple[dict[str, Any], list[str]]:
    """The object, and what of it had to become null: numbers that not every reader of `source_meta` takes."""
    odd: list[str] = []

    def refuse(number: str) -> None:
        odd.append(f"{number if len(number) <= 20 else f'{number[:20]}...'} is no JSON number")

    def whole(digits: str) -> int | None:
        return int(digits) if len(digits) <= MOST_DIGITS else refuse(digits)

    def real(digits: str) -> float | None:
        value = float(digits)  # 1e999 reads as infinity
        return value if math.isfinite(value) else refuse(digits)

    try:
        tree = json.loads(text, parse_constant=refuse, parse_float=real, parse_int=whole)
    except json.JSONDecodeError as error:
        raise ValueError(f"no JSON (line {error.lineno}: {error.msg})") from None
    if not isinstance(tree, dict):
        raise ValueError(f"holds a JSON {type(tree).__name__}, not an object")  # noqa: TRY004 - one kind for all
    return tree, odd


def _is_scalar(value: Any) -> bool:
    return isinstance(value, str | int | float) and not isinstance(value, bool) and bool(str(value).strip())


def _words(error: Exception) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)


def _clean(text: str) -> str:
    """Without lone surrogates, which JSON escapes and file names may bring and UTF-8 cannot hold."""
    return text.encode("utf-8", "replace").decode("utf-8")
