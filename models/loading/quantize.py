"""Quantised weights while loading, through what diffusers and transformers offer: the backbone and the large
text encoder, nothing else (a VAE and CLIP are small, and lose by it)."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from uhr.base.errors import UserError, unknown
from uhr.models.files.containers import check_installed

if TYPE_CHECKING:
    import torch

LARGE = frozenset({"FluxTransformer2DModel", "Flux2Transformer2DModel", "T5EncoderModel", "Qwen3ForCausalLM"})
"""The classes whose linears are quantised."""

MOVABLE = frozenset({"nf4"})
"""Kinds whose weights may leave the GPU after they were quantised there."""


def is_large(component: str) -> bool:
    """Whether a component, named as `library:Class`, is quantised at all."""
    return component.partition(":")[2] in LARGE


def _nf4(library: Any, dtype: torch.dtype) -> Any:
    return library.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
    )


def _int8(library: Any, dtype: torch.dtype) -> Any:
    return library.BitsAndBytesConfig(load_in_8bit=True)


def _int8_weights(library: Any, dtype: torch.dtype) -> Any:
    return library.TorchAoConfig(importlib.import_module("torchao.quantization").Int8WeightOnlyConfig())


def _float8_weights(library: Any, dtype: torch.dtype) -> Any:
    return library.TorchAoConfig(importlib.import_module("torchao.quantization").Float8WeightOnlyConfig())


@dataclass(frozen=True)
class Kind:
    """One way to quantise: the package that does it, whether it wants a GPU, and its configuration."""

    package: str
    gpu: bool
    config: Callable[[Any, torch.dtype], Any]


KINDS: Mapping[str, Kind] = {
    "nf4": Kind("bitsandbytes", True, _nf4),
    "int8": Kind("bitsandbytes", True, _int8),
    "int8wo": Kind("torchao", False, _int8_weights),
    "float8wo": Kind("torchao", False, _float8_weights),
}
"""nf4: 4 bits; int8: 8 bits, outliers apart; int8wo, float8wo: 8-bit weights alone, computed in the dtype."""


def check(kind: str, device: torch.device) -> None:
    """UserError for an unknown kind, a package that is not installed, or a device that it does not run on."""
    if kind not in KINDS:
        raise unknown("quantisation", kind, KINDS)
    check_installed(KINDS[kind].package, f"quantisation '{kind}'")
    if KINDS[kind].gpu and device.type == "cpu":
        others = ", ".join(name for name, other in KINDS.items() if not other.gpu)
        raise UserError(f"quantisation '{kind}' wants a GPU", f"on a CPU take one of {others}, or none")


def options(kind: str, library: Any, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """Keyword arguments of `from_pretrained`; `library` is diffusers or transformers, whose class it is.

    Weights are quantised where they will stay: moving them later is not possible for every kind.
    """
    # a device map that is no word counts as offloading for diffusers, which then quantises nothing
    return {"quantization_config": KINDS[kind].config(library, dtype), "device_map": str(device)}


def check_quantised(part: Any, kind: str) -> None:
    """UserError where a module came back as it was: the libraries pass over what they cannot do."""
    import torch

    linears = [module for module in part.modules() if isinstance(module, torch.nn.Linear)]
    plain = (torch.nn.Parameter, torch.Tensor)
    if all(type(linear.weight) in plain and linear.weight.is_floating_point() for linear in linears):
        raise UserError(
            f"no weight of the {type(part).__name__} was quantised to {kind}",
            "the installed versions do not work together: leave out the quantisation",
        )
