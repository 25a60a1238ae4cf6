"""Hashes of weights without reading 24 GB every time.

A file in the hub's cache has its SHA-256 as its name there; other hashes are stored in the user's cache and
are valid as long as the file does not change.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from uhr.base.config import fingerprint
from uhr.base.console import progress, warn
from uhr.base.errors import UserError, one_line
from uhr.base.files import sha256_file, user_cache, write_json
from uhr.models.files.folders import weight_files

SMALL = 16_000_000
"""Bytes of a file that is hashed as quickly as its stored hash is looked up."""

QUICK = 500_000_000
"""Bytes that are hashed so quickly that no progress is shown."""

SETTLED = 2.0
"""Seconds since its last change after which a file's hash is stored: within a file system's clock tick it may
change again and have the same time."""

_MB = 1_000_000
_SHA256 = re.compile("[0-9a-f]{64}")

_Advance = Callable[[int], None]

FileState = dict[str, str | int]
"""The result of `file_state`."""


def hash_of(path: Path, advance: _Advance | None = None) -> str:
    """Return the SHA-256 (64 hex digits) of a file, or of a folder's safetensors files.

    A folder's hash is over the sorted names and the hash of each file's bytes. A folder without weights (a
    tokenizer, a scheduler) is hashed over all of its files. `advance(n)` is called for every n bytes. Raises
    UserError for an empty folder.
    """
    if path.is_file():
        return file_hash(path, advance)
    files = hashed_files(path)
    if not files:
        raise UserError(f"{path} is empty", "expected weights or configuration there")
    total = hashlib.sha256()
    for file in files:
        total.update(f"{file.name} {file_hash(file, advance)}\n".encode())
    return total.hexdigest()


def config_of(component: Path) -> dict[str, Any]:
    """Read the config.json of a component's folder; an empty mapping if there is none.

    Keys with a leading underscore are left out: they record where and by which version it was saved.
    """
    file = component / "config.json"
    try:
        tree = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} cannot be read ({one_line(error)})", "fix or download it again") from None
    return {key: value for key, value in tree.items() if not key.startswith("_")}


def config_hash(component: Path) -> str | None:
    """Return the hash of `config_of` (64 hex digits); None if that is empty."""
    config = config_of(component)
    return fingerprint(config) if config else None


def shown_hash(path: Path, what: str) -> str:
    """Return `hash_of`; if that takes long, show its progress as "hash `what`"."""
    files = [path] if path.is_file() else hashed_files(path)
    size = sum(file.stat().st_size for file in files if known_hash(file) is None)
    if size < QUICK:
        return hash_of(path)
    done = 0
    with progress(f"hash {what}", size // _MB, "MB") as advance:

        def more(count: int) -> None:
            nonlocal done
            before, done = done, done + count
            advance(done // _MB - before // _MB)

        return hash_of(path, more)


def hashed_files(folder: Path) -> list[Path]:
    """Return the files of a folder that its hash covers: its weights, or all files if it has none."""
    return weight_files(folder) or sorted(p for p in folder.glob("*") if p.is_file())


def file_hash(path: Path, advance: _Advance | None = None) -> str:
    """Return the SHA-256 (64 hex digits) of a file, which is read only if its hash is not known yet.

    `advance(n)` is called for every n bytes that are read.
    """
    known = known_hash(path)
    if known is not None:
        return known
    before = file_state(path)
    found = sha256_file(path, advance)
    if (
        path.stat().st_size >= SMALL
        and before == file_state(path)
        and abs(time.time() - path.stat().st_mtime) >= SETTLED
    ):
        _remember(before, found)
    return found


def known_hash(path: Path) -> str | None:
    """Return a file's SHA-256 from the hub's cache or a stored hash; None if neither has it."""
    if path.stat().st_size < SMALL:
        return None
    return _of_hub(path) or _remembered(file_state(path))


def _of_hub(path: Path) -> str | None:
    """Return the name of the blob `models--org--name/blobs/SHA256` that a link of the hub's cache leads to.

    Files that are not in LFS are named by git's hash, of 40 digits, and give None. A blob may itself be a
    link to a store that repositories share, under a hash of another kind.
    """
    path = Path(os.path.abspath(path))
    for _ in range(8):
        blobs = path.parent
        if (
            blobs.name == "blobs"
            and blobs.parent.name.startswith("models--")
            and _SHA256.fullmatch(path.name)
        ):
            return path.name
        if not path.is_symlink():
            return None
        path = Path(os.path.normpath(path.parent / os.readlink(path)))
    return None


def file_state(path: Path) -> FileState:
    """Return what distinguishes contents of a file without reading it; times are in ns.

    The inode's time (ctime) cannot be set back when a file is replaced under its old modification time.
    """
    real = path.resolve()
    stat = real.stat()
    return {
        "path": str(real),
        "size": stat.st_size,
        "mtime": stat.st_mtime_ns,
        "ctime": stat.st_ctime_ns,
        "inode": stat.st_ino,
    }


def same_bytes(one: FileState, other: FileState) -> bool:
    """Whether two states of a file are of the same bytes, as far as that is known without reading it.

    The inode's time is not compared: a new mode or another hard link changes it.
    """
    return all(one[name] == other[name] for name in ("path", "size", "mtime", "inode"))


def _memory(state: FileState) -> Path:
    """Return the file of a path's stored hash: one for each path, so that concurrent writers do not
    conflict."""
    return user_cache("hashes") / f"{fingerprint(state['path'])[:32]}.json"


def _remembered(state: FileState) -> str | None:
    try:
        found = json.loads(_memory(state).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        # missing or damaged: the file is hashed again, and this is rewritten
        return None
    if not isinstance(found, dict) or found.get("state") != state:
        return None
    value = found.get("sha256")
    return value if isinstance(value, str) and _SHA256.fullmatch(value) else None


def _remember(state: FileState, value: str) -> None:
    file = _memory(state)
    try:
        write_json(file, {"state": state, "sha256": value})
    except OSError as error:
        warn(
            f"the hash of {state['path']} cannot be stored in {file} ({one_line(error)}); "
            "it will be computed again"
        )
