"""Read LoRA files of many programs exactly: every key is understood, alpha is kept, nothing is computed.

    transformer.transformer_blocks.0.attn.to_q.lora_A.weight          diffusers; alpha in the metadata
    base_model.model.transformer_blocks.0.attn.to_q.lora_A.weight     peft; alpha in adapter_config.json
    lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight           kohya; alpha as a tensor per module
    lora_transformer_transformer_blocks_0_attn_to_q.lora_down.weight  OneTrainer; as kohya
    diffusion_model.double_blocks.0.img_attn.qkv.lora_A.weight        ComfyUI, ai-toolkit; as kohya
    double_blocks.0.processor.qkv_lora1.down.weight                   XLabs; without alpha

`alphas.py` finds alpha. diffusers' own readers round half-precision files when they multiply by alpha, accept
kohya's only at FLUX.1-dev's widths, and drop unknown keys with a warning.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from uhr.base.errors import UserError, one_line
from uhr.models.adapters.formats.alphas import DIFFUSERS_METADATA, TEXT_PREFIXES, Alphas

if TYPE_CHECKING:
    import torch

    from uhr.models.adapters.formats.keys import Fused, KeyLayout
    from uhr.models.adapters.formats.settings import PeftSettings
    from uhr.models.adapters.low_rank import Lora, LowRank

__all__ = ["DIFFUSERS_METADATA", "Parts", "read_file", "read_state", "swap"]

_KINDS = {
    ".lora_A.weight": "a",
    ".lora_B.weight": "b",
    ".lora_A.default.weight": "a",
    ".lora_B.default.weight": "b",
    ".lora_down.weight": "a",
    ".lora_up.weight": "b",
    ".lora.down.weight": "a",
    ".lora.up.weight": "b",
    ".down.weight": "a",
    ".up.weight": "b",
    ".alpha": "alpha",
}
"""Spellings of A [rank, in], B [out, rank] and alpha, in the order in which they are tried: `.down.weight`
is also the end of `.lora.down.weight`, and so comes later."""

_PREFIXES = ("lora_unet_", "lora_transformer_", "diffusion_model.", "base_model.model.", "transformer.")
_CLIP_PREFIXES = ("text_encoder.", "lora_te1_", "lora_te_")
_CLIP_NAME = re.compile(
    r"(?:text_model[._])?encoder[._]layers[._](\d+)[._](self_attn|mlp)[._](q_proj|k_proj|v_proj|out_proj|fc1|fc2)"
)


class Parts(NamedTuple):
    """An adapter's updates of each model."""

    backbone: dict[str, LowRank]
    """Updates by diffusers' path of the module in the transformer."""

    clip: dict[str, LowRank]
    """Updates by the path of the module in FLUX.1's CLIP, without the "text_model." of transformers before
    5."""

    notes: tuple[str, ...] = ()
    """Notes for the user about the adapter's strength."""


def read_file(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Return tensors and metadata of a safetensors file. Raises UserError if it cannot be read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        text = one_line(error)
        raise UserError(f"adapter {path} cannot be read ({text})", "name a safetensors file") from error


def read_state(
    state: Mapping[str, torch.Tensor],
    metadata: Mapping[str, str] | None,
    layout: KeyLayout,
    where: str,
    settings: PeftSettings | None = None,
) -> Parts:
    """Read a LoRA in the keys of any program; the result has the file's dtype.

    `where` names the file in errors, and `settings` are peft's settings from its `adapter_config.json`.
    Raises UserError for an unknown key, for shapes of A and B that do not match, for a module that occurs
    twice, and for values of alpha that disagree.
    """
    from uhr.models.adapters.low_rank import LowRank

    alphas = Alphas(metadata or {}, settings, where)
    found = Parts({}, {})
    for name, parts in _by_module(state, where).items():
        a, b = _halves(name, parts, where)
        own = float(parts["alpha"].item()) if "alpha" in parts else None
        whole = LowRank(a, b, alphas.of(name, a.shape[0], own))
        if name.startswith(TEXT_PREFIXES):
            target, updates = found.clip, _of_clip(name, whole, layout, where)
        else:
            target, updates = found.backbone, _of_backbone(name, whole, layout, where)
        for path, part in updates.items():
            if path in target:
                raise UserError(f"adapter {where}: it contains '{path}' twice", "keep one spelling")
            target[path] = part
    if not (found.backbone or found.clip):
        raise UserError(f"adapter {where} is empty", "download it again")
    return found._replace(notes=alphas.finish())


def _by_module(state: Mapping[str, torch.Tensor], where: str) -> dict[str, dict[str, torch.Tensor]]:
    """Group tensors by the module's name in the file: its "a", "b" and "alpha"."""
    modules: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in state.items():
        suffix = next((suffix for suffix in _KINDS if key.endswith(suffix)), None)
        if suffix is None:
            fix = "only plain LoRA (A, B and alpha per linear) is read: no DoRA, LoKr, bias or convolution"
            raise UserError(f"adapter {where}: unknown key '{key}'", fix)
        parts, kind = modules.setdefault(key.removesuffix(suffix), {}), _KINDS[suffix]
        if kind in parts:
            raise UserError(f"adapter {where}: it contains '{key}' twice", "keep one spelling")
        parts[kind] = tensor
    return modules


def _halves(name: str, parts: Mapping[str, torch.Tensor], where: str) -> tuple[torch.Tensor, torch.Tensor]:
    if "a" not in parts or "b" not in parts:
        raise UserError(f"adapter {where}: '{name}' lacks A or B", "download it again")
    a, b = parts["a"], parts["b"]
    alone = "alpha" not in parts or parts["alpha"].numel() == 1
    if not (a.ndim == b.ndim == 2 and a.shape[0] == b.shape[1] and a.numel() and b.numel() and alone):
        shapes = ", ".join(f"{half.upper()} {tuple(tensor.shape)}" for half, tensor in parts.items())
        fix = "A must be [rank, in], B [out, rank] and alpha a number"
        raise UserError(f"adapter {where}: '{name}' has {shapes}", fix)
    if not (a.is_floating_point() and b.is_floating_point()):
        what = f"adapter {where}: '{name}' is stored in {a.dtype} and {b.dtype}, which are not plain floats"
        raise UserError(what, "use the adapter from before it was quantised")
    return a, b


def _of_clip(name: str, whole: LowRank, layout: KeyLayout, where: str) -> Lora:
    prefix = next((prefix for prefix in _CLIP_PREFIXES if name.startswith(prefix)), None)
    match = None if prefix is None else _CLIP_NAME.fullmatch(name.removeprefix(prefix))
    if layout.family != "flux1" or match is None:
        what = f"adapter {where} also changes a text encoder ('{name}')"
        raise UserError(what, f"of text encoders only FLUX.1's CLIP can be adapted; this is {layout.family}")
    index, block, linear = match.groups()
    return {f"encoder.layers.{index}.{block}.{linear}": whole}


def _of_backbone(name: str, whole: LowRank, layout: KeyLayout, where: str) -> Lora:
    from uhr.models.adapters.low_rank import split

    prefix = next((prefix for prefix in _PREFIXES if name.startswith(prefix)), "")
    inside = name.removeprefix(prefix)
    found = layout.locate(inside)
    if found is None and (prefix in ("", "transformer.", "base_model.model.")):
        return {inside: whole}  # assumed to be a path of the model; `check_fits` compares it with its modules
    if found is None:
        raise UserError(f"adapter {where}: {layout.family} has no '{name}'", "it is for another backbone")
    block, entry = found
    if len(entry.parts) == 1:
        return {block + entry.parts[0]: swap(whole) if entry.swapped else whole}
    parts = split(whole, _outs(entry, whole, name, where))
    return {
        block + part: update for part, update in zip(entry.parts, parts, strict=True) if update is not None
    }


def _outs(entry: Fused, whole: LowRank, name: str, where: str) -> list[int]:
    rows, width = whole.features
    outs = entry.outs(rows, width)
    if sum(outs) != rows:
        what = f"adapter {where}: '{name}' has {rows} rows, not {sum(outs)}"
        raise UserError(what, "it is for another backbone")
    return outs


def swap(part: LowRank) -> LowRank:
    """Exchange the halves of the output (scale and shift of the last normalisation); its own inverse."""
    import torch

    from uhr.models.adapters.low_rank import LowRank

    first, second = part.b.chunk(2, dim=0)
    return LowRank(part.a, torch.cat([second, first]), part.alpha)
