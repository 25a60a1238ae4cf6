"""Bytes of a component's weights as it is loaded: in a dtype, or quantised by a library."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from uhr.models.loading.quantize import LARGE

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True)
class Stored:
    """A quantised linear layer's weight: bytes an element, and a row (None: those of one element of the
    dtype) for its scales."""

    element: float
    row: int | None


QUANTISED: Mapping[str, Stored] = {
    # 4 bits, and a float32 scale for each 64 elements
    "nf4": Stored(0.5 + 4 / 64, 0),
    "int8": Stored(1, 4),
    "int8wo": Stored(1, None),
    "float8wo": Stored(1, 4),
}
"""By the names of `quantize.KINDS`."""


@dataclass(frozen=True)
class WeightBytes:
    """A component's weights: all of them, and its largest layer (what is on the device at a time where
    weights come layer by layer)."""

    whole: int
    largest: int


def weight_bytes(part: nn.Module, dtype: torch.dtype, quantize: str | None = None) -> WeightBytes:
    """Of a module of any device, by its shapes, if it is loaded in `dtype` or quantised.

    Only the components of `quantize.LARGE` are quantised, and of those the linear layers alone, but for the
    ones that the libraries keep (T5's `wo`, an output embedding).
    """
    quantised = quantize is not None and type(part).__name__ in LARGE
    kept = _kept(part) if quantised else frozenset()
    sizes, seen = [0], set[int]()
    for name, module in part.named_modules():
        stored = QUANTISED[quantize or ""] if quantised and _is_quantised(name, module, kept) else None
        sizes.append(sum(_tensors(name, module, part, dtype, stored, seen)))
    return WeightBytes(sum(sizes), max(sizes))


def _tensors(
    name: str, module: nn.Module, part: nn.Module, dtype: torch.dtype, stored: Stored | None, seen: set[int]
) -> Iterator[int]:
    """Bytes of each tensor of a module's own; one that is shared counts where it is first met."""
    import torch

    for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
        if id(tensor) in seen:
            continue
        seen.add(id(tensor))
        size = dtype.itemsize if tensor.is_floating_point() else tensor.element_size()
        if stored is not None and tensor.ndim == 2:
            rows = len(tensor) * (size if stored.row is None else stored.row)
            yield round(tensor.numel() * stored.element) + rows
        elif dtype == torch.float16 and _in(name, getattr(part, "_keep_in_fp32_modules", None) or ()):
            yield 4 * tensor.numel()
        else:
            yield size * tensor.numel()


def _kept(part: Any) -> frozenset[str]:
    """Names of the linear layers that a text encoder keeps as they are."""
    names = set(getattr(part, "_keep_in_fp32_modules", None) or ())
    head = part.get_output_embeddings() if hasattr(part, "get_output_embeddings") else None
    names |= {name for name, module in part.named_modules() if head is not None and module is head}
    return frozenset(names)


def _is_quantised(name: str, module: nn.Module, kept: frozenset[str]) -> bool:
    from torch import nn

    return isinstance(module, nn.Linear) and not _in(name, kept)


def _in(name: str, names: Any) -> bool:
    """Whether a module's name has one of these among its parts."""
    return any(each == name or each in name.split(".") for each in names)
