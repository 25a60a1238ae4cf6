"""What the C decoders print: kept off the terminal, and read, for it is their only word of damaged pixels."""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
from collections.abc import Generator

_LOCK = threading.Lock()

_DECODERS = ("JPEG", "JFIF", "libpng", "TIFF", "imgcodecs", "WARN:", "ERROR:", "SOS parameters", "Huffman")
"""Words that only a decoder's line has. Any other line came from another thread and is passed on."""


@contextlib.contextmanager
def captured() -> Generator[list[str]]:
    """Standard error of the whole process goes into the list, which is filled when the block ends.

    One block at a time: threads wait for each other, worker processes do not.
    """
    lines: list[str] = []
    with _LOCK, tempfile.TemporaryFile() if not hasattr(os, "memfd_create") else _memory_file() as file:
        try:
            terminal = os.dup(2)
        except OSError:
            # a daemon without standard error: nothing to keep clean
            yield lines
            return
        os.dup2(file.fileno(), 2)
        try:
            yield lines
        finally:
            os.dup2(terminal, 2)
            file.seek(0)
            for line in file.read().decode(errors="replace").splitlines():
                if any(word in line for word in _DECODERS):
                    lines.append(line.strip())
                else:
                    os.write(terminal, f"{line}\n".encode())
            os.close(terminal)


def _memory_file():
    return open(os.memfd_create("decoder-noise"), "w+b")
