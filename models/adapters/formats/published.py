"""Recognise published adapters by their keys: URAE's minor factors, and UltraGen's LoRA.

URAE's 2K LoRA and the LoRA of rank 48 that its converter makes of 2K and 4K are ordinary files in diffusers'
keys without alpha (alpha = rank); so is UltraGen's, which was trained on guide tokens alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from uhr.base.errors import UserError

if TYPE_CHECKING:
    import torch

    from uhr.models.adapters.low_rank import LowRank

_URAE_KEY = re.compile(
    r"((?:single_)?transformer_blocks\.\d+\.attn)\.processor\.(to_q|to_k|to_v|to_out)_(a|b)\.weight"
)

BLOCK = re.compile(r"(?P<kind>(?:single_)?transformer_blocks)\.\d+\.")

_QKV = ("attn.to_q", "attn.to_k", "attn.to_v")


def _linears(double: Iterable[str], single: Iterable[str]) -> frozenset[str]:
    inside = {f"transformer_blocks.{leaf}" for leaf in double}
    return frozenset({"x_embedder"} | inside | {f"single_transformer_blocks.{leaf}" for leaf in single})


ULTRAGEN = {
    "flux1": _linears(
        ("norm1.linear", *_QKV, "attn.to_out.0", "ff.net.2"), ("norm.linear", "proj_mlp", "proj_out", *_QKV)
    ),
    "flux2": _linears(
        (*_QKV, "attn.to_out.0", "ff.linear_in", "ff.linear_out"), ("attn.to_qkv_mlp_proj", "attn.to_out")
    ),
}
"""The linears that UltraGen's (Scale-DiT's) code adapts on a family of backbones, without block numbers."""


def is_ultragens(paths: Iterable[str]) -> bool:
    """Whether an adapter of these modules adapts exactly the linears of UltraGen's.

    Its published files have no other mark. They are the image and joint streams with their modulations and
    the embedder, without the text stream.
    """
    return {BLOCK.sub(r"\g<kind>.", path) for path in paths} in ULTRAGEN.values()


def is_urae_minor(state: Iterable[str]) -> bool:
    """Whether these are the keys of URAE's minor factors: parameters of attention processors."""
    return any(_URAE_KEY.fullmatch(key) for key in state)


def urae_factors(state: Mapping[str, torch.Tensor], where: str) -> dict[str, LowRank]:
    """Return the trained b_t a_t of URAE's 4K file by module, as `minor.load_minor` takes them.

    Its keys are `<block>.attn.processor.to_{q,k,v}_{a,b}.weight`, and `to_out_{a,b}` in double blocks.
    Raises UserError for any other key, and for factors that are missing or do not match.
    """
    from uhr.models.adapters.low_rank import LowRank

    found: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in state.items():
        match = _URAE_KEY.fullmatch(key)
        if match is None:
            raise UserError(f"adapter {where}: unknown key '{key}'", "is it URAE's minor adapter?")
        block, linear, factor = match.groups()
        found.setdefault(f"{block}.{linear.replace('to_out', 'to_out.0')}", {})[factor] = tensor
    for path, pair in found.items():
        if set(pair) != {"a", "b"} or pair["a"].shape[0] != pair["b"].shape[1]:
            what = f"adapter {where}: '{path}' lacks a factor, or their ranks differ"
            raise UserError(what, "download it again")
    return {path: LowRank(pair["a"], pair["b"], float(len(pair["a"]))) for path, pair in found.items()}
