"""Adapters as LoRA files that diffusers loads, with the strength that they were trained at.

Other readers of diffusers' keys get the matrices; who does not read its metadata takes alpha for the rank.
`adapters.formats` writes the keys of kohya and ComfyUI, with alpha as tensors.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from uhr import __version__
from uhr.base.errors import UserError
from uhr.base.files import atomic, sha256_file, write_json
from uhr.models.adapters.plain import LoraSpec
from uhr.models.card import CardFacts, lora_card

if TYPE_CHECKING:
    import torch

WEIGHTS = "pytorch_lora_weights.safetensors"
RECORD = "uhr.json"
CARD = "README.md"
PREFIX = "transformer"


def export_lora(
    state: Mapping[str, torch.Tensor], lora: LoraSpec, folder: str | Path, facts: CardFacts
) -> Path:
    """Write a LoRA's weights, its model card and its record (`uhr.json`) into a folder; the folder's path.

    `state` is what `plain.lora_state` gives. Keys are diffusers' own, and alpha stands in the metadata
    that diffusers reads: without it a reader would take alpha = rank. The weights come last, so a folder with
    weights is whole. A folder that has weights already is refused.
    """
    from safetensors.torch import save_file

    folder = Path(folder)
    if (folder / WEIGHTS).exists():
        raise UserError(f"{folder} holds an adapter already", "name a new folder")
    ranks = {tensor.shape[0] for key, tensor in state.items() if key.endswith("lora_A.weight")}
    assert ranks == {lora.rank}, f"a LoRA of rank {lora.rank} has matrices of rank {ranks}"
    folder.mkdir(parents=True, exist_ok=True)
    assert lora.alpha is not None
    with atomic(folder / CARD) as temporary:
        temporary.write_text(lora_card(facts, lora.rank, lora.alpha, lora.targets), encoding="utf-8")
    with atomic(folder / WEIGHTS) as temporary:
        tensors = {f"{PREFIX}.{key}": tensor.detach().float().contiguous() for key, tensor in state.items()}
        save_file(tensors, temporary, metadata=diffusers_metadata(lora))
        _sort_header(temporary)
        record = {"uhr": __version__, "kind": "lora", "sha256": sha256_file(temporary)}
        shape = {"rank": lora.rank, "alpha": lora.alpha, "targets": list(lora.targets)}
        write_json(folder / RECORD, {**record, "lora": shape, **facts.as_dict()})
    return folder


def diffusers_metadata(lora: LoraSpec) -> dict[str, str]:
    """The header in which diffusers looks for rank, alpha and targets.

    Only what every version of peft knows: diffusers hands each key to `LoraConfig`.
    """
    values = {"r": lora.rank, "lora_alpha": lora.alpha, "target_modules": list(lora.targets)}
    packed = {f"{PREFIX}.{key}": value for key, value in values.items()}
    return {"format": "pt", "lora_adapter_metadata": json.dumps(packed, sort_keys=True)}


def _sort_header(path: Path) -> None:
    """Put a safetensors file's metadata in order: its writer keeps them in a hash map, so bytes would vary.

    The file begins with the header's length (8 bytes, little endian) and the header, JSON padded with spaces.
    """
    with open(path, "r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(length)
        assert len(text) == length, "another layout of safetensors' header"
        file.seek(8)
        file.write(text)
