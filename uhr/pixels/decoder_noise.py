"""Capture what the C decoders print on standard error, since some damage is reported nowhere else.

What is printed or raised is stored as data: `stable_text` removes what differs from run to run.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
import threading
from collections.abc import Generator

from uhr.base.errors import one_line

_LOCK = threading.RLock()

_LIBJPEG = (
    "Corrupt JPEG data: ",
    "Premature end of JPEG file",
    "Invalid SOS parameters for",
    "Inconsistent progression sequence",
    "Unknown Adobe color transform",
    "Warning: unknown JFIF revision",
)
"""Prefixes of libjpeg's warnings (jerror.h). Its errors are not printed: they end the decode."""

_LIBTIFF = (
    r"^(?:_?(?:TIFF|LZW|ZIP|JPEG|OJPEG|Fax|PackBits|PixarLog|Thunder|NeXT|LogLuv|LERC|ZSTD|LZMA|WebP)\w*"
    r"|tempfile\.tif): "
)
"""libtiff begins a message with the function's name, or the file's, which Pillow calls tempfile.tif."""

_DECODER_LINE = re.compile(
    rf"{'|'.join(_LIBJPEG)}|libpng (?:warning|error): |\bimdecode_?\(|\[ *[A-Z]+:\d+@\d|{_LIBTIFF}"
)
"""The pattern of a decoder's lines. Any other line is from another thread and is passed on."""

_CONTINUATION = re.compile(r"> |\s*$")
"""Lines that follow the first line of an OpenCV exception: "> must be greater than", and empty lines."""

LOGGED = "OpenCV: "
"""Prefix of what OpenCV logs itself; any other line is from a library that it uses."""

_OPENCV_LEVEL = re.compile(r"\[ *([A-Z]+):\d+@\d")

_OF_THE_RUN = (
    # OpenCV's log: level, thread, seconds since the start; source file and line; function
    (re.compile(r"\[ *[A-Z]+:\d+@[\d.]+\] *(?:global )?(?:\S+\.[ch]pp:\d+ )?(?:\w+ )?"), ""),
    # OpenCV's exceptions: version, source file and line; code
    (re.compile(r"OpenCV\([^)]*\) \S+:\d+: (?:error: )?(?:\(-?\d+:[^)]*\) )?"), ""),
    # addresses of objects, as Python and C print them
    (re.compile(r"\b0x[0-9a-fA-F]{7,16}\b"), "0x..."),
)


@contextlib.contextmanager
def captured() -> Generator[list[str]]:
    """Capture the decoders' lines on the process's standard error in a `with` block.

    The list is filled when the block ends, with each line of a decoder after `stable_text`. OpenCV's log
    lines below the level of a warning are dropped. Threads wait for each other, worker processes do not. In
    nested blocks the inner one gets the lines.
    """
    lines: list[str] = []
    with _LOCK, _memory_file() as file:
        try:
            terminal = os.dup(2)
        except OSError:
            # a process without standard error: the decoders print to it nevertheless
            terminal = None
        os.dup2(file.fileno(), 2)
        try:
            yield lines
        finally:
            if terminal is None:
                os.close(2)
            else:
                os.dup2(terminal, 2)
            file.seek(0)
            ours = False
            for line in file.read().decode(errors="replace").splitlines():
                # OpenCV prints the values of an exception in separate lines
                if ours and _CONTINUATION.match(line):
                    continue
                ours = _DECODER_LINE.search(line) is not None
                if ours:
                    level = _OPENCV_LEVEL.search(line)
                    if level is None:
                        lines.append(stable_text(line))
                    elif level[1] in ("WARN", "ERROR", "FATAL"):
                        lines.append(LOGGED + stable_text(line))
                elif terminal is not None:
                    os.write(terminal, f"{line}\n".encode())
            if terminal is not None:
                os.close(terminal)


def _memory_file():
    if hasattr(os, "memfd_create"):
        return open(os.memfd_create("decoder-noise"), "w+b")
    return tempfile.TemporaryFile()


def stable_text(text: str) -> str:
    """Reduce `text` to one line without times, thread numbers, source lines and addresses."""
    for pattern, replacement in _OF_THE_RUN:
        text = pattern.sub(replacement, text)
    return one_line(text)
