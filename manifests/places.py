"""Where a manifest is: a folder of this machine, or a prefix of an object store (`s3://bucket/prefix`).

A manifest in a store is read from a copy in the user's cache, and written there from a folder in it: Parquet
and DuckDB see local files only. `manifest.json` is put on the condition that none exists, and the names of
the parts contain their hashes, so that of two writers one commits, and the other changes nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import re
import shutil
import tempfile
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path

from uhr.base.errors import UserError
from uhr.base.files import atomic, json_bytes, saving, sha256_file, user_cache
from uhr.base.paths import in_store, path_text, text_path
from uhr.base.run_folder import RunFolder, all_or_nothing
from uhr.base.store import ObjectStore
from uhr.manifests.info import (
    FILE,
    ManifestInfo,
    Part,
    check_outside_manifests,
    is_manifest,
    parse_info,
    read_info,
)
from uhr.manifests.parts import JOURNAL, LAYOUT, PIXELS, PREVIEWS, SAMPLES

_CACHE = "manifests"
UNITS = "units"
"""The folder of the units of a run, beside the manifest that it will write."""

_WITHOUT_RECORDS = {SAMPLES, PREVIEWS, PIXELS, "latents", "texts", UNITS}

_PLACE = "place"
"""The file beside a copy that has the address of the manifest."""

FIX = "free space there, then repeat the command"


def place_of(path: Path | str) -> str:
    """Return the path as a record has it, or the address, also if `path` is the copy of a manifest there."""
    if in_store(path):
        return path
    folder = _folder(path)
    note = folder.parent / _PLACE
    if note.is_file() and folder.is_relative_to(user_cache(_CACHE)):
        return note.read_text(encoding="utf-8")
    return path_text(folder.resolve())


def shown(path: Path) -> str:
    """Return the path as it was given, or the address of a copy: the name of a manifest in messages."""
    place = place_of(path)
    return place if in_store(place) else str(path)


def local(place: Path | str) -> Path:
    """Return the folder of a manifest on this machine; that of a copy if `place` is an address.

    The copy has the samples and the previews, and is made once for each content of `manifest.json`.

    Raises UserError if there is no manifest at the address, or if a file of it has changed.
    """
    if not in_store(place):
        return _folder(place)
    store = ObjectStore(place)
    data = _committed(store)
    info = parse_info(data, f"{place}/{FILE}")
    home = _home(place, data)
    folder = home / "manifest"
    _write_new(home / _PLACE, place.encode())
    for part in (*info.parts, *info.previews):
        _fetch(store, part, folder)
    _write_new(folder / FILE, data)
    return folder


@contextlib.contextmanager
def as_stored(place: Path | str) -> Generator[Path]:
    """Yield the folder of a manifest, with all of its files as they are; for an address that of a copy of its
    own, which is removed at the end. What is missing or has changed in the store is so in the copy.
    """
    if not in_store(place):
        yield Path(place)
        return
    store = ObjectStore(place)
    data = _committed(store)
    info = parse_info(data, f"{place}/{FILE}")
    cache = user_cache(_CACHE)
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix="verify-") as home:
        folder = Path(home) / "manifest"
        _write_new(Path(home) / _PLACE, place.encode())
        _write_new(folder / FILE, data)
        for part in all_parts(info):
            with contextlib.suppress(FileNotFoundError), atomic(folder / part.path) as temporary:
                store.fetch(part.path, temporary)
        for name in store.names():
            if name.endswith(".parquet") and not (folder / name).exists():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).touch()
        yield folder


def _write_new(file: Path, data: bytes) -> None:
    if not file.is_file():
        with atomic(file) as temporary:
            temporary.write_bytes(data)


def _fetch(store: ObjectStore, part: Part, folder: Path) -> None:
    target = folder / part.path
    if target.is_file() and target.stat().st_size == part.bytes:
        return
    fix = f"see 'uhr manifest verify {store.text}', or make it anew"
    try:
        with atomic(target) as temporary:
            store.fetch(part.path, temporary)
            if sha256_file(temporary) != part.sha256:
                raise UserError(f"{store.place(part.path)} has changed", fix)
    except FileNotFoundError:
        raise UserError(f"{store.place(part.path)} is missing", fix) from None


def is_forgetting(place: Path | str) -> bool:
    """Whether a `forget` that began at this manifest has not been finished."""
    if in_store(place):
        return ObjectStore(place).exists(JOURNAL)
    return (Path(place) / JOURNAL).is_file()


def info_at(place: Path | str) -> ManifestInfo:
    """Read the `manifest.json` at a path or an address. Raises UserError as `read_info` does."""
    if not in_store(place):
        return read_info(_folder(place))
    return parse_info(_committed(ObjectStore(place)), f"{place}/{FILE}")


def _committed(store: ObjectStore) -> bytes:
    data = store.read(FILE)
    if data is None and store.exists(f"{UNITS}/plan.json"):
        raise UserError(f"{store.text} contains an unfinished run", "repeat the same command: it resumes")
    if data is None:
        raise UserError(f"no manifest at {store.text}", "name the prefix that the manifest was written to")
    return data


def is_manifest_at(place: Path | str) -> bool:
    """Whether there is a committed manifest at a path or an address."""
    if in_store(place):
        return ObjectStore(place).exists(FILE)
    return is_manifest(_folder(place))


def is_unfinished_at(place: Path | str) -> bool:
    """Whether there are the units of a run at a path or an address, and no manifest."""
    if not in_store(place):
        return (_folder(place) / UNITS).is_dir() and not (_folder(place) / FILE).exists()
    store = ObjectStore(place)
    return not store.exists(FILE) and store.exists(f"{UNITS}/plan.json")


def folders_below(folder: Path, most: float = math.inf) -> Iterator[tuple[Path, list[str]]]:
    """Yield a folder and those below it, `most` levels deep, each with the names of its files. Hidden folders
    and those of the parts of a manifest or of encoded data are left out: no records are in them.
    """
    top = len(folder.parts)
    for name, folders, files in os.walk(folder):
        here = Path(name)
        parts = _WITHOUT_RECORDS if FILE in files else set()
        below = [each for each in folders if each not in parts and not each.startswith(".")]
        folders[:] = sorted(below) if len(here.parts) - top < most else []
        yield here, files


def _folder(place: Path | str) -> Path:
    return text_path(place) if isinstance(place, str) else place


def file_at(place: str, name: str) -> Path:
    """Return the file `name` of the manifest whose `place_of` is `place`. One in a store is copied once."""
    if not in_store(place):
        return text_path(place) / name
    store = ObjectStore(place)
    key = hashlib.sha256(f"{place}/{name}:{store.version(name)}".encode()).hexdigest()[:32]
    target = user_cache(_CACHE) / "files" / key
    if not target.is_file():
        with atomic(target) as temporary:
            store.fetch(name, temporary)
    return target


@contextlib.contextmanager
def output(out: Path | str, *, option: str = "--out") -> Generator[Path]:
    """Yield an empty folder in which the block writes a manifest; it is at `out` when the block has ended.

    Nothing is left if the block fails. One process at a time can be in the block for a folder, and of several
    for a prefix only the first commits.

    Raises UserError if `out` contains a manifest or anything else, is inside a manifest, or cannot be
    written.
    """
    if in_store(out):
        with _staged(out, option) as folder:
            yield folder
        return
    out = Path(out)
    with saving(out, FIX):
        check_outside(out)
        folder = RunFolder(out, LAYOUT)
        folder.claim()
        with folder.lock(), all_or_nothing(out):
            yield out


def check_outside(out: Path | str) -> None:
    """Raise UserError if a folder, prefix or file is inside the place of a manifest."""
    if not in_store(out):
        check_outside_manifests(Path(out))
        return
    bucket, *parts = out.removeprefix("s3://").split("/")
    for depth in range(len(parts)):
        above = f"s3://{'/'.join([bucket, *parts[:depth]])}"
        if ObjectStore(above).exists(FILE):
            raise UserError(f"--out {out} is inside the manifest {above}", "name a prefix outside it")


@contextlib.contextmanager
def _staged(out: str, option: str) -> Generator[Path]:
    store = ObjectStore(out)
    if store.exists(FILE):
        raise UserError(f"{out} already contains a manifest", f"name another prefix with {option}")
    check_outside(out)
    # it may take hours until there is something to put there
    store.probe()
    cache = user_cache(_CACHE)
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix="new-") as folder:
        yield Path(folder)
        _upload(store, Path(folder), option)


def publish(out: str, folder: Path, *, option: str = "--out") -> Path:
    """Put the manifest in `folder` at the address `out`; return the folder of its copy, as `local` does. The
    files of `folder` become those of the copy.

    Raises UserError if there is a manifest at the address by then.
    """
    store = ObjectStore(out)
    before = parse_info((folder / FILE).read_bytes(), str(folder / FILE))
    _upload(store, folder, option)
    copy = _home(out, _committed(store)) / "manifest"
    for part, renamed in zip(all_parts(before), all_parts(info_at(out)), strict=True):
        (copy / renamed.path).parent.mkdir(parents=True, exist_ok=True)
        shutil.move(folder / part.path, copy / renamed.path)
    return local(out)


def _home(place: str, data: bytes) -> Path:
    """Return the folder of the copy of a manifest whose `manifest.json` is `data`."""
    return user_cache(_CACHE) / hashlib.sha256(place.encode() + data).hexdigest()[:32]


def _upload(store: ObjectStore, folder: Path, option: str) -> None:
    """Put the files of a manifest into the store, and `manifest.json` last, unless one is there by then."""
    info = parse_info((folder / FILE).read_bytes(), str(folder / FILE))
    put: list[str] = []

    def renamed(parts: Iterable[Part]) -> list[Part]:
        moved = []
        for part in parts:
            name = f"{part.path.removesuffix('.parquet')}-{part.sha256[:16]}.parquet"
            if not store.exists(name):
                put.append(name)
                store.upload(folder / part.path, name)
            moved.append(part.model_copy(update={"path": name}))
        return moved

    info = info.model_copy(update={name: renamed(getattr(info, name)) for name in _PARTS})
    if not store.create(FILE, json_bytes(info.model_dump(mode="json"))):
        theirs = parse_info(store.read(FILE) or b"", store.place(FILE))
        kept = {part.path for part in all_parts(theirs)}
        for name in put:
            if name not in kept:
                store.delete(name)
        raise UserError(
            f"another command has written a manifest to {store.text} meanwhile",
            f"name another prefix with {option}",
        )


def replace(place: str, staged: Path, info: ManifestInfo) -> None:
    """Put the manifest `info`, whose new files are in the folder `staged`, in the place of the one there.

    Readers see the old manifest or the new one at any moment: files get names with their hashes, and
    `manifest.json` is replaced after them. Files that the new one does not name are removed at last; `tidy`
    does it too, if this process is killed before.

    Raises UserError if another command has replaced the manifest in a store meanwhile.
    """
    store = ObjectStore(place) if in_store(place) else None
    folder = None if store is not None else text_path(place)
    version = "" if store is None else store.version(FILE)

    def put(part: Part) -> Part:
        file = staged / part.path
        if not file.is_file():
            return part  # it is there already
        stem = re.sub(r"-[0-9a-f]{16}$", "", part.path.removesuffix(".parquet"))
        name = f"{stem}-{part.sha256[:16]}.parquet"
        if store is not None:
            store.upload(file, name)
        elif folder is not None:
            (folder / name).parent.mkdir(exist_ok=True)
            file.rename(folder / name)
        return part.model_copy(update={"path": name})

    named = {name: [put(part) for part in getattr(info, name)] for name in _PARTS}
    data = json_bytes(info.model_copy(update=named).model_dump(mode="json"))
    if folder is not None:
        with atomic(folder / FILE) as temporary:
            temporary.write_bytes(data)
    elif store is not None and not store.replace(FILE, data, version):
        raise UserError(f"another command has changed {place} meanwhile", "repeat the command")
    tidy(place)


@contextlib.contextmanager
def locked(place: str) -> Generator[None]:
    """Be the only process that changes the manifest in a folder, while the block runs. In a store, `replace`
    has a condition instead. Raises UserError if another process has the lock.
    """
    if in_store(place):
        yield
        return
    with RunFolder(text_path(place), LAYOUT).lock():
        yield


def tidy(place: str) -> None:
    """Remove Parquet files of a manifest that its `manifest.json` does not name, and copies of it."""
    info = info_at(place)
    known = {part.path for part in all_parts(info)}
    folders = {path.partition("/")[0] for path in known} | {SAMPLES, PREVIEWS, PIXELS}
    if in_store(place):
        store = ObjectStore(place)
        for name in store.names():
            if name.partition("/")[0] in folders and name.endswith(".parquet") and name not in known:
                store.delete(name)
    else:
        home = text_path(place)
        for each in sorted(folders):
            for file in (home / each).glob("*.parquet"):
                if f"{each}/{file.name}" not in known:
                    file.unlink()
    forget_copies(place)


def forget_copies(place: str) -> None:
    """Remove what the user's cache has of the earlier contents of a manifest."""
    for copy in copies_of(place):
        shutil.rmtree(copy, ignore_errors=True)


def copies_of(place: str) -> list[Path]:
    """Return the folders of the user's cache that may have rows, previews or pixels of a manifest. The files
    of `file_at` are those of any manifest.
    """
    notes = user_cache(_CACHE).glob(f"*/{_PLACE}")
    found = [note.parent for note in notes if note.read_text(encoding="utf-8") == place]
    return [folder for folder in (*found, user_cache(_CACHE) / "files") if folder.is_dir()]


def other_caches() -> list[Path]:
    """Return the other caches of this machine that this user can see, sorted: those of other users, and that
    at home where XDG_CACHE_HOME names another.
    """
    mine, found = user_cache("").resolve(), set()
    for homes in {Path.home().parent, Path("/home")}:
        with contextlib.suppress(OSError):
            found |= {cache.resolve() for cache in homes.glob("*/.cache/uhr")}
    return sorted(found - {mine})


_PARTS = ("parts", "previews", "attachments")


def all_parts(info: ManifestInfo) -> list[Part]:
    """Return every Parquet file of a manifest."""
    return [*info.parts, *info.previews, *info.attachments]
