"""Adapters from files to the model and from the model to plain LoRAs, exactly.

Files: LoRA in the keys of diffusers, kohya or ComfyUI (`formats.py`), URAE's 2K LoRA and Scale-DiT's
(both in diffusers' keys, without alpha: alpha = rank), URAE's 4K minor factors and the LoRA of rank 48 that
its converter makes of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from uhr.base.errors import UserError
from uhr.models.adapters import formats, peft_layers
from uhr.models.adapters.components import Factors
from uhr.models.adapters.keys import layout_of
from uhr.models.adapters.low_rank import LowRank, total
from uhr.models.adapters.minor import START, difference, load_minor, state_factors
from uhr.models.hub import lora_file

_URAE_KEY = re.compile(
    r"((?:single_)?transformer_blocks\.\d+\.attn)\.processor\.(to_q|to_k|to_v|to_out)_(a|b)\.weight"
)


def load_adapter(
    transformer: Any,
    path: str | Path,
    name: str,
    scale: float = 1.0,
    over: Iterable[str] = (),
    cache: Path | None = None,
) -> None:
    """Put a file's adapter on the model, frozen, `scale` times as strong; adapters that act go on acting.

    `over` and `cache` are for minor factors, see `minor.load_minor`: URAE's 4K file stands on its 2K LoRA,
    which must be on the model at scale 1 and be named in `over`. Keys that are not understood, or that meet
    no module of their shape, are a UserError. XLabs' and control LoRAs, and parts for CLIP, go through
    diffusers' own reader: `plain.load_lora`. Load before weights are offloaded from memory.
    """
    file, over = lora_file(path), tuple(over)
    state, metadata = formats.read_file(file)
    if is_urae_minor(state):
        if not over:
            fix = "load that first and name it as what the factors stand on (over=)"
            raise UserError(f"adapter {file} holds minor factors that were trained on top of a 2K LoRA", fix)
        load_minor(transformer, urae_factors(state, str(file)), name, cache, over, scale)
        return
    lora = formats.read_state(state, metadata, layout_of(transformer), str(file))
    peft_layers.put(transformer, lora, name, str(file), scale)


def is_urae_minor(state: Iterable[str]) -> bool:
    """Whether these are the keys of URAE's minor factors: parameters of attention processors."""
    return any(_URAE_KEY.fullmatch(key) for key in state)


def urae_factors(state: Mapping[str, torch.Tensor], where: str) -> dict[str, Factors]:
    """The trained a_t, b_t of URAE's 4K file by module, as `minor.load_minor` takes them.

    Its keys are `<block>.attn.processor.to_{q,k,v}_{a,b}.weight`, and `to_out_{a,b}` in double blocks.
    """
    found: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in state.items():
        match = _URAE_KEY.fullmatch(key)
        if match is None:
            raise UserError(f"adapter {where}: unknown key '{key}'", "is it URAE's minor adapter?")
        block, linear, factor = match.groups()
        found.setdefault(f"{block}.{linear.replace('to_out', 'to_out.0')}", {})[factor] = tensor
    for path, pair in found.items():
        if set(pair) != {"a", "b"} or pair["a"].shape[0] != pair["b"].shape[1]:
            raise UserError(
                f"adapter {where}: '{path}' lacks a factor or they do not meet", "download it again"
            )
    return {path: Factors(pair["a"], pair["b"]) for path, pair in found.items()}


def lora_of(transformer: Any, names: Iterable[str] | None = None) -> dict[str, LowRank]:
    """One plain LoRA, exactly the sum of these adapters (all active ones if None) at their present scales.

    Ranks add up: a minor adapter counts twice its rank, and URAE's 4K over its 2K LoRA is rank 48, in the
    order of the official converter if the minor one is named first. A token-masked adapter is a UserError.
    """
    names = list(peft_layers.active(transformer) if names is None else names)
    parts: dict[str, list[LowRank]] = {}
    for name in names:
        for path, layer in peft_layers.layers_of(transformer, name).items():
            parts.setdefault(path, []).append(peft_layers.low_rank(layer, name))
    return {path: total(found) for path, found in parts.items()}


def lora_of_state(state: Mapping[str, torch.Tensor], alpha: float | None = None) -> dict[str, LowRank]:
    """A plain LoRA from what `plain.lora_state` gave (or an average of such), without a model.

    `alpha` of an ordinary LoRA is its rank if None; a minor adapter has none and becomes twice its rank.
    """
    if any(key.endswith(f".{START}") for key in state):
        trained, starts = state_factors(state)
        return {path: difference(trained[path], starts[path]) for path in trained}
    lora = {}
    for key, a in state.items():
        if key.endswith(".lora_A.weight"):
            path = key.removesuffix(".lora_A.weight")
            b = state[f"{path}.lora_B.weight"]
            lora[path] = LowRank(a, b, float(a.shape[0]) if alpha is None else alpha)
    assert 2 * len(lora) == len(state), "a state of something else than A and B"
    return lora
