"""Hashes of weights without reading 24 GB every time.

A file that lies in the hub's cache is stored there under its SHA-256; what was hashed once is remembered in
the user's cache, as long as the file stays as it is.
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
from uhr.base.errors import UserError
from uhr.base.files import sha256_file, user_cache, write_json
from uhr.models.files.containers import weight_files

SMALL = 16_000_000
"""Bytes that are hashed as quickly as a memory of them is looked up."""

QUICK = 500_000_000
"""Bytes that are hashed before anybody wonders."""

SETTLED = 2.0
"""Seconds since its last change after which a file is remembered: within a file system's clock tick it may
change again and show the same time."""

_MB = 1_000_000
_SHA256 = re.compile("[0-9a-f]{64}")

_Advance = Callable[[int], None]

FileState = dict[str, str | int]
"""What `file_state` gives."""


def hash_of(path: Path, advance: _Advance | None = None) -> str:
    """SHA-256 (64 hex digits) of a file, or over a folder's safetensors files: sorted names and the hash of
    each one's bytes.

    A folder without weights (a tokenizer, a scheduler) is hashed over all of its files. `advance(n)` hears of
    every n bytes more.
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
    """What the config.json of a component's folder says, without the keys that tell where it was saved and by
    which version (they begin with an underscore); empty where there is none."""
    file = component / "config.json"
    try:
        tree = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} cannot be read ({error})", "mend or download it again") from None
    return {key: value for key, value in tree.items() if not key.startswith("_")}


def config_hash(component: Path) -> str | None:
    """Of `config_of` (64 hex digits), which is not among the weights; None where there is nothing."""
    config = config_of(component)
    return fingerprint(config) if config else None


def shown_hash(path: Path, what: str) -> str:
    """`hash_of`; what is long shows its progress as "hash `what`"."""
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
    """The files of a folder whose bytes make its hash: its weights, or all where it has none."""
    return weight_files(folder) or sorted(p for p in folder.glob("*") if p.is_file())


def file_hash(path: Path, advance: _Advance | None = None) -> str:
    """SHA-256 (64 hex digits) of a file's bytes, read only where nothing knows it yet. `advance(n)` hears of
    every n bytes that are read."""
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
    """A file's SHA-256 if the hub's cache or an earlier hash tells it; None otherwise."""
    if path.stat().st_size < SMALL:
        return None
    return _of_hub(path) or _remembered(file_state(path))


def _of_hub(path: Path) -> str | None:
    """The name of the blob `models--org--name/blobs/SHA256` that a link of the hub's cache leads to.

    Files that are not in LFS are named by git's hash, of 40 digits. A blob may lead on to a store that
    repositories share, under a hash of another kind.
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
    """What tells one content of a file from another without reading it. Times are in ns; the inode's own
    (ctime) cannot be set back by whoever replaces a file under its old time."""
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
    """Whether two states of a file are of the same bytes, as far as can be known without reading it. A new
    mode or another hard link moves the inode's time alone."""
    return all(one[name] == other[name] for name in ("path", "size", "mtime", "inode"))


def _memory(state: FileState) -> Path:
    """A file for each path: writers of different ones never meet, and of one the last wins, as a whole."""
    return user_cache("hashes") / f"{fingerprint(state['path'])[:32]}.json"


def _remembered(state: FileState) -> str | None:
    try:
        found = json.loads(_memory(state).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        # not there yet, or damaged: the file is hashed again, and this is written anew
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
        warn(f"the hash of {state['path']} cannot be kept in {file} ({error}); it is made again next time")
