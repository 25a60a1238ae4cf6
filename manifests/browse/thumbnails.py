"""Thumbnails: the previews of a manifest; where a row has none, its image, decoded by another process."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from uhr.base import parquet
from uhr.base.paths import path_text
from uhr.manifests.browse.rows import Cache
from uhr.manifests.manifest import Manifest
from uhr.manifests.schema import FAILED

GROUP_BYTES, IMAGE_BYTES = 64 << 20, 64 << 20
"""Memory for row groups of previews, and for images that were decoded."""

TIMEOUT = 60.0
"""Seconds that an image may take."""

SIDE, LARGE = 320, 1600
"""Longest sides in px of a thumbnail, and of the image beside a row."""


class Fault(Exception):
    """There is no image of a row; the text says why."""


class _Place(NamedTuple):
    part: int
    group: int


class Previews:
    """Finds the previews of a manifest by sample_id, from an index of all that is made once."""

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest.with_previews
        self._groups: Cache[pa.Table] = Cache(GROUP_BYTES, lambda table: table.nbytes)
        self._lock = threading.Lock()

    @cached_property
    def _index(self) -> tuple[np.ndarray, np.ndarray, list[_Place]]:
        """The first 64 bits of all ids, sorted; the number of the row group of each; the row groups."""
        keys, numbers, places = [], [], []
        for number, part in enumerate(self._manifest.info.previews):
            with parquet.opened(self._manifest.path / part.path) as file:
                ids = file.read(columns=["sample_id"])["sample_id"]
                rows = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
            keys.append(_keys(ids))
            numbers.append(np.repeat(np.arange(len(places), len(places) + len(rows), dtype=np.int32), rows))
            places += [_Place(number, group) for group in range(len(rows))]
        all_keys = np.concatenate(keys) if keys else np.empty(0, np.uint64)
        order = np.argsort(all_keys)
        return all_keys[order], np.concatenate(numbers)[order] if numbers else np.empty(0, np.int32), places

    def find(self, sample_id: str) -> bytes | None:
        """Return the JPEG of a sample; None if it has no preview."""
        with self._lock:
            keys, groups, places = self._index
        (key,) = _keys(pa.array([sample_id]))
        low, high = np.searchsorted(keys, key, "left"), np.searchsorted(keys, key, "right")
        for number in groups[low:high]:
            rows = self._read(places[number])
            ids = rows["sample_id"].to_pylist()
            if sample_id in ids:
                return rows["jpeg"][ids.index(sample_id)].as_py()
        return None

    def _read(self, place: _Place) -> pa.Table:
        rows = self._groups.get(place)
        if rows is None:
            file = self._manifest.path / self._manifest.info.previews[place.part].path
            with parquet.opened(file) as opened:
                rows = opened.read_row_group(place.group, columns=["sample_id", "jpeg"])
            self._groups.put(place, rows)
        return rows


_DIGITS = 32
"""Length of a sample id, in hex digits."""


def _keys(ids: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """The first 64 bits of sample ids as uint64 [rows]; 0 for what has another length than an id."""
    chunks = ids.chunks if isinstance(ids, pa.ChunkedArray) else [ids]
    return np.concatenate([np.empty(0, np.uint64), *map(_keys_of_chunk, chunks)])


def _keys_of_chunk(ids: pa.Array) -> np.ndarray:
    keys = np.zeros(len(ids), np.uint64)
    proper = pc.call_function("equal", [pc.call_function("binary_length", [ids]), pa.scalar(_DIGITS)])
    texts = ids.filter(proper).cast(pa.binary()).cast(pa.binary(_DIGITS))
    digits = np.frombuffer(texts.buffers()[1], ">u8").reshape(-1, _DIGITS // 8)[texts.offset :]
    high, low = (_value(digits[: len(texts), word].astype(np.uint64)) for word in (0, 1))
    keys[np.asarray(proper.fill_null(False))] = (high << 32) | low
    return keys


def _value(digits: np.ndarray) -> np.ndarray:
    """The numbers below 2^32 whose eight hex digits in lower case are the bytes of a uint64."""
    # "0" to "9" are 0x30 to 0x39, "a" to "f" 0x61 to 0x66
    digits = (digits & 0x0F0F0F0F0F0F0F0F) + 9 * ((digits >> 6) & 0x0101010101010101)
    digits = (digits | (digits >> 4)) & 0x00FF00FF00FF00FF
    digits = (digits | (digits >> 8)) & 0x0000FFFF0000FFFF
    return (digits | (digits >> 16)) & 0x00000000FFFFFFFF


class Renderer:
    """The process of `render.py`: started when it is needed, ended when an image takes too long, and then
    started again. One image at a time is decoded, so that memory is that of one image.
    """

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def render(self, row: Mapping[str, Any], side: int) -> bytes:
        """Return the image of a row as JPEG. Raises Fault if there is none."""
        with self._lock:
            process = self._started()
            assert process.stdin is not None
            try:
                process.stdin.write(json.dumps({"row": dict(row), "side": side}).encode() + b"\n")
                process.stdin.flush()
                return self._answer(process, time.monotonic() + TIMEOUT)
            except TimeoutError:
                self._end()
                raise Fault(f"the image takes more than {TIMEOUT:g} s") from None
            except (OSError, EOFError):
                self._end()
                raise Fault("the image made the decoder crash") from None

    def close(self) -> None:
        """End the process."""
        process = self._process
        if process is not None:
            process.kill()
        with self._lock:
            self._end()

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            paths = [os.path.abspath(path) for path in sys.path]
            self._process = subprocess.Popen(
                [sys.executable, "-m", "uhr.manifests.browse.render", path_text(self._manifest.path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))},
                # Ctrl-C is for the browser, which ends this process
                start_new_session=True,
            )
        return self._process

    @staticmethod
    def _answer(process: subprocess.Popen[bytes], deadline: float) -> bytes:
        assert process.stdout is not None
        handle = process.stdout.fileno()
        data = b""
        with selectors.DefaultSelector() as selector:
            selector.register(handle, selectors.EVENT_READ)

            def more() -> bytes:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise TimeoutError
                found = os.read(handle, 1 << 20)
                if not found:
                    raise EOFError
                return found

            while b"\n" not in data:
                data += more()
            line, _, data = data.partition(b"\n")
            answer = json.loads(line)
            if "fault" in answer:
                raise Fault(answer["fault"])
            while len(data) < answer["bytes"]:
                data += more()
        return data

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


class Thumbnails:
    """The images of rows: stored previews, and decoded images, of which the last are kept."""

    needs = (
        *("sample_id", "uri", "source_version", "content_hash", "source_name", "box", "status", "error"),
        "blocklist_match",
    )
    """The columns of the rows that the methods take, as far as the manifest has them."""

    def __init__(self, manifest: Manifest) -> None:
        self._previews = Previews(manifest)
        self._renderer = Renderer(manifest)
        self._rendered: Cache[bytes | str] = Cache(IMAGE_BYTES, len)

    def thumbnail(self, row: Mapping[str, Any]) -> bytes:
        """Return a small JPEG of a row. Raises Fault if there is none."""
        found = self._previews.find(row["sample_id"])
        return found if found is not None else self._decoded(row, SIDE)

    def large(self, row: Mapping[str, Any]) -> bytes:
        """Return a larger JPEG of a row, from its source; its preview where that cannot be read."""
        try:
            return self._decoded(row, LARGE)
        except Fault:
            found = self._previews.find(row["sample_id"])
            if found is None:
                raise
            return found

    def _decoded(self, row: Mapping[str, Any], side: int) -> bytes:
        """Decode an image, but none of a row that failed, which may have crashed the decoder before, and none
        that is on a blocklist, of which curation stores no preview either.
        """
        if row["status"] == FAILED:
            raise Fault(row["error"] or "failed")
        if row.get("blocklist_match") is not None:
            raise Fault("on a blocklist: not shown")
        key = (row["sample_id"], side)
        found = self._rendered.get(key)
        if found is None:
            try:
                found = self._renderer.render(row, side)
            except Fault as fault:
                found = str(fault) or "no image"
            self._rendered.put(key, found)
        if isinstance(found, str):
            raise Fault(found)
        return found

    def close(self) -> None:
        """End the process that decodes."""
        self._renderer.close()
