"""Export adapters as LoRA files that diffusers loads, at the strength that they were trained with.

Other readers of diffusers' keys get the matrices; one that does not read the metadata assumes alpha = rank.
`adapters.formats` writes the keys of kohya and ComfyUI, with alpha as tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from uhr import __version__
from uhr.base.errors import UserError
from uhr.base.files import atomic, saving, sha256_file, write_json
from uhr.base.run_folder import FolderLayout, RunFolder, all_or_nothing
from uhr.models.adapters.conversion import lora_of_state
from uhr.models.adapters.formats import writing
from uhr.models.adapters.formats.keys import LAYOUTS
from uhr.models.adapters.formats.usage import ORDINARY, Usage
from uhr.models.adapters.low_rank import LowRank
from uhr.models.adapters.plain import LoraSpec
from uhr.models.publish.card import CardFacts, lora_card
from uhr.models.specs.spec import ModelSpec

if TYPE_CHECKING:
    import torch

WEIGHTS = "pytorch_lora_weights.safetensors"
RECORD = "uhr.json"
CARD = "README.md"
LAYOUT = FolderLayout("the adapter", (WEIGHTS, RECORD, CARD), (RECORD,))


def export_lora(
    state: Mapping[str, torch.Tensor],
    lora: LoraSpec,
    folder: str | Path,
    facts: CardFacts,
    usage: Usage = ORDINARY,
) -> Path:
    """Write a LoRA's weights, model card and record (`uhr.json`) into a folder, and return its path.

    `state` comes from `plain.lora_state`, and `lora` describes what was trained; an adapter of singular
    components becomes the LoRA of twice its rank that is the same function. Keys are diffusers' own. Alpha
    and `usage` are in the file's metadata: diffusers reads the first (without it, alpha = rank is assumed),
    and uhr both. The weights are written last, so a folder with weights is complete. Raises UserError if the
    folder already contains weights or other files, and if the disk is full; then nothing is left there.
    """
    folder = Path(folder)
    if (folder / WEIGHTS).exists():
        raise UserError(f"{folder} already contains an adapter", "name a new folder")
    RunFolder(folder, LAYOUT).check()
    values = _values(state, lora)
    rank, alpha = next((part.rank, part.alpha) for part in values.values())
    card = lora_card(facts, rank, alpha, lora.targets, usage)
    fix = "free space and export again, or name another folder"
    with saving(folder, fix), all_or_nothing(folder), atomic(folder / WEIGHTS) as weights:
        _write(values, weights, facts.spec, usage)
        record = {"uhr": __version__, "kind": "lora", "sha256": sha256_file(weights)}
        shape = {"rank": rank, "alpha": alpha, "targets": list(lora.targets)}
        limits = usage.model_dump(mode="json", exclude_defaults=True, exclude={"sampling"})
        write_json(folder / RECORD, {**record, "lora": {**shape, **limits}, **facts.as_dict()})
        with atomic(folder / CARD) as temporary:
            temporary.write_text(card, encoding="utf-8")
    return folder


def write_lora(
    state: Mapping[str, torch.Tensor], lora: LoraSpec, path: Path, spec: ModelSpec, usage: Usage = ORDINARY
) -> None:
    """Write the file of weights that `export_lora` writes, with the same bytes."""
    _write(_values(state, lora), path, spec, usage)


def _values(state: Mapping[str, torch.Tensor], lora: LoraSpec) -> dict[str, LowRank]:
    ranks = {tensor.shape[0] for key, tensor in state.items() if key.endswith("lora_A.weight")}
    assert ranks == {lora.rank}, f"a LoRA of rank {lora.rank} has matrices of rank {ranks}"
    return lora_of_state({key: tensor.float() for key, tensor in state.items()}, lora.alpha)


def _write(values: Mapping[str, LowRank], path: Path, spec: ModelSpec, usage: Usage) -> None:
    writing.save(values, path, writing.Format.DIFFUSERS, LAYOUTS[spec.transformer_class], usage.metadata())
