"""The one writer of safetensors files."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from uhr.base.files import atomic

if TYPE_CHECKING:
    import torch

_OS_ERROR = re.compile(r"\(os error (\d+)\)")
"""How safetensors, which is written in Rust, reports the system's error number."""


def save_tensors(
    tensors: Mapping[str, torch.Tensor], path: Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors (dense, contiguous, on the CPU) by name to a safetensors file, atomically.

    Equal tensors and metadata give equal bytes. Raises OSError if the file cannot be written.
    """
    from safetensors.torch import save_file

    with atomic(path) as temporary, as_os_error(path):
        save_file(dict(tensors), temporary, metadata=None if metadata is None else dict(metadata))
        _sort_metadata(temporary)


@contextlib.contextmanager
def as_os_error(path: Path) -> Generator[None]:
    """Convert safetensors' own error for a failed write in the block to an OSError about `path`."""
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        match = _OS_ERROR.search(str(error))
        number = errno.EIO if match is None else int(match[1])
        raise OSError(number, os.strerror(number) if match else str(error), str(path)) from error


def _sort_metadata(path: Path) -> None:
    """Sort a safetensors file's metadata: its writer keeps them in a hash map, so that the bytes would vary.

    The file begins with the header's length (8 bytes, little endian) and the header, JSON padded with spaces.
    """
    with open(path, "r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        if "__metadata__" not in header:
            return
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(length)
        assert len(text) == length, "another layout of safetensors' header"
        file.seek(8)
        file.write(text)
