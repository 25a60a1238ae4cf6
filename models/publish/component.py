"""Export a trained backbone or VAE as a component's folder in diffusers' format, with a model card."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from uhr import __version__
from uhr.base.errors import UserError
from uhr.base.files import atomic, saving, sha256_file, write_json
from uhr.base.run_folder import FolderLayout, RunFolder, all_or_nothing
from uhr.models.files.write import save_tensors
from uhr.models.publish.card import CardFacts, backbone_card, vae_card

if TYPE_CHECKING:
    import torch

NAME = "diffusion_pytorch_model"
CONFIG, RECORD, CARD = "config.json", "uhr.json", "README.md"
SHARD_BYTES = 10 * 10**9
"""The most bytes of a file, as `save_pretrained` of diffusers splits."""


_CARDS = {"backbone": backbone_card, "vae": vae_card}


def export_component(
    kind: Literal["backbone", "vae"],
    state: Mapping[str, torch.Tensor],
    config: Mapping[str, Any],
    folder: str | Path,
    facts: CardFacts,
    shard_bytes: int = SHARD_BYTES,
) -> Path:
    """Write the folder of a transformer or VAE: weights in safetensors files of at most `shard_bytes`,
    `config.json`, model card and record (`uhr.json`). Return its path.

    `state` has diffusers' own names; the dtypes are kept. `config.json` is written last, and only a folder
    with it is a model. Raises UserError if the folder already contains a model or other files, and if the
    disk is full; then nothing is left there.
    """
    from huggingface_hub import split_torch_state_dict_into_shards

    folder = Path(folder)
    if (folder / CONFIG).exists():
        raise UserError(f"{folder} already contains a model", "name a new folder")
    split = split_torch_state_dict_into_shards(
        dict(state), filename_pattern=f"{NAME}{{suffix}}.safetensors", max_shard_size=shard_bytes
    )
    index = f"{NAME}.safetensors.index.json"
    names = (*split.filename_to_tensors, index, CONFIG, RECORD, CARD)
    RunFolder(folder, FolderLayout(f"the {kind}", names, (RECORD,))).check()
    fix = "free space and export again, or name another folder"
    with saving(folder, fix), all_or_nothing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for name, keys in split.filename_to_tensors.items():
            # diffusers reads the format from the metadata
            save_tensors({key: state[key].contiguous() for key in keys}, folder / name, {"format": "pt"})
        if split.is_sharded:
            metadata = {"total_size": sum(tensor.nbytes for tensor in state.values())}
            write_json(folder / index, {"metadata": metadata, "weight_map": split.tensor_to_filename})
        hashes = {name: sha256_file(folder / name) for name in split.filename_to_tensors}
        record = {"uhr": __version__, "kind": kind, "sha256": hashes, **facts.as_dict()}
        write_json(folder / RECORD, record)
        with atomic(folder / CARD) as temporary:
            temporary.write_text(_CARDS[kind](facts), encoding="utf-8")
        write_json(folder / CONFIG, config)
    return folder
