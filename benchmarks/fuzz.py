"""Fuzzing of the decode path: no input raises, hangs, crashes, or takes more memory than its budget.

python -m benchmarks.fuzz [MINUTES [SEED]]: random edits of small images of every format, decoded in a child
process as curation does. An input that breaks the claim is saved in the working folder, and the exit code is
1.
`tests/curate/test_fuzz.py` does the same with a fixed number of inputs.
"""

from __future__ import annotations

import functools
import hashlib
import io
import pickle
import random
import select
import struct
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple, Self, cast

from uhr.base.console import say

SECONDS = 20.0
"""The most that an input may take, on a busy machine; a usual one takes milliseconds."""

BUDGET = 256 << 20
"""Bytes that decoding an input may take besides what the process has already."""

PIXELS = 1_000_000

FORMATS: dict[str, tuple[str, ...]] = {
    "JPEG": ("L", "RGB", "CMYK"),
    "PNG": ("1", "LA", "P", "RGB", "I;16"),
    "WEBP": ("RGB", "RGBA"),
    "TIFF": ("1", "L", "RGB", "CMYK"),
    "GIF": ("P",),
    "BMP": ("L", "RGB"),
    "AVIF": ("RGB",),
    "JPEG2000": ("RGB",),
    "PPM": ("L", "RGB"),
}

EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)

Edit = tuple[str, float, int]
"""What is done, where as a share of the file, and a number that the edit uses."""

EDITS = ("byte", "word", "cut", "drop", "repeat", "splice", "zero")


@functools.cache
def seeds() -> tuple[bytes, ...]:
    """Small images of every format and several modes."""
    import numpy as np
    from PIL import Image

    y, x = np.mgrid[0:24, 0:40]
    pixels = np.stack([x * 6, y * 10, (x * y) % 256, 255 - x * 3], -1).astype(np.uint8)
    found = []
    for format, modes in FORMATS.items():
        for mode in modes:
            if mode == "I;16":
                image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
            else:
                image = Image.fromarray(pixels, "RGBA").convert("RGB").convert(mode)
            for settings in _settings(format):
                buffer = io.BytesIO()
                image.save(buffer, format, **settings)
                found.append(buffer.getvalue())
    return tuple(found)


def _settings(format: str) -> tuple[dict[str, Any], ...]:
    if format == "JPEG":
        return {}, {"progressive": True}
    if format == "TIFF":
        return {}, {"compression": "tiff_lzw"}
    return ({},)


def edited(data: bytes, edits: list[Edit]) -> bytes:
    """Return the bytes of a file with these edits, one after the other."""
    for what, share, number in edits:
        at = min(int(share * len(data)), max(0, len(data) - 1))
        value = EXTREMES[number % len(EXTREMES)]
        length = 1 + number % 64
        if what == "byte":
            data = data[:at] + bytes([number % 256]) + data[at + 1 :]
        elif what == "word":
            order = ">I" if number % 2 else "<I"
            data = data[:at] + struct.pack(order, value) + data[at + 4 :]
        elif what == "cut":
            data = data[:at]
        elif what == "drop":
            data = data[:at] + data[at + length :]
        elif what == "repeat":
            data = data[:at] + data[at : at + length] * (2 + number % 30) + data[at + length :]
        elif what == "splice":
            other = seeds()[number % len(seeds())]
            data = data[:at] + other[int(share * len(other)) :]
        else:
            data = data[:at] + bytes(length) + data[at + length :]
    return data


class Outcome(NamedTuple):
    """How an input ended: "image", or the kind of its fault; the seconds, and the bytes of its peak."""

    kind: str
    seconds: float
    memory: int


class BrokenClaim(AssertionError):
    """An input that did what none may do."""


class Decoder:
    """A child process that decodes inputs as curation does. Started again after an input that ended it."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def check(self, data: bytes) -> Outcome:
        """Decode an input. Raises BrokenClaim if it raised, hung, crashed, or took more than its budget."""
        if self._child is None:
            self._child = self._start()
        pickle.dump(data, self._in)
        self._in.flush()
        ready, _, _ = select.select([self._out], [], [], SECONDS)
        if not ready:
            self._end()
            raise BrokenClaim(f"it took longer than {SECONDS:g} s")
        try:
            found = pickle.load(self._out)
        except EOFError:
            raise BrokenClaim(f"it ended its process (exit code {self._end()})") from None
        if isinstance(found, str):
            raise BrokenClaim(f"it raised {found}")
        outcome = Outcome(*found)
        if outcome.memory > BUDGET:
            raise BrokenClaim(f"it took {outcome.memory >> 20} MiB, and {BUDGET >> 20} MiB are its budget")
        return outcome

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", "from benchmarks.fuzz import serve; serve()"]
        child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path(__file__).parents[1]
        )
        self._in = cast(BinaryIO, child.stdin)
        self._out = cast(BinaryIO, child.stdout)
        # the first decode loads and compiles, which is no input's fault
        for seed in seeds():
            pickle.dump(seed, self._in)
            self._in.flush()
            pickle.load(self._out)
        return child

    def _end(self) -> int | None:
        """End the child; return its exit code."""
        child, self._child = self._child, None
        if child is None:
            return None
        child.kill()
        return child.wait()


def serve() -> None:
    """Decode inputs from standard input, and write the outcomes to standard output, until it is closed."""
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    # what a decoder prints must not mix with the answers
    sys.stdout = sys.stderr
    while True:
        try:
            data = pickle.load(source)
        except EOFError:
            return
        pickle.dump(_outcome(data), sink)
        sink.flush()


def _outcome(data: bytes) -> tuple[str, float, int] | str:
    from uhr.curate.frame import Frame
    from uhr.manifests.sources.blobs import MemoryBlob
    from uhr.pixels.decode import PixelLimits
    from uhr.pixels.types import PixelFault

    before = _reset_peak()
    start = time.perf_counter()
    try:
        frame = Frame("input", MemoryBlob(data), {}, PixelLimits(pixels=PIXELS))
        header, decoded = frame.header, frame.decoded
        frame.gray_measures()
        preview = frame.preview(64)
        assert frame.rgb.shape == (header.height, header.width, 3), "the header states another size"
        assert decoded is not None
        assert preview[0][:2] == b"\xff\xd8"
        kind = "image"
    except PixelFault as fault:
        kind = fault.kind
    except BaseException as error:  # noqa: BLE001 - whatever it is, it breaks the claim
        return f"{type(error).__name__}: {error}"
    return kind, time.perf_counter() - start, max(0, _peak() - before)


def _reset_peak() -> int:
    """Let the largest memory of the process be counted anew; return what it has now, in bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return _peak()


def _peak() -> int:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def drawn(rng: random.Random) -> bytes:
    """Return one input: an image with up to six edits."""
    edits = [(rng.choice(EDITS), rng.random() ** 2, rng.getrandbits(16)) for _ in range(rng.randint(1, 6))]
    return edited(rng.choice(seeds()), edits)


def main(minutes: float = 5.0, seed: int = 0) -> None:
    """Try random inputs for some minutes, and say how they ended."""
    rng, kinds, broken = random.Random(seed), Counter[str](), 0
    slowest = largest = Outcome("", 0.0, 0)
    end = time.monotonic() + 60 * minutes
    with Decoder() as decoder:
        while time.monotonic() < end:
            data = drawn(rng)
            try:
                outcome = decoder.check(data)
            except BrokenClaim as claim:
                broken += 1
                file = Path(f"broken-{hashlib.sha256(data).hexdigest()[:16]}.bin")
                file.write_bytes(data)
                say(f"{file}: {claim}")
                continue
            kinds[outcome.kind] += 1
            slowest = max(slowest, outcome, key=lambda each: each.seconds)
            largest = max(largest, outcome, key=lambda each: each.memory)
    say(f"{kinds.total() + broken:,} inputs, seed {seed}: {dict(kinds.most_common())}")
    most = f"slowest {slowest.seconds * 1e3:.0f} ms, largest {largest.memory / 2**20:.1f} MiB"
    say(f"{most}; {broken} broke the claim")
    if broken:
        sys.exit(1)


if __name__ == "__main__":
    main(*(kind(text) for kind, text in zip((float, int), sys.argv[1:], strict=False)))
