"""The folder of a run's units, copied into an object store as it grows: other machines see the run, and any
of them can resume it.

The machine that runs works in a folder of its own, which has a file `mirror.json` with the address. Workers
on other machines put their parts into the store, and fetch there what they read of others.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

from uhr.base.files import atomic, write_json
from uhr.base.store import ObjectStore

FILE = "mirror.json"


class Mirror:
    """A folder and its copy at an address; `names` and files are those at the top of the folder."""

    def __init__(self, folder: Path, address: str) -> None:
        self.folder = folder
        self.address = address
        self.store = ObjectStore(address)

    @classmethod
    def of(cls, folder: Path) -> Mirror | None:
        """Return the mirror of a folder; None if it has none."""
        try:
            text = (folder / FILE).read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        return cls(folder, json.loads(text)["address"])

    @classmethod
    def begin(cls, folder: Path, address: str) -> Mirror:
        """Make `folder` a copy of what is at the address, and mirror it from now on.

        Files that are here and not there are removed: they are of a run that has ended.
        """
        folder.mkdir(parents=True, exist_ok=True)
        mirror = cls(folder, address)
        mirror.pull()
        write_json(folder / FILE, {"address": address})
        return mirror

    def pull(self) -> None:
        """Fetch what is new or has changed in the store, and remove what is not there. The files have the
        times at which they were put there.
        """
        there = {name: info for name, info in self.store.states().items() if "/" not in name}
        for file in self.folder.iterdir():
            if file.is_file() and file.name not in there and file.name != FILE:
                file.unlink()
        for name, (size, time) in there.items():
            target = self.folder / name
            same = target.is_file() and target.stat().st_size == size
            if not same or (target.stat().st_mtime != time and not name.startswith("unit-")):
                self.fetch(name)
            if target.is_file():
                os.utime(target, (time, time))

    def fetch(self, name: str) -> bool:
        """Fetch a file; return whether it exists."""
        with contextlib.suppress(FileNotFoundError), atomic(self.folder / name) as temporary:
            self.store.fetch(name, temporary)
            return True
        return False

    def push(self, name: str) -> None:
        """Put a file into the store."""
        self.store.upload(self.folder / name, name)

    def remove(self, name: str) -> None:
        """Remove a file from the store."""
        self.store.delete(name)


def shown(folder: Path) -> str:
    """Return where the run is whose units are in `folder`, for messages: an address, if that has a mirror."""
    mirror = Mirror.of(folder)
    return str(folder.parent) if mirror is None else mirror.address.rpartition("/")[0]
