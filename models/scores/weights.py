"""Weights of scorers: a local path, a hub id that the user named, or an object store; and their hash."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uhr.base.errors import UserError, one_line
from uhr.base.files import user_path
from uhr.base.hub import snapshot
from uhr.base.paths import check_utf8, is_url
from uhr.base.store import ObjectStore
from uhr.models.loading.hashes import file_hash

_HUB_ID = re.compile(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?(?::([\w./+-]+))?")

EVERYTHING = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")
"""What a folder of transformers or open_clip is made of: configuration, weights, tokenizer, chat template."""


@dataclass(frozen=True)
class Weights:
    """Weights as the user named them: a path, `org/name[@revision][:file]`, or `s3://bucket/prefix`."""

    text: str
    path: Path | None = None
    repository: str | None = None
    revision: str | None = None
    file: str | None = None

    @classmethod
    def parse(cls, text: str | Path) -> Weights:
        """Tell the three kinds of names apart; an existing path comes first. Touches no network.

        Raises UserError if the name is none of them.
        """
        name = str(text)
        check_utf8("weights", name)
        if not name.strip():
            raise UserError(
                "the name of the weights is empty", "name a path, a hub id, or s3://bucket/prefix"
            )
        if is_url(name):
            return cls(name)
        path = user_path(name)
        if path.exists():
            return cls(name, path=path)
        match = _HUB_ID.fullmatch(name)
        if isinstance(text, Path) or match is None or name.startswith(("/", ".", "~")):
            fix = "name a path, a hub id (org/name[@revision]), or s3://bucket/prefix"
            raise UserError(f"the weights '{name}' do not exist", fix)
        return cls(name, repository=match[1], revision=match[2], file=match[3])

    def fetch(self, patterns: Sequence[str] = EVERYTHING) -> Path:
        """Return the local folder or file; downloads what is in the hub or in an object store.

        Of a hub repository only the named file or the files that match `patterns` are downloaded, into the
        hub's own cache; of an object store all objects below the prefix, into the user's cache.
        """
        if self.path is not None:
            return self.path
        if self.repository is None:
            return ObjectStore(self.text).download("weights")
        folder = snapshot(self.repository, self.revision, [self.file] if self.file else patterns)
        if self.file is None:
            return folder
        if not (folder / self.file).is_file():
            raise UserError(f"the hub's '{self.repository}' has no file {self.file}", "check its name")
        return folder / self.file


def missing(text: str | Path) -> str | None:
    """Say why weights cannot be used, before a run; None if they exist or will be fetched by name."""
    try:
        Weights.parse(text)
    except UserError as error:
        return str(error)
    return None


def hash_of_files(path: Path) -> str:
    """Return the SHA-256 (64 hex digits) of a file, or of all files of a folder with their relative names.

    Not only weights count: a tokenizer or a preprocessor's configuration changes scores too. Hidden files
    and folders are left out.
    """
    if path.is_file():
        return file_hash(path)
    total = hashlib.sha256()
    files = sorted(_visible(path), key=lambda file: file.relative_to(path).as_posix())
    if not files:
        raise UserError(f"{path} is empty", "expected weights there")
    for file in files:
        total.update(f"{file.relative_to(path).as_posix()} {file_hash(file)}\n".encode())
    return total.hexdigest()


def _visible(folder: Path) -> Iterable[Path]:
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(parent) / name for name in names if not name.startswith("."))


def combined_hash(hashes: Iterable[str]) -> str:
    """Return one hash (64 hex digits) of several, in their order."""
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def read_tensors(path: Path) -> dict[str, Any]:
    """Return the tensors of a safetensors or PyTorch file, on the CPU.

    A pickle may contain nothing but tensors and containers of them. Raises UserError if it cannot be read.
    """
    import torch
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        tree = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # torch raises UnpicklingError, RuntimeError or OSError, safetensors an error of its own; other files
        # make the reader of pickles stumble, with errors that tell nothing
        foreign = isinstance(error, LookupError | ValueError | TypeError | AttributeError)
        text = "it is no PyTorch file" if foreign else one_line(error)[:160]
        raise UserError(f"the weights {path} cannot be read ({text})", "name a safetensors file") from error
    inner = tree.get("state_dict", tree) if isinstance(tree, dict) else tree
    if not isinstance(inner, dict) or not all(isinstance(value, torch.Tensor) for value in inner.values()):
        raise UserError(f"the weights {path} are no mapping of names to tensors", "name another file")
    return inner
