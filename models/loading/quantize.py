"""Quantise weights while they are loaded, by diffusers and transformers.

It applies to the backbone and the large text encoder; a VAE and CLIP are small and would lose quality.
"""

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
"""Classes whose linears are quantised."""

MOVABLE = frozenset({"nf4"})
"""Quantisations whose weights can be moved off the GPU after they were quantised there."""


def is_large(component: str) -> bool:
    """Whether a component, named as `library:Class`, can be quantised."""
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
class Quantization:
    """A method of quantisation: its package, whether it requires a GPU, and its configuration."""

    package: str
    gpu: bool
    config: Callable[[Any, torch.dtype], Any]


KINDS: Mapping[str, Quantization] = {
    "nf4": Quantization("bitsandbytes", True, _nf4),
    "int8": Quantization("bitsandbytes", True, _int8),
    "int8wo": Quantization("torchao", False, _int8_weights),
    "float8wo": Quantization("torchao", False, _float8_weights),
}
"""nf4: 4 bits; int8: 8 bits, outliers apart; int8wo, float8wo: 8-bit weights alone, computed in the dtype."""


def check_name(kind: str) -> None:
    """Raise UserError for an unknown quantisation."""
    if kind not in KINDS:
        raise unknown("quantisation", kind, KINDS)


def check(kind: str, device: torch.device) -> None:
    """Raise UserError for an unknown quantisation, a missing package, or a device that it does not run on."""
    check_name(kind)
    check_installed(KINDS[kind].package, f"quantisation '{kind}'")
    if KINDS[kind].gpu and device.type == "cpu":
        others = ", ".join(name for name, other in KINDS.items() if not other.gpu)
        raise UserError(f"quantisation '{kind}' requires a GPU", f"on a CPU use one of {others}, or none")


def options(kind: str, library: Any, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """Return the keyword arguments of `from_pretrained`; `library` is diffusers or transformers.

    Weights are quantised on `device`: not every quantisation allows them to be moved later.
    """
    # diffusers takes a device map that is not a string for offloading, and then quantises nothing
    return {"quantization_config": KINDS[kind].config(library, dtype), "device_map": str(device)}


def check_quantised(part: Any, kind: str) -> None:
    """Raise UserError if no weight of a module was quantised: the libraries silently skip what they cannot
    do."""
    import torch

    linears = [module for module in part.modules() if isinstance(module, torch.nn.Linear)]
    plain = (torch.nn.Parameter, torch.Tensor)
    if all(type(linear.weight) in plain and linear.weight.is_floating_point() for linear in linears):
        raise UserError(
            f"no weight of the {type(part).__name__} was quantised to {kind}",
            "the installed versions do not work together: leave out the quantisation",
        )
