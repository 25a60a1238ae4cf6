"""Read the tensor names and shapes of a safetensors or GGUF file.

Tensors are not read here, and nothing is ever unpickled.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from uhr.base.errors import UserError, install, one_line
from uhr.models.files.foreign import DOWNLOAD_AGAIN, not_weights

FIRST_BYTES = 1024

_MOST_HEADER = 100_000_000
"""Largest header in bytes that safetensors' own reader accepts."""

SHARD = re.compile(r"-(\d{5})-of-(\d{5})$")


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file: its shape ([out, in] for a linear), and its dtype in the file's spelling (`BF16`,
    `Q4_K`)."""

    shape: tuple[int, ...]
    dtype: str


def check_installed(package: str, what: str) -> None:
    """Raise UserError if a package of the extra `quantize`, which `what` needs, is missing."""
    if importlib.util.find_spec(package) is None:
        raise UserError(f"{what} needs the package {package}", install("quantize"))


def is_gguf(file: Path) -> bool:
    """Whether a file is GGUF, by its first bytes."""
    return first_bytes(file)[:4] == b"GGUF"


def stored_tensors(file: Path) -> dict[str, StoredTensor]:
    """Return the tensors of a safetensors file (with any suffix) or GGUF, by name.

    Raises UserError for any other file, which the error names, for one that is truncated, and for one shard
    of several.
    """
    head = first_bytes(file)
    _check_shard(file)
    if head[:4] == b"GGUF":
        return _gguf(file)
    header = read_header(file, head)
    if header is None:
        raise not_weights(file, head)
    return header_tensors(header)


PREFIXES: Mapping[str, tuple[str, ...]] = {
    "transformer": ("model.diffusion_model.", "diffusion_model."),
    "vae": ("first_stage_model.", "vae."),
}
"""Prefixes of a component's names in a whole checkpoint of ComfyUI's."""


def part_of(weights: Mapping[str, StoredTensor], component: str) -> dict[str, tuple[str, StoredTensor]]:
    """Return a component's weights: name without the component's prefix -> (name in the file, tensor).

    From a whole checkpoint only those of the component are returned, from any other file all.
    """
    for prefix in PREFIXES[component]:
        inside = {
            name.removeprefix(prefix): (name, tensor)
            for name, tensor in weights.items()
            if name.startswith(prefix)
        }
        if inside:
            return inside
    return {name: (name, tensor) for name, tensor in weights.items()}


def first_bytes(file: Path) -> bytes:
    try:
        with open(file, "rb") as opened:
            return opened.read(FIRST_BYTES)
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror})", "check its permissions") from error


def _check_shard(file: Path) -> None:
    match = SHARD.search(file.stem)
    if match is not None and int(match[2]) > 1:
        fix = f"name the folder with all of them, {file.parent}"
        raise UserError(f"{file} is one shard of {int(match[2])}", fix)


def read_header(file: Path, head: bytes) -> dict | None:
    """Read the header of a safetensors file, JSON by the tensors' names; None if it is another kind of file.

    The file begins with the header's length (8 bytes, little endian), the header, and the tensors' bytes.
    Raises UserError for a header that is damaged, and for a file of another length than its header implies.
    """
    length = int.from_bytes(head[:8], "little")
    if len(head) < 9 or head[8:9] != b"{" or length > _MOST_HEADER:
        return None
    size = file.stat().st_size
    if size < 8 + length:
        raise _cut(file, size, None)
    with open(file, "rb") as opened:
        opened.seek(8)
        text = opened.read(length)
    try:
        header = json.loads(text)
        tensors = [tensor for name, tensor in header.items() if name != "__metadata__"]
        end = max((tensor["data_offsets"][1] for tensor in tensors), default=0)
        whole = all(isinstance(t["shape"], list) and isinstance(t["dtype"], str) for t in tensors)
    except (ValueError, RecursionError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise UserError(f"{file} has a damaged header ({type(error).__name__})", DOWNLOAD_AGAIN) from error
    if not whole or size > 8 + length + end:
        raise UserError(f"{file} has a header that does not fit its {size:,} bytes", DOWNLOAD_AGAIN)
    if size < 8 + length + end:
        raise _cut(file, size, 8 + length + end)
    return header


def header_tensors(header: dict) -> dict[str, StoredTensor]:
    return {
        name: StoredTensor(tuple(tensor["shape"]), tensor["dtype"])
        for name, tensor in header.items()
        if name != "__metadata__"
    }


def _cut(file: Path, size: int, whole: int | None) -> UserError:
    of = "" if whole is None else f" of {whole:,}"
    return UserError(f"{file} is truncated: it has {size:,}{of} bytes", DOWNLOAD_AGAIN)


def _gguf(file: Path) -> dict[str, StoredTensor]:
    if file.suffix != ".gguf":
        raise UserError(f"{file} is a GGUF file by its content", "rename it so that it ends in .gguf")
    check_installed("gguf", "reading GGUF")
    try:
        tensors = importlib.import_module("gguf").GGUFReader(file).tensors
    except (OSError, ValueError, IndexError, KeyError) as error:
        text = one_line(error)
        raise UserError(f"{file} is damaged or truncated ({text})", DOWNLOAD_AGAIN) from error
    # GGUF lists dimensions from the last
    return {
        each.name: StoredTensor(tuple(int(n) for n in each.shape[::-1]), each.tensor_type.name)
        for each in tensors
    }
