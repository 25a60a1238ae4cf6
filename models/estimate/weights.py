"""Bytes of a component's weights when it is loaded in a dtype or quantised."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from uhr.models.loading.quantize import LARGE

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True)
class QuantizedSize:
    """The size of a quantised linear layer: bytes per element, and per row for its scales (None: one element
    of the dtype)."""

    element: float
    row: int | None


QUANTISED: Mapping[str, QuantizedSize] = {
    # 4 bits, and a float32 scale for each 64 elements
    "nf4": QuantizedSize(0.5 + 4 / 64, 0),
    "int8": QuantizedSize(1, 4),
    "int8wo": QuantizedSize(1, None),
    "float8wo": QuantizedSize(1, 4),
}
"""Sizes by the names of `quantize.KINDS`."""


@dataclass(frozen=True)
class WeightBytes:
    """Bytes of a component's weights: all of them, and its largest layer (which is on the device alone when
    weights are offloaded layer by layer)."""

    whole: int
    largest: int


def weight_bytes(part: nn.Module, dtype: torch.dtype, quantize: str | None = None) -> WeightBytes:
    """Count the bytes of a module's weights from its shapes, if it is loaded in `dtype` or quantised.

    The module may be on any device. Only the linear layers of the components in `quantize.LARGE` are
    quantised, except those that the libraries keep (T5's `wo`, an output embedding).
    """
    quantised = quantize is not None and type(part).__name__ in LARGE
    kept = _kept(part) if quantised else frozenset()
    sizes, seen = [0], set[int]()
    for name, module in part.named_modules():
        stored = QUANTISED[quantize or ""] if quantised and _is_quantised(name, module, kept) else None
        sizes.append(sum(_tensors(name, module, part, dtype, stored, seen)))
    return WeightBytes(sum(sizes), max(sizes))


def _tensors(
    name: str,
    module: nn.Module,
    part: nn.Module,
    dtype: torch.dtype,
    stored: QuantizedSize | None,
    seen: set[int],
) -> Iterator[int]:
    """Bytes of each of a module's own tensors; a shared one counts where it is first met."""
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
