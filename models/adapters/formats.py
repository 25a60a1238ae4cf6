"""LoRA files in the keys of diffusers, kohya and ComfyUI (BFL's names): written, and read back exactly.

    diffusers  transformer.transformer_blocks.0.attn.to_q.lora_A.weight       alpha in the metadata
    kohya      lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight        alpha as a tensor per module
    comfyui    diffusion_model.double_blocks.0.img_attn.qkv.lora_A.weight     alpha as a tensor per module

ComfyUI reads all three, diffusers the first two (of the third only `DOWN_UP` spelling, and only for FLUX.1),
kohya its own. Where BFL fuses query, key and value, separate updates become one of three times the rank,
with a block-diagonal B; nothing is approximated. diffusers' kohya reader drops the modules outside the blocks
(x_embedder, norm_out, ...) without a word.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uhr.base.errors import UserError
from uhr.base.files import atomic

if TYPE_CHECKING:
    import torch

    from uhr.models.adapters.keys import Fused, KeyLayout
    from uhr.models.adapters.low_rank import Lora, LowRank

A_B = ("lora_A", "lora_B")
DOWN_UP = ("lora_down", "lora_up")
"""Two spellings of A [rank, in] and B [out, rank]."""

DIFFUSERS_METADATA = "lora_adapter_metadata"
_KINDS = {
    ".lora_A.weight": "a",
    ".lora_down.weight": "a",
    ".lora_B.weight": "b",
    ".lora_up.weight": "b",
    ".alpha": "alpha",
}
_PREFIXES = ("lora_unet_", "diffusion_model.")
_TEXT_PREFIXES = ("lora_te", "text_encoder")


class Format(StrEnum):
    """Whose keys a LoRA file has."""

    DIFFUSERS = "diffusers"
    KOHYA = "kohya"
    COMFYUI = "comfyui"


def write_state(
    lora: Lora, form: Format, layout: KeyLayout, pair: tuple[str, str] | None = None
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """(tensors, metadata) of a safetensors file. `pair` respells A and B of the comfyui form (`DOWN_UP`)."""
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


def read_state(
    state: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None, layout: KeyLayout, where: str
) -> dict[str, LowRank]:
    """The adapter in any of the three forms; every key must be understood.

    `where` names the file in errors.
    """
    from uhr.models.adapters.low_rank import LowRank

    modules: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in state.items():
        if key.startswith(_TEXT_PREFIXES):
            raise UserError(f"adapter {where} also changes a text encoder", "load it into a whole pipeline")
        suffix = next((suffix for suffix in _KINDS if key.endswith(suffix)), None)
        if suffix is None:
            fix = "only plain LoRA (A, B and alpha per linear) is read: no DoRA, LoKr, bias or convolution"
            raise UserError(f"adapter {where}: unknown key '{key}'", fix)
        modules.setdefault(key.removesuffix(suffix), {})[_KINDS[suffix]] = tensor
    alpha_of = _alphas(metadata or {}, where)
    lora: dict[str, LowRank] = {}
    for name, parts in modules.items():
        if "a" not in parts or "b" not in parts:
            raise UserError(f"adapter {where}: '{name}' lacks A or B", "download it again")
        a, b = parts["a"], parts["b"]
        if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1]:
            shapes = f"A {tuple(a.shape)}, B {tuple(b.shape)}"
            raise UserError(f"adapter {where}: '{name}' has {shapes}", "A is [rank, in], B is [out, rank]")
        alpha = float(parts["alpha"]) if "alpha" in parts else alpha_of(name, a.shape[0])
        for path, part in _from_key(name, LowRank(a, b, alpha), layout, where).items():
            if path in lora:
                raise UserError(f"adapter {where}: '{path}' stands in it twice", "keep one spelling")
            lora[path] = part
    if not lora:
        raise UserError(f"adapter {where} is empty", "download it again")
    return lora


def save(
    lora: Lora,
    path: Path,
    form: Format,
    layout: KeyLayout,
    facts: Mapping[str, str] | None = None,
    pair: tuple[str, str] | None = None,
) -> Path:
    """Write a safetensors file atomically; `facts` go into its metadata. The file's path."""
    from safetensors.torch import save_file

    state, metadata = write_state(lora, form, layout, pair)
    tensors = {key: tensor.detach().cpu().clone().contiguous() for key, tensor in state.items()}
    with atomic(path) as temporary:
        save_file(tensors, temporary, metadata={**(facts or {}), **metadata})
    return path


def load(path: Path, layout: KeyLayout) -> dict[str, LowRank]:
    """The adapter of a safetensors file in any of the three forms, in the file's dtype, on the CPU."""
    state, metadata = read_file(path)
    return read_state(state, metadata, layout, str(path))


def read_file(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """(tensors, metadata) of a safetensors file; UserError where it is none."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        words = " ".join(str(error).split())
        raise UserError(f"adapter {path} cannot be read ({words})", "is it a safetensors file?") from error


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
    for name, (prefix, entry) in layout.seats(lora).items():
        parts = [lora.get(prefix + part) for part in entry.parts]
        present = next(part for part in parts if part is not None)
        whole = fuse(parts, entry.outs(*present.features))
        fused[name] = _swap(whole) if entry.swapped else whole
    return fused


def _from_key(name: str, whole: LowRank, layout: KeyLayout, where: str) -> dict[str, LowRank]:
    from uhr.models.adapters.low_rank import split

    prefix = next((prefix for prefix in _PREFIXES if name.startswith(prefix)), None)
    if prefix is None:
        return {name.removeprefix("transformer."): whole}
    found = layout.locate(name.removeprefix(prefix))
    if found is None:
        raise UserError(f"adapter {where}: {layout.family} has no '{name}'", "it is for another backbone")
    block, entry = found
    outs = _outs(entry, whole, name, where)
    parts = split(_swap(whole) if entry.swapped else whole, outs)
    return {
        block + part: update for part, update in zip(entry.parts, parts, strict=True) if update is not None
    }


def _outs(entry: Fused, whole: LowRank, name: str, where: str) -> list[int]:
    rows, width = whole.features
    outs = entry.outs(rows, width)
    if sum(outs) != rows:
        raise UserError(
            f"adapter {where}: '{name}' has {rows} rows, not {sum(outs)}", "it is for another backbone"
        )
    return outs


def _swap(part: LowRank) -> LowRank:
    """Exchange the halves of the output (scale and shift of the last normalisation); its own inverse."""
    import torch

    from uhr.models.adapters.low_rank import LowRank

    first, second = part.b.chunk(2, dim=0)
    return LowRank(part.a, torch.cat([second, first]), part.alpha)


def _peft_config(lora: Lora) -> dict[str, Any]:
    """What diffusers hands to `LoraConfig`: only what every version of peft knows."""
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
        "ss_network_module": "networks.lora_flux" if layout.family == "flux1" else "networks.lora_flux_2",
        "ss_network_dim": str(ranks.pop()) if len(ranks) == 1 else "Dynamic",
        "ss_network_alpha": str(alphas.pop()) if len(alphas) == 1 else "Dynamic",
        "ss_base_model_version": layout.family,
    }


def _alphas(metadata: Mapping[str, str], where: str) -> Any:
    """(module's key, rank) -> alpha by diffusers' metadata; alpha is the rank where that says nothing."""
    if DIFFUSERS_METADATA not in metadata:
        return lambda name, rank: float(rank)
    try:
        packed = json.loads(metadata[DIFFUSERS_METADATA])
    except ValueError as error:
        raise UserError(
            f"adapter {where}: its {DIFFUSERS_METADATA} is no JSON", "download it again"
        ) from error
    own = {key: value for key, value in packed.items() if not key.startswith("text_encoder")}
    config = {key.removeprefix("transformer."): value for key, value in own.items()}

    def alpha_of(name: str, rank: int) -> float:
        from peft.utils.other import get_pattern_key

        pattern = config.get("alpha_pattern") or {}
        path = name.removeprefix("transformer.")
        alpha = float(pattern.get(get_pattern_key(list(pattern), path), config.get("lora_alpha", rank)))
        # peft's rank-stabilised LoRA divides by the root of the rank
        return alpha * rank**0.5 if config.get("use_rslora") else alpha

    return alpha_of
