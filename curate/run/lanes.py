"""Hosts, buckets and stages whose last rows mostly failed are paused: their other rows are left undone.

Without that, a server that is down or a key that has expired would fail every row of a long run. The outcomes
are files in the folder of the run's units, so that all workers share them. Those of a unit are written when
it is done: a unit that is repeated because a row ended its worker counts once.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from uhr.base.files import write_json

FOLDER = "lanes"

MOSTLY = 0.8
"""The share of failures among the last rows at which a lane pauses."""


class Paused(NamedTuple):
    """A lane that is paused, and the last error of its rows."""

    lane: str
    why: str


class Lanes:
    """What became of the last rows of each lane, such as "host example.com" or "stage caption".

    folder: of the run's units. window: how many last rows of a lane are looked at; 0 if none ever pauses.
    """

    def __init__(self, folder: Path, window: int) -> None:
        self._folder = folder / FOLDER
        self._window = window
        self._paused: dict[str, Paused] = {}
        self._watched: set[str] = set()
        self._now: dict[str, bytearray] = {}
        self.refresh()

    def clear(self) -> None:
        """Let all lanes go on: another attempt begins."""
        shutil.rmtree(self._folder, ignore_errors=True)
        self._paused, self._watched, self._now = {}, set(), {}

    def refresh(self) -> list[Paused]:
        """Read what other workers wrote; return the lanes that are newly paused."""
        if not self._window or not self._folder.is_dir():
            return []
        names = {path.name for path in self._folder.iterdir()}
        self._watched |= {name for name in names if "." not in name}
        new = sorted(name for name in names if name.endswith(".json") and name not in self._paused)
        for name in new:
            self._paused[name] = Paused(**json.loads((self._folder / name).read_text(encoding="utf-8")))
        return [self._paused[name] for name in new]

    def begin(self) -> None:
        """Begin a unit: forget what was recorded of an attempt that was not finished."""
        self._now.clear()
        self.refresh()

    def end(self) -> None:
        """End a unit: write what became of its rows."""
        for name, outcomes in self._now.items():
            handle = os.open(
                self._folder / name, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666
            )
            try:
                # at the end, in one call: writes of several processes do not mix
                os.write(handle, outcomes)
            finally:
                os.close(handle)
        self._now.clear()

    def paused(self, lane: str | None) -> str | None:
        """Return why a lane is paused; None if it is not."""
        if lane is None or not self._paused:
            return None
        found = self._paused.get(f"{_name(lane)}.json")
        return None if found is None else f"{found.lane} is paused: {found.why}"

    def succeeded(self, lane: str | None) -> None:
        """Record that a row of a lane did not fail. Costs nothing as long as none has."""
        if lane is not None and self._watched and _name(lane) in self._watched:
            self._now.setdefault(_name(lane), bytearray()).extend(b".")

    def failed(self, lane: str | None, why: str) -> None:
        """Record that a row of a lane failed, and pause the lane if its last rows mostly did."""
        if lane is None or not self._window:
            return
        self._folder.mkdir(exist_ok=True)
        name = _name(lane)
        self._watched.add(name)
        self._now.setdefault(name, bytearray()).extend(b"x")
        last = (self._tail(name) + self._now[name])[-self._window :]
        if len(last) == self._window and last.count(b"x") >= MOSTLY * self._window:
            file_of_pause = self._folder / f"{name}.json"
            if not file_of_pause.exists():
                write_json(file_of_pause, Paused(lane, why)._asdict())
            self._paused[file_of_pause.name] = Paused(lane, why)

    def __bool__(self) -> bool:
        """Whether any row of any lane has failed, or any lane is paused."""
        return bool(self._watched or self._paused)

    def __iter__(self) -> Iterator[Paused]:
        """The paused lanes."""
        yield from sorted(self._paused.values())

    def _tail(self, name: str) -> bytes:
        """Return the last outcomes that were written of a lane."""
        try:
            with open(self._folder / name, "rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - self._window))
                return file.read(self._window)
        except FileNotFoundError:
            return b""


def stage_lane(label: str) -> str:
    """Return the lane of a stage."""
    return f"stage {label}"


def _name(lane: str) -> str:
    return hashlib.sha256(lane.encode("utf-8", "surrogatepass")).hexdigest()[:16]
