"""A JPEG file as a sequence of segments and scans (ITU T.81, annex B), and libjpeg's messages about it.

libjpeg prints the first warning of an image and hides all others. A harmless oddity in the header would hide
damage behind it, so the decoder is given a copy in which the oddities that change no pixel are repaired:
whatever it then says is about the image data.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property

import numpy as np

from uhr.pixels.types import LARGEST_PROFILE, MOST_PARTS, PixelFault

LONGEST_SIDE = 65_500
"""JPEG_MAX_DIMENSION of libjpeg and libjpeg-turbo (jmorecfg.h), in pixels."""

_SOF = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_SEQUENTIAL = frozenset({0xC0, 0xC1, 0xC9})
_PROGRESSIVE = frozenset({0xC2, 0xCA})
_LOSSLESS = 0xC3
_SOI, _EOI, _SOS, _APP0, _APP2, _APP14 = 0xD8, 0xD9, 0xDA, 0xE0, 0xE2, 0xEE
_BARE = frozenset({0x01, *range(0xD0, 0xD8)})
"""Markers without a length: TEM and the restarts."""

_READ = frozenset({*_SOF, _SOS, _APP0, _APP2, _APP14})
"""Segments whose content is read here."""

_PADDING = (b"\0", b"\0\0", b"\xff\0")
"""Padding that encoders write between the last scan and EOI; entropy-coded data differ from it."""

_EXTRANEOUS = re.compile(r"Corrupt JPEG data: (\d+) extraneous bytes before marker 0xd9$")


class JpegFile:
    """The structure of a JPEG: its frame, its scans, and where it ends.

    `notes` are the oddities that change no pixel. `decodable` are the bytes to decode. Raises `PixelFault`
    for a process (T.81, table B.1) that libjpeg does not decode.
    """

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.notes: list[str] = []
        self.end: int | None = None
        """Offset of the EOI marker that ends the image; None if the file ends before it."""

        self._repairs: list[tuple[int, int, bytes]] = []
        self._process = 0
        self._components: bytes = b""
        self._coded: dict[int, list[int]] = {}
        self._stray = 0
        self._pieces: dict[int, tuple[int, int]] = {}
        self._piece_count = 0
        self._jfif = False
        self._adobe: int | None = None
        self._walk()
        self._conclude()

    @cached_property
    def decodable(self) -> bytes:
        """The file with its irregularities repaired, or the file itself if it has none."""
        if not self._repairs:
            return self.data
        parts, position = [], 0
        for start, stop, new in self._repairs:
            parts += [memoryview(self.data)[position:start], new]
            position = stop
        return b"".join([*parts, memoryview(self.data)[position:]])

    def without_metadata(self) -> bytes:
        """Return the image without comments and application segments, except Adobe's, which has the colour
        model."""
        parts: list[bytes | memoryview] = [b"\xff\xd8"]
        position = 2
        data = memoryview(self.data)
        while True:
            start, after, marker = self._marker(position)
            if marker is None or marker == _SOS:
                return b"".join([*parts, data[start:]])
            position = after if marker in _BARE else self._segment_end(after)
            if not (0xE0 <= marker <= 0xEF and marker != _APP14) and marker != 0xFE:
                parts.append(data[start:position])

    @property
    def truncated(self) -> bool:
        """Whether the file ends before the image does."""
        return self.end is None

    def profile(self) -> bytes:
        """The ICC profile, whose pieces are in APP2 segments with numbers (ICC.1:2022, B.4). Raises
        `PixelFault` if a piece is missing.
        """
        pieces = [self.data[start:stop] for _, (start, stop) in sorted(self._pieces.items())]
        if not pieces or sorted(self._pieces) != list(range(1, self._piece_count + 1)):
            raise PixelFault("corrupt", f"{len(pieces)} of its {self._piece_count} pieces are there")
        if sum(map(len, pieces)) > LARGEST_PROFILE:
            raise PixelFault("too large", f"it has more than {LARGEST_PROFILE >> 20} MiB")
        return b"".join(pieces)

    def judge(self, lines: Sequence[str]) -> None:
        """Add the harmless ones of the decoder's warnings to `notes`; raise `PixelFault` for damage.

        libjpeg fills what it cannot decode with gray, or with what it takes for the image after it has lost
        its place, and leaves no more than a warning.
        """
        for line in lines:
            found = _EXTRANEOUS.fullmatch(line)
            count = int(found[1]) if found else 0
            # bytes left over inside or behind a scan: the decoder lost its place, unless they are padding
            if self.end is None or self.data[self.end - count : self.end] not in _PADDING:
                raise PixelFault("corrupt", line)
            self.notes.append(f"{count} padding bytes behind the image data")
        self._check_complete()

    # The walk -----------------------------------------------------------------------------------------------

    def _walk(self) -> None:
        position, scans = 2, 0
        for _ in range(MOST_PARTS):
            start, after, marker = self._marker(position)
            if marker is None or marker == _SOI:
                return
            if not scans and start > position:
                self._stray += start - position
                self._repairs.append((position, start, b""))
            if marker == _EOI:
                self.end = start
                return
            if marker in _BARE:
                position = after
                continue
            position = self._segment_end(after)
            body = self.data[after + 2 : position] if marker in _READ else b""
            if marker in _SOF:
                self._process = marker
                self._components = body[6 : 6 + 3 * int.from_bytes(body[5:6], "big") : 3]
            elif marker == _APP0 and body.startswith(b"JFIF\0") and len(body) >= 14:
                self._on_jfif(body, after + 2)
            elif marker == _APP14 and body.startswith(b"Adobe") and len(body) >= 12:
                self._adobe = after + 2 + 11
            elif marker == _APP2 and body.startswith(b"ICC_PROFILE\0") and len(body) >= 14:
                self._pieces.setdefault(body[12], (after + 16, position))
                self._piece_count = body[13]
            elif marker == _SOS:
                scans += 1
                if scans == 1:
                    self._on_first_scan()
                self._on_scan(body, position)
                position = self._scan_end(position)
        raise PixelFault("unsupported", f"a JPEG of more than {MOST_PARTS:,} segments")

    def _marker(self, position: int) -> tuple[int, int, int | None]:
        """Offset of the next marker's first byte, the offset behind it, and its second byte (None at the end
        of the file). Bytes before it are skipped, with FF 00 among them, as libjpeg does.
        """
        data = self.data
        while True:
            start = data.find(b"\xff", position)
            if start < 0:
                return len(data), len(data), None
            position = start + 1
            while position < len(data) and data[position] == 0xFF:
                position += 1
            if position >= len(data):
                return len(data), len(data), None
            if data[position]:
                return start, position + 1, data[position]
            position += 1

    def _segment_end(self, after: int) -> int:
        return after + max(int.from_bytes(self.data[after : after + 2], "big"), 2)

    def _scan_end(self, position: int) -> int:
        """Return the offset of the first marker after entropy-coded data: FF before all but 0, FF and the
        restarts."""
        pixels = np.frombuffer(self.data, np.uint8)
        size = 1 << 16
        while position < len(pixels):
            block = pixels[position : position + size]
            markers = (block[:-1] == 0xFF) & (block[1:] != 0)
            # most files have no restarts, and most blocks no marker: `any` is faster than `flatnonzero`
            if markers.any():
                at = np.flatnonzero(markers)
                after = block[at + 1]
                found = at[(after != 0xFF) & ((after & 0xF8) != 0xD0)]
                if found.size:
                    position += int(found[0])
                    # bytes FF before a marker fill, and belong to it
                    while self.data[position - 1] == 0xFF:
                        position -= 1
                    return position
            # the last byte may be the first one of a marker
            position += max(len(block) - 1, 1)
            size = 1 << 18  # fits into the L2 cache
        return len(pixels)

    def _on_jfif(self, body: bytes, offset: int) -> None:
        self._jfif = True
        if body[5] != 1:
            self.notes.append(f"JFIF version {body[5]}.{body[6]:02d} is unknown")
            self._repairs.append((offset + 5, offset + 6, b"\1"))

    def _on_first_scan(self) -> None:
        """The last Adobe segment before the scans sets the colour model, unless JFIF does."""
        if self._adobe is None or (self._jfif and len(self._components) == 3):
            return
        transform = self.data[self._adobe]
        known = {3: (0, 1), 4: (0, 2)}.get(len(self._components))
        if known is not None and transform not in known:
            model = {1: "YCbCr", 2: "YCCK"}[known[1]]
            self.notes.append(f"unknown Adobe colour transform {transform}, taken for {model}")
            self._repairs.append((self._adobe, self._adobe + 1, bytes([known[1]])))

    def _on_scan(self, body: bytes, end: int) -> None:
        count = body[0] if body else 0
        if len(body) != 4 + 2 * count:
            # the decoder rejects it
            return
        first, last, approximation = body[-3:]
        if self._process in _SEQUENTIAL and (first, last, approximation) != (0, 63, 0):
            # no sequential decoder uses them
            self.notes.append("unusual spectral parameters of a sequential scan")
            self._repairs.append((end - 3, end, b"\0\x3f\0"))
            first, last, approximation = 0, 63, 0
        for component in body[1 : 1 + 2 * count : 2]:
            bits = self._coded.setdefault(component, [-1] * 64)
            bits[first : last + 1] = [approximation & 15] * (min(last, 63) - first + 1)

    def _conclude(self) -> None:
        """Check the whole structure, once all of it is known."""
        if self._stray:
            self.notes.insert(0, f"{self._stray} stray bytes between segments of the header")
        self.notes = list(dict.fromkeys(self.notes))
        self._repairs.sort()
        if self._process not in _SEQUENTIAL | _PROGRESSIVE | {0, _LOSSLESS}:
            raise PixelFault("unsupported", f"a JPEG of the process SOF{self._process - 0xC0}")

    def _check_complete(self) -> None:
        """Raise `PixelFault` if whole scans are missing, which a decoder does not report."""
        if self._process not in _SEQUENTIAL | _PROGRESSIVE:
            return
        for component in self._components:
            bits = self._coded.get(component)
            if bits is None:
                raise PixelFault("truncated", f"the JPEG ends before the scan of its component {component}")
            if any(bits):
                raise PixelFault("truncated", "the JPEG ends before the last of its progressive scans")
