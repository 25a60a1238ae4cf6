"""Write LoRA files in the keys of diffusers, kohya and ComfyUI (BFL's names), exactly.

    diffusers  transformer.transformer_blocks.0.attn.to_q.lora_A.weight       alpha in the metadata
    kohya      lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight        alpha as a tensor per module
    comfyui    diffusion_model.double_blocks.0.img_attn.qkv.lora_A.weight     alpha as a tensor per module

ComfyUI reads all three, diffusers the first two (and the third in the `DOWN_UP` spelling, for FLUX.1 only),
kohya its own. Where BFL fuses query, key and value, separate updates become one of three times the rank,
with a block-diagonal B; nothing is approximated. diffusers' kohya reader silently drops the modules outside
the blocks (x_embedder, norm_out, ...).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uhr.models.adapters.formats.reading import DIFFUSERS_METADATA, swap
from uhr.models.files.write import save_tensors

if TYPE_CHECKING:
    import torch

    from uhr.models.adapters.formats.keys import KeyLayout
    from uhr.models.adapters.low_rank import Lora, LowRank

A_B = ("lora_A", "lora_B")
DOWN_UP = ("lora_down", "lora_up")
"""Two spellings of A [rank, in] and B [out, rank]."""


class Format(StrEnum):
    """The program whose keys a LoRA file has."""

    DIFFUSERS = "diffusers"
    KOHYA = "kohya"
    COMFYUI = "comfyui"


def write_state(
    lora: Lora, form: Format, layout: KeyLayout, pair: tuple[str, str] | None = None
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Return tensors and metadata of a safetensors file; `pair` respells A and B in the comfyui form."""
    assert lora, "an adapter without modules"
    if form is Format.DIFFUSERS:
        state = {f"transformer.{path}.lora_A.weight": part.a for path, part in lora.items()}
        state |= {f"transformer.{path}.lora_B.weight": part.b for path, part in lora.items()}
        return state, {"format": "pt", DIFFUSERS_METADATA: json.dumps(_peft_config(lora), sort_keys=True)}
    if form is Format.KOHYA:
        named = {"lora_unet_" + name.replace(".", "_"): part for name, part in _to_bfl(lora, layout).items()}
        return _pairs(named, DOWN_UP), {"format": "pt", **_kohya_metadata(lora, layout)}
    named = {f"diffusion_model.{name}": part for name, part in _to_bfl(lora, layout).items()}
    return _pairs(named, pair or A_B), {"format": "pt"}


def save(
    lora: Lora,
    path: Path,
    form: Format,
    layout: KeyLayout,
    facts: Mapping[str, str] | None = None,
    pair: tuple[str, str] | None = None,
) -> Path:
    """Write a safetensors file atomically and return its path; `facts` go into its metadata.

    Equal adapters give equal bytes.
    """
    state, metadata = write_state(lora, form, layout, pair)
    tensors = {key: tensor.detach().cpu().clone().contiguous() for key, tensor in state.items()}
    save_tensors(tensors, path, {**(facts or {}), **metadata})
    return path


def _pairs(named: Mapping[str, LowRank], pair: tuple[str, str]) -> dict[str, torch.Tensor]:
    import torch

    state = {}
    for name, part in named.items():
        state[f"{name}.{pair[0]}.weight"] = part.a
        state[f"{name}.{pair[1]}.weight"] = part.b
        state[f"{name}.alpha"] = torch.tensor(part.alpha, dtype=torch.float32)
    return state


def _to_bfl(lora: Lora, layout: KeyLayout) -> dict[str, LowRank]:
    from uhr.models.adapters.low_rank import fuse

    fused = {}
    for name, (prefix, entry) in layout.linears(lora).items():
        parts = [lora.get(prefix + part) for part in entry.parts]
        present = next(part for part in parts if part is not None)
        whole = fuse(parts, entry.outs(*present.features))
        fused[name] = swap(whole) if entry.swapped else whole
    return fused


def _peft_config(lora: Lora) -> dict[str, Any]:
    """Return the arguments that diffusers passes to `LoraConfig`, limited to those of every version of
    peft."""
    rank = Counter(part.rank for part in lora.values()).most_common(1)[0][0]
    alpha = Counter(part.alpha for part in lora.values()).most_common(1)[0][0]
    values = {
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": sorted(lora),
        # a leading ^ makes peft match the whole path: "proj_out" is also the end of others
        "rank_pattern": {f"^{path}": part.rank for path, part in lora.items() if part.rank != rank},
        "alpha_pattern": {f"^{path}": part.alpha for path, part in lora.items() if part.alpha != alpha},
    }
    return {f"transformer.{key}": value for key, value in values.items()}


def _kohya_metadata(lora: Lora, layout: KeyLayout) -> dict[str, str]:
    ranks, alphas = {part.rank for part in lora.values()}, {part.alpha for part in lora.values()}
    return {
        "ss_network_module": layout.kohya_module,
        "ss_network_dim": str(ranks.pop()) if len(ranks) == 1 else "Dynamic",
        "ss_network_alpha": str(alphas.pop()) if len(alphas) == 1 else "Dynamic",
        "ss_base_model_version": layout.family,
    }
