"""Check a component's folder, and find its files of weights."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Generator
from pathlib import Path

from uhr.base.errors import UserError
from uhr.models.files.containers import FIRST_BYTES, SHARD, first_bytes, header_tensors, read_header
from uhr.models.files.foreign import CONVERT_PICKLE, LFS_POINTER, PICKLE_SUFFIXES, SAFETENSORS, not_weights
from uhr.models.files.kinds import check_plain

MODEL_INDEX = "model_index.json"
"""The file that makes a folder a whole model."""


def check_folder(folder: Path, where: str) -> None:
    """Raise UserError, in which `where` names the component, if the weights in its folder cannot be read.

    That is a pickle, a GGUF file, a file that is truncated or of another kind, and weights that were stored
    quantised without a `quantization_config` (the libraries load those with one).
    """
    files = weight_files(folder)
    others = sorted(path for path in folder.glob("*") if path.suffix.lower() in (*PICKLE_SUFFIXES, ".gguf"))
    if not files and others:
        kind, fix = (
            ("a pickle", CONVERT_PICKLE) if others[0].suffix != ".gguf" else ("GGUF", "name the file itself")
        )
        raise UserError(f"{where} is stored as {others[0].name}, {kind}", fix)
    for file in files:
        head = first_bytes(file)
        header = read_header(file, head)
        if header is None:
            raise not_weights(file, head)
        if not _has_quantization_config(folder):
            check_plain(header_tensors(header), f"{where} ({file.name})")


def _has_quantization_config(folder: Path) -> bool:
    try:
        return "quantization_config" in json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, TypeError):
        return False  # an invalid configuration is reported where the component is loaded


def check_pointers(folder: Path) -> None:
    """Raise UserError if a file of a component's folder is a git-lfs pointer, as in a clone without
    git-lfs."""
    for file in sorted(folder.glob("*")):
        if (
            file.is_file()
            and file.stat().st_size < FIRST_BYTES
            and (head := first_bytes(file)).startswith(LFS_POINTER)
        ):
            raise not_weights(file, head)


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a folder, by suffix; `.sft` files only if there are no others."""
    return next((files for suffix in SAFETENSORS if (files := sorted(folder.glob(f"*{suffix}")))), [])


def variant_of(folder: Path, usual: str) -> str | None:
    """Return the `variant` ("fp16") for `from_pretrained` if a folder has sharded weights of one variant
    only.

    None if the file `usual`, or shards of it, exist.
    """
    if (folder / usual).exists() or (folder / f"{usual}.index.json").exists():
        return None
    found = [path.name for path in folder.glob(f"{usual}.index.*.json")]
    return found[0].removeprefix(f"{usual}.index.").removesuffix(".json") if len(found) == 1 else None


@contextlib.contextmanager
def under_usual_names(folder: Path, usual: str) -> Generator[Path]:
    """Yield a component's folder in which its only file of weights has the name `usual`.

    If it has another name (`.sft`, `.fp16.safetensors`), that is a temporary folder of links; otherwise the
    folder itself.
    """
    files = weight_files(folder)
    if len(files) != 1 or files[0].name == usual or SHARD.search(files[0].stem):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="uhr-weights-") as temporary:
        place = Path(temporary)
        for path in folder.iterdir():
            (place / (usual if path == files[0] else path.name)).symlink_to(path.absolute())
        yield place
