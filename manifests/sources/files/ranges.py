"""An object of a bucket as an open file, for programs that read a little at many places."""

from __future__ import annotations

import io
from typing import Any

from uhr.manifests.sources.blobs import Blob

FIRST, MOST = 64 * 1024, 4 * 2**20
"""Bytes of a request at a new place, and the most of one that continues where the last one ended."""


class RangeReader(io.RawIOBase):
    """Reads the bytes of a Blob by ranges, and keeps those of the last request only.

    A request that begins at most FIRST bytes behind the last one takes twice as many bytes as that. So many
    small members of an archive are few requests, and of a large one no more is read than its header.
    """

    def __init__(self, blob: Blob) -> None:
        self._blob, self._size = blob, blob.size
        self._at = 0
        self._start, self._block = 0, b""
        self._step = FIRST // 2

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise ValueError(f"negative place {base + offset}")
        self._at = base + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer`, or as much of it as there are bytes. Raises PixelFault as the Blob does."""
        view = memoryview(buffer).cast("B")
        wanted = max(0, min(len(view), self._size - self._at))
        done = 0
        while done < wanted:
            inside = self._at - self._start
            if not 0 <= inside < len(self._block):
                self._fetch(wanted - done)
                if not self._block:
                    break
                inside = 0
            count = min(wanted - done, len(self._block) - inside)
            view[done : done + count] = self._block[inside : inside + count]
            done += count
            self._at += count
        return done

    def _fetch(self, wanted: int) -> None:
        """Read the block at this place."""
        behind = self._at - (self._start + len(self._block))
        self._step = min(2 * self._step, MOST) if 0 <= behind <= FIRST else FIRST
        self._start, self._block = self._at, self._blob.at(self._at, max(wanted, self._step))
