"""The items of a set, with names and seeds, from prompts or from a folder of images.

Names and seeds are decided here, before items are divided into units: an image depends on its item alone.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from uhr.base.errors import UserError, combined
from uhr.base.files import user_path
from uhr.models.generate.request import Item
from uhr.train.generate.prompts import LocatedLine

MOST_BYTES = 200
"""Limit of one part of a name: file systems allow 255 bytes, and temporary names are longer."""

IMAGES = frozenset(
    {
        *("apng", "avif", "bmp", "dib", "gif", "ico", "j2k", "jfif", "jp2", "jpe", "jpeg", "jpf", "jpg"),
        *("jpx", "pbm", "pgm", "png", "pnm", "ppm", "qoi", "tif", "tiff", "webp"),
    }
)
"""Suffixes of image files, for all formats that `uhr.pixels` decodes. Other files are reported."""

_ANYWHERE = re.compile(r'[^\x00-\x1f\x7f<>:"\\|?*/]+')
_HERE = re.compile(r"[^\x00-\x1f\x7f/]+")
"""Parts of names that any file system accepts, and those that exist on this one already."""


class Entry(NamedTuple):
    """An item, and where the user wrote it, for errors."""

    item: Item
    where: str


class Defaults(NamedTuple):
    """Values from the command line, for items that do not have their own."""

    negative: str | None = None
    seed: int = 0
    image: Path | None = None


def from_prompts(lines: Sequence[LocatedLine], folder: Path, defaults: Defaults) -> list[Entry]:
    """Make an entry per line.

    The default name is the line's number, from 0; the default seed is the command's plus that number. Image
    paths are relative to `folder`. Raises UserError for names that are invalid or repeated.
    """
    digits = max(4, len(str(len(lines) - 1)))
    entries, mistakes = [], []
    for number, (line, where) in enumerate(lines):
        size = (line.width, line.height) if line.width and line.height else None
        try:
            name = _checked(line.name, where) if line.name is not None else f"{number:0{digits}d}"
        except UserError as error:
            mistakes.append(error)
            continue
        item = Item(
            prompt=line.prompt,
            name=name,
            negative=line.negative if line.negative is not None else defaults.negative,
            seed=line.seed if line.seed is not None else defaults.seed + number,
            size=size,
            image=defaults.image if line.image is None else folder / user_path(line.image),
        )
        entries.append(Entry(item, where))
    mistakes += _repeated(entries)
    if mistakes:
        raise combined(mistakes)
    return entries


def from_images(folder: Path, prompt: str, defaults: Defaults) -> tuple[list[Entry], list[str]]:
    """Make an entry per image below a folder, in the order of paths; returns also the files that are not
    images.

    A result has the name of its image without the suffix. If two images differ only by suffix, all names get
    it, as `lake-jpg`.
    """
    files = sorted(_files_below(folder))
    suffixes = {name: PurePosixPath(name).suffix.lower().lstrip(".") for name in files}
    images = [name for name in files if suffixes[name] in IMAGES]
    if not images:
        raise UserError(f"--image {folder} contains no image", f"suffixes are {', '.join(sorted(IMAGES))}")
    stems = [str(PurePosixPath(name).with_suffix("")) for name in images]
    if len({stem.casefold() for stem in stems}) < len(stems):
        stems = [f"{stem}-{PurePosixPath(name).suffix[1:]}" for stem, name in zip(stems, images, strict=True)]
    entries = []
    for number, (image, name) in enumerate(zip(images, stems, strict=True)):
        file = folder / image
        safe = _checked(name, str(file), _HERE)
        item = Item(
            prompt=prompt, name=safe, negative=defaults.negative, seed=defaults.seed + number, image=file
        )
        entries.append(Entry(item, str(file)))
    return entries, [name for name in files if suffixes[name] not in IMAGES]


def _files_below(folder: Path) -> Iterable[str]:
    """Relative paths of the files below a folder, without hidden ones."""
    if not os.access(folder, os.R_OK):
        raise UserError(f"--image {folder} cannot be read", "name an image, or a folder of images")
    for at, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        below = Path(at).relative_to(folder)
        yield from ((below / name).as_posix() for name in files if not name.startswith("."))


def _checked(name: str, where: str, allowed: re.Pattern[str] = _ANYWHERE) -> str:
    """Return the name. Raises UserError if a file of a set cannot have it."""
    for part in name.split("/"):
        wrong = (
            not allowed.fullmatch(part)
            or part.startswith(".")
            or part.endswith((" ", "."))
            or part.lower().endswith((".png", ".json"))
            or len(part.encode("utf-8", "surrogatepass")) > MOST_BYTES
            or not _is_text(part)
        )
        if wrong:
            fix = f"letters, digits, spaces, - _ . and /, at most {MOST_BYTES} bytes, without .png at the end"
            raise UserError(f"{where}: a file cannot be called '{name}'", fix)
    return name


def _is_text(part: str) -> bool:
    """Whether a name has no lone surrogates, as those of a file name that is not UTF-8."""
    return not any("\ud800" <= character <= "\udfff" for character in part)


def _repeated(entries: Sequence[Entry]) -> Iterator[UserError]:
    """Yield an error for each name that an earlier item has."""
    # ignore case, as some file systems do
    seen: dict[str, str] = {}
    for item, where in entries:
        key = item.name.casefold()
        if key in seen:
            yield UserError(
                f"{where}: the name '{item.name}' is already used by {seen[key]}", "choose another"
            )
        else:
            seen[key] = where
