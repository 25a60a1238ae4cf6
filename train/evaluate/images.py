"""Finds the images of an evaluation: a generated set, a folder of any generator, references, a manifest."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from uhr.base import parquet
from uhr.base.config import fingerprint
from uhr.base.console import counted, progress, warn
from uhr.base.errors import UserError, combined
from uhr.base.files import sha256_file
from uhr.base.paths import or_similar, path_text, place_text, text_path, text_place
from uhr.base.store import FolderStore, StoreError
from uhr.train.evaluate.prompts import METADATA, EvalItem, metadata_rows
from uhr.train.generate import index
from uhr.train.generate.items import IMAGES

if TYPE_CHECKING:
    import numpy as np

    from uhr.manifests.sources.blobs import Blob
    from uhr.pixels.types import Header

MOST_NAMED = 3
"""Missing images that an error names."""


class ImageRef(NamedTuple):
    """An image that can be opened in another process.

    Args:
        name: for people.
        place: the file, or the manifest that has it, as `uhr.base.paths.place_text`.
        item: of a manifest's row, as JSON; None for a file.
    """

    name: str
    place: str
    item: str | None = None

    @property
    def path(self) -> Path | None:
        """The file; None for a row of a manifest."""
        return text_path(self.place) if self.item is None else None

    def blob(self) -> Blob:
        """Open its bytes."""
        from uhr.manifests.sources.blobs import LocalBlob

        if self.item is None:
            return LocalBlob(str(text_path(self.place)))
        return _source(self.place).open(json.loads(self.item))

    @property
    def _is_fetched(self) -> bool:
        """Whether its bytes come from a URL, whose host may be down for good."""
        return self.item is not None and _source(self.place).fetches_item(json.loads(self.item))

    @property
    def box(self) -> tuple[int, int, int, int] | None:
        """Of a patch of a manifest: x, y, width, height in px of the upright image."""
        box = None if self.item is None else json.loads(self.item)["box"]
        return None if box is None else (box[0], box[1], box[2], box[3])

    def size(self) -> tuple[int, int]:
        """Width and height of the upright image in px, from its header. Raises UserError if it has none."""
        header: Header = self._checked(lambda: self.blob().header())
        return self.box[2:] if self.box is not None else (header.width, header.height)

    def check_end(self) -> None:
        """Raise UserError, as `pixels`, for a file that is a PNG or JPEG and cut off: only one that lacks its
        last bytes is decoded.
        """
        from uhr.pixels.headers import lacks_end

        path = self.path
        if path is not None and self._checked(lambda: lacks_end(path)):
            self.pixels()

    def pixels(self) -> tuple[np.ndarray, str, int]:
        """Decode the image.

        Returns uint8 [H, W, 3] (upright sRGB), the SHA-256 of the file, and its size in bytes. Raises
        UserError if it cannot be read or is damaged.
        """
        from uhr.pixels.decode import decode

        data = self._checked(lambda: self.blob().read())
        image = self._checked(lambda: decode(data).rgb(self.box))
        return image, hashlib.sha256(data).hexdigest(), len(data)

    def sha256(self) -> str:
        """The SHA-256 of its file. Raises UserError if it cannot be read."""
        if self.path is not None:
            return sha256_file(self.path)
        return hashlib.sha256(self._checked(lambda: self.blob().read())).hexdigest()

    def _checked(self, read: Callable[[], Any]) -> Any:
        """Return what `read` does. Raises StoreError if its bucket does not answer, otherwise UserError."""
        from uhr.pixels.types import PixelFault

        try:
            return read()
        except PixelFault as fault:
            if fault.kind == "unavailable" and not self._is_fetched:
                fix = "repeat the command when its store answers"
                raise StoreError(f"{self.name} cannot be read: {fault.message}", fix) from None
            raise UserError(
                f"{self.name} cannot be used ({fault.kind}: {fault.message})", "replace it"
            ) from None


OPENED_BY = ("uri", "source_version", "source_name", "box", "content_hash")
"""The columns of a manifest by which the image of a row is opened, as far as the manifest has them. Images
that it has stored are found by their hash."""


def row_ref(place: Path | str, row: Mapping[str, Any]) -> ImageRef:
    """The image of a row of the manifest at a place; the row has its values of `OPENED_BY`."""
    return ImageRef(row["uri"], place_text(place), json.dumps({name: row.get(name) for name in OPENED_BY}))


@lru_cache(maxsize=4)
def _source(place: str) -> Any:
    from uhr.manifests.manifest import Manifest

    return Manifest.open(text_place(place)).source


class ImageSet(NamedTuple):
    """The generated images of an evaluation, in the order of its items.

    `made` says how they were generated, as far as that is known: the facts of a set of `uhr sample`.
    """

    folder: Path
    refs: list[ImageRef]
    made: dict[str, Any] | None


def find(folder: Path, items: Sequence[EvalItem]) -> ImageSet:
    """Find the image of each item in a folder.

    The folder is a set of `uhr sample` or `uhr eval generate`; or it has a metadata.jsonl with `file_name`
    and `index`, `name`, or the prompt as `text` or `prompt`; or its files are called by the item's name or
    index (`0007.png`, `7.jpg`).

    Raises UserError if the folder has no image for an item, two for one item, an image of another prompt,
    seed or size, or one that is not an image.
    """
    if not folder.is_dir():
        raise UserError(f"--images {folder} is not a folder", "name the folder of the generated images")
    made = None
    if (folder / index.FILE).exists():
        info = index.read_set(FolderStore(str(folder)))
        assert info is not None
        made = {
            "set": info.id,
            "request": info.request.request.model_dump(mode="json"),
            "weights": info.weights,
            "adapters": info.adapters,
        }
        found = _of_set(folder, items)
    elif (folder / METADATA).exists():
        found = _of_metadata(folder, items)
    else:
        found = _by_name(folder, items)
    missing = [item for item in items if item.index not in found]
    if missing:
        names = ", ".join(f"{item.name} ('{_short(item.prompt)}')" for item in missing[:MOST_NAMED])
        more = f" and {len(missing) - MOST_NAMED:,} more" if len(missing) > MOST_NAMED else ""
        what = f"{folder} has no image for {len(missing):,} of {counted(len(items), 'prompt')}: {names}{more}"
        raise UserError(what, "generate them, or score the first N prompts with --first N")
    refs = [ImageRef(str(found[item.index]), path_text(found[item.index].absolute())) for item in items]
    _check_sizes(refs, items)
    return ImageSet(folder, refs, made)


def _short(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:40]}..."


def _of_set(folder: Path, items: Sequence[EvalItem]) -> dict[int, Path]:
    rows = {row["name"]: row for row in parquet.read(folder / index.INDEX).to_pylist()}
    found, mistakes = {}, []
    for item in items:
        row = rows.get(item.name)
        if row is None or row["status"] != "made":
            continue
        differs = [
            name
            for name, other in (
                ("prompt", item.prompt not in (row["prompt"], row["original_prompt"])),
                ("seed", row["seed"] != item.seed),
            )
            if other
        ]
        if differs:
            mistakes.append(UserError(f"{row['file']} has another {' and '.join(differs)} than the protocol"))
        found[item.index] = folder / row["file"]
    if mistakes:
        first = combined(mistakes)
        raise UserError(f"{folder}: {first.what}", "generate the set with `uhr eval generate`")
    return found


def _of_metadata(folder: Path, items: Sequence[EvalItem]) -> dict[int, Path]:
    by_name = {item.name: item.index for item in items}
    by_prompt: dict[str, list[int]] = {}
    for item in items:
        by_prompt.setdefault(item.prompt, []).append(item.index)
    found: dict[int, Path] = {}
    for where, row in metadata_rows(folder / METADATA):
        file = folder / row["file_name"]
        at = _index_of(row, by_name, by_prompt, found, len(items))
        if at is None:
            continue
        if at in found:
            raise UserError(f"{where} is a second image of item {at}", "keep one of them")
        _check_prompt(where, row, items[at])
        if not file.is_file():
            raise UserError(f"{where}: {file} does not exist", "correct file_name")
        found[at] = file
    return found


def _check_prompt(where: str, row: Mapping[str, Any], item: EvalItem) -> None:
    """Raise UserError if a line that names an item by index or name has another prompt than that."""
    texts = [value.strip() for key in ("text", "prompt") if isinstance(value := row.get(key), str)]
    if texts and item.prompt.strip() not in texts:
        what = f"{where} is of {item.name} ('{_short(item.prompt)}'), and its text is '{_short(texts[0])}'"
        raise UserError(what, "correct its index or name; without a text it is not compared")


def _index_of(
    row: Mapping[str, Any],
    by_name: Mapping[str, int],
    by_prompt: Mapping[str, list[int]],
    found: Mapping[int, Path],
    count: int,
) -> int | None:
    """The item that a line of metadata.jsonl is of; None if it is of none."""
    number, name = row.get("index"), row.get("name")
    if isinstance(number, int) and not isinstance(number, bool):
        return number if 0 <= number < count else None
    if isinstance(name, str) and name in by_name:
        return by_name[name]
    text = row.get("text") if isinstance(row.get("text"), str) else row.get("prompt")
    # a prompt with several seeds or that occurs twice: its images in their order
    return next((at for at in by_prompt.get(str(text).strip(), ()) if at not in found), None)


def _by_name(folder: Path, items: Sequence[EvalItem]) -> dict[int, Path]:
    by_name = {item.name: item.index for item in items}
    found: dict[int, Path] = {}
    unknown = 0
    for file in image_files(folder):
        name = file.relative_to(folder).with_suffix("").as_posix()
        at = by_name.get(name)
        if at is None and name.isdecimal() and int(name) < len(items):
            at = int(name)
        if at is None:
            unknown += 1
        elif at in found:
            raise UserError(f"{file} and {found[at].name} are images of one prompt", "keep one of them")
        else:
            found[at] = file
    if unknown and found:
        warn(f"{folder} also has {counted(unknown, 'image')} of no prompt of this protocol: not scored")
    return found


def image_files(folder: Path) -> list[Path]:
    """The image files below a folder, by path, without hidden ones."""
    found = []
    for at, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [
            Path(at) / name
            for name in files
            if not name.startswith(".") and name.rpartition(".")[2].lower() in IMAGES
        ]
    return sorted(found)


def _check_sizes(refs: Sequence[ImageRef], items: Sequence[EvalItem]) -> None:
    mistakes = []
    for ref, item in zip(refs, items, strict=True):
        try:
            size = ref.size()
            ref.check_end()
        except UserError as error:
            mistakes.append(error)
            continue
        if size != item.size:
            wanted = f"{item.size[0]}x{item.size[1]}"
            fix = "generate that size, or score another one with --set size=WIDTHxHEIGHT"
            mistakes.append(UserError(f"{ref.name} is {size[0]}x{size[1]} px, not {wanted}", fix))
    if mistakes:
        raise combined(mistakes, 3)


class References(NamedTuple):
    """The reference images of an evaluation.

    `place` is where they are; `kind` is "set", or "paired" if `refs` has one per item; `id` is a hash of
    which images they are (64 hex digits).
    """

    place: Path | str
    kind: str
    refs: list[ImageRef]
    id: str

    @property
    def distinct(self) -> dict[ImageRef, int]:
        """Each image with the first number that it has: the seeds of a prompt share a reference, which is
        one image of the set that metrics of sets compare with.
        """
        found: dict[ImageRef, int] = {}
        for number, ref in enumerate(self.refs):
            found.setdefault(ref, number)
        return found


def find_references(
    place: Path | str,
    kind: str,
    items: Sequence[EvalItem],
    first: int | None = None,
    option: str = "--references ",
) -> References:
    """Find the reference images in a folder, a published set, or the kept rows of a manifest, which may be at
    an address in an object store.

    Paired ones are matched to items as generated images are; those of a manifest by `sample_id`, or by a
    caption that is the prompt. Of a set, only the `first` ones are used. `option` is how a command line
    names the place. Raises UserError if there are none, or if a prompt has none.
    """
    from uhr.manifests.places import is_manifest_at

    if isinstance(place, Path):
        place = place.parent if place.name == METADATA else place
        if not place.is_dir():
            fix = or_similar(place, "name a folder of images, or a manifest")
            raise UserError(f"{option}{place} is not a folder", fix)
    if is_manifest_at(place):
        refs, hashes = _of_manifest(place, kind, items, first)
    elif isinstance(place, Path):
        refs, hashes = _of_folder(place, kind, items, first)
    else:
        raise UserError(f"{option}{place} is not a manifest", "name a manifest, or a folder of this machine")
    if not refs:
        raise UserError(f"{option}{place} contains no image", "name a folder of images, or a manifest")
    return References(place, kind, refs, fingerprint([kind, hashes]))


def _of_manifest(
    place: Path | str, kind: str, items: Sequence[EvalItem], first: int | None
) -> tuple[list[ImageRef], list[str]]:
    rows = _manifest_rows(place)[:first]
    refs = [ref for ref, _, _, _ in rows]
    hashes = _hashes(refs, [key for _, key, _, _ in rows])
    if kind != "paired":
        return refs, hashes
    by_text = {text: number for number, (_, _, _, text) in enumerate(rows) if text}
    by_text |= {sample: number for number, (_, _, sample, _) in enumerate(rows)}
    chosen = [by_text.get(item.name, by_text.get(item.prompt, -1)) for item in items]
    _check_paired(place, chosen, items)
    return [refs[at] for at in chosen], [hashes[at] for at in chosen]


def _of_folder(
    place: Path, kind: str, items: Sequence[EvalItem], first: int | None
) -> tuple[list[ImageRef], list[str]]:
    if kind == "paired":
        files = [item.reference for item in items if item.reference is not None]
        # those of a published set, whose metadata names them with the prompts
        beside = len(files) == len(items) and all(file.is_relative_to(place) for file in files)
        if not beside:
            found = _of_metadata(place, items) if (place / METADATA).exists() else _by_name(place, items)
            _check_paired(place, [0 if item.index in found else -1 for item in items], items)
            files = [found[item.index] for item in items]
        return _of_files(files)
    # in the order of a manifest of the same folder: the positions of crops depend on an image's number
    files = sorted(image_files(place), key=lambda file: file.relative_to(place).as_posix())
    return _of_files(files[:first])


def _of_files(files: Sequence[Path]) -> tuple[list[ImageRef], list[str]]:
    for file in files:
        if not file.is_file():
            fix = "restore it, or remove what names it (a link, a line of metadata)"
            raise UserError(f"the reference {file} does not exist", fix)
    refs = [ImageRef(str(file), path_text(file.absolute())) for file in files]
    return refs, _hashes(refs, [None] * len(refs))


def _hashes(refs: Sequence[ImageRef], known: Sequence[str | None]) -> list[str]:
    """What tells images apart: the SHA-256 of the file, and of a patch its place in it."""
    found = list(known)
    left = [at for at, hashed in enumerate(known) if hashed is None]
    if left:
        with progress("hash", len(left), "references") as advance:
            for at in left:
                found[at] = refs[at].sha256()
                advance()
    return [
        str(hashed) if ref.box is None else f"{hashed} {list(ref.box)}"
        for ref, hashed in zip(refs, found, strict=True)
    ]


def _check_paired(place: Path | str, chosen: Sequence[int], items: Sequence[EvalItem]) -> None:
    missing = [item.name for item, at in zip(items, chosen, strict=True) if at < 0]
    if missing:
        what = f"{place} has no reference for {len(missing):,} of {len(items):,} prompts ({missing[0]}, ...)"
        raise UserError(what, "name the references of these prompts")


def _manifest_rows(place: Path | str) -> list[tuple[ImageRef, str | None, str, str | None]]:
    """The kept rows of a manifest by uri: reference, hash of its file if it has it, sample id and caption."""
    from uhr.manifests.manifest import Manifest

    manifest = Manifest.open(place)
    wanted = ("sample_id", *OPENED_BY, "caption")
    columns = [name for name in wanted if name in manifest.schema.names]
    found = []
    for row in manifest.table(columns, where="status = 'kept'").to_pylist():
        ref = row_ref(place, row)
        text = (row.get("caption") or "").strip() or None
        found.append((ref, row.get("content_hash"), row["sample_id"], text))
    return sorted(found, key=lambda each: (each[0].name, each[0].item))
