"""Recognise weights by their names: adapters, other models, and weights that are stored quantised."""

from __future__ import annotations

import re
from collections.abc import Mapping

from uhr.base.errors import UserError
from uhr.models.files.containers import StoredTensor

ADAPTER = "an adapter"
"""The result of `kind_of` for a LoRA and similar adapters, in the names of any program."""


def _compiled(*kinds: tuple[str, str]) -> tuple[tuple[re.Pattern[str], str], ...]:
    return tuple((re.compile(pattern), kind) for pattern, kind in kinds)


_NO_FLOATS = frozenset(
    {"I8", "U8", "I16", "U16", "I32", "U32", "I64", "U64", "BOOL", "F4", "F6_E2M3", "F6_E3M2", "F8_E8M0"}
)
"""safetensors' dtypes that are not floating-point numbers of at least 8 bits."""

_QUANTISED = _compiled(
    (r"\.quant_state\.bitsandbytes__nf4$", "bitsandbytes to NF4"),
    (r"\.quant_state\.bitsandbytes__fp4$", "bitsandbytes to FP4"),
    (r"\.(absmax|nested_absmax|quant_map|nested_quant_map)$|\.quant_state\.", "bitsandbytes to 4 bits"),
    (r"\.(SCB|weight_format)$", "bitsandbytes to 8 bits"),
    (r"\.(wscales|wcscales|wtscale|smooth_factor)$", "SVDQuant (nunchaku)"),
    (r"\.(qweight|qzeros|g_idx)$", "GPTQ or AWQ"),
    (r"\.(weight_packed|weight_zero_point)$", "compressed-tensors"),
    (r"\.(weight_scale_2|weight_quantizer\._amax|weight_quantizer\._scale)$", "NVIDIA's ModelOpt"),
    (r"\.weight\._(data|scale|shift)$|\.weight_qtype$", "quanto"),
    (r"[:._](qdata|int_data|tensor_impl)$|_weight_(qdata|scale|zero_point)$", "torchao"),
    (r"\.(W_q|q_weight|q_scale)$", "HQQ or EXL2"),
    (r"\.weight_scale_inv$", "blocks to 8-bit floats, with scales"),
    (r"\.(scale_weight|weight_scale|comfy_quant)$|(^|\.)scaled_fp8$", "ComfyUI, with separate scales"),
)
"""Names in addition to or in place of `weight`, and the program that writes them; the narrower first."""

_ADAPTER = re.compile(
    r"\.lora_[AB]\.|\.lora[._](down|up)\.|\.lora_(down|up)\.|_lora\d*\.(down|up)\.|\.(lokr|hada|oft)_"
    r"|\.dora_scale$|lora_magnitude_vector|\.diff(_b)?$|\.processor\.to_\w+_[ab]\."
)

_WITH_BACKBONE = _compiled(
    (_ADAPTER.pattern, ADAPTER),
    (r"controlnet_(x_embedder|blocks|double|single)|input_hint_block", "a ControlNet"),
    (r"(^|\.)(image_proj|ip_adapter)", "an IP-Adapter"),
    (r"(^|\.)distilled_guidance_layer\.", "a Chroma"),
    (r"(^|\.)exp_avg(_sq)?(\.|$)", "the state of an optimiser"),
)

_ALONE = _compiled(
    (r"^enc\.blk\.\d+\.|(^|\.)encoder\.block\.\d+\.layer\.", "a T5 text encoder"),
    (r"(^|\.)joint_blocks\.\d+\.", "a Stable Diffusion 3"),
    (r"(^|\.)input_blocks\.\d+\.|(^|\.)down_blocks\.\d+\.attentions\.", "a UNet of Stable Diffusion"),
    (r"(^|\.)text_model\.encoder\.layers\.\d+|(^|\.)resblocks\.\d+\.", "a CLIP"),
    (r"(^|\.)layers\.\d+\.self_attn\.|^blk\.\d+\.attn_", "a language model"),
    (r"(^|\.)(decoder|encoder)\.conv_in\.weight$", "a VAE"),
    (r"(^|\.)(img_in|x_embedder)\.weight$", "a whole backbone"),
)


def check_plain(weights: Mapping[str, StoredTensor], where: str) -> None:
    """Raise UserError, in which `where` names the file, for weights that are stored quantised and cannot be
    dequantised here. Plain 8-bit floats are plain weights."""
    for pattern, program in _QUANTISED:
        found = sorted(name for name in weights if pattern.search(name))
        if found:
            fix = (
                "use a GGUF file, or plain weights: those of a folder can be quantised while they are loaded"
            )
            raise UserError(f"{where} is quantised by {program} ({found[0]})", fix)
    for name, tensor in weights.items():
        if name.endswith("weight") and len(tensor.shape) > 1 and tensor.dtype in _NO_FLOATS:
            what = f"{where} has {name} as {tensor.dtype}, which is not a plain floating-point weight"
            raise UserError(what, "use a plain safetensors file or a GGUF")


def kind_of(names: Mapping[str, StoredTensor], with_backbone: bool = False) -> str | None:
    """Return what weights are by their names ("a T5 text encoder", "an adapter"); None if that is unknown.

    With `with_backbone` the names of a FLUX backbone are among them, so that only kinds which contain these
    are considered (a ControlNet).
    """
    kinds = _WITH_BACKBONE if with_backbone else (*_WITH_BACKBONE, *_ALONE)
    return next((kind for pattern, kind in kinds if any(map(pattern.search, names))), None)
