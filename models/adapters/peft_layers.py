"""Adapters in peft's layers: find, add, activate, replace their arithmetic, and remove them.

Every adapter of ours is in peft's own LoRA layers, like ordinary ones. So all of peft and diffusers works:
one `lora_A`, `lora_B` and scale per name, several names at once, quantised bases, the names that FSDP and
`state_dict` show, and diffusers' `set_adapters`, `disable_lora`, `fuse_lora` and loaders. If the arithmetic
is not (alpha / rank) B A x, the layer's `lora_variant` has an object that peft calls instead. That is peft's
own hook for DoRA and similar methods, but private: we use of it what `Variant` has, and a contract test
covers that.
"""

from __future__ import annotations

import contextlib
import re
import sys
import warnings
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Mapping
from typing import Any

import torch

from uhr.base.errors import UserError, unknown
from uhr.models.adapters.low_rank import Lora, LowRank


class Variant(ABC):
    """One adapter's arithmetic in one layer, with the methods that peft calls.

    It is not a subclass of peft's, so that importing this module does not import peft.
    """

    @abstractmethod
    def forward(
        self, module: Any, active_adapter: str, x: torch.Tensor, result: torch.Tensor, **kwargs: Any
    ) -> torch.Tensor:
        """Return `result` [.., out] plus the adapter's output for x [.., in], which has the adapter's
        dtype."""

    @abstractmethod
    def delta(self, module: Any, name: str) -> torch.Tensor:
        """Return the adapter's update of the weight: [out, in], scale included, float32 at least.

        Raises UserError if it is not an update of the weight.
        """

    @abstractmethod
    def low_rank(self, module: Any, name: str) -> LowRank:
        """Return the update as an ordinary LoRA, exactly. Raises UserError as `delta` does."""

    def supports_lora_conversion(self) -> bool:
        """Return False: peft's own conversion to an ordinary LoRA would be wrong, see `low_rank`."""
        return False

    def merge_safe(self, module: Any, active_adapter: str, orig_weight: torch.Tensor) -> torch.Tensor:
        """Return a new weight with the adapter merged, for `fuse_lora(safe_fusing=True)`."""
        return (orig_weight + self.delta(module, active_adapter)).to(orig_weight.dtype)

    def merge_unsafe(self, module: Any, active_adapter: str, orig_weight: torch.Tensor) -> None:
        """Merge the adapter in place, for `fuse_lora()`."""
        orig_weight.data.copy_(self.merge_safe(module, active_adapter, orig_weight.data))

    def unmerge(self, module: Any, active_adapter: str, orig_weight: torch.Tensor) -> torch.Tensor:
        """Subtract the adapter, for `unfuse_lora()`: exact up to rounding; `merging.merge` restores
        bitwise."""
        return (orig_weight - self.delta(module, active_adapter)).to(orig_weight.dtype)


def all_layers(model: Any) -> list[tuple[str, Any]]:
    """Return path and layer of all peft layers, in module order; none if peft is not imported."""
    if sys.modules.get("peft") is None:
        return []
    from peft.tuners.lora import LoraLayer

    return [(path, module) for path, module in model.named_modules() if isinstance(module, LoraLayer)]


def layers_of(model: Any, name: str) -> dict[str, Any]:
    """Return peft's layers with adapter `name`, by the module's path. Raises UserError if there is none."""
    found = {path: layer for path, layer in all_layers(model) if name in layer.lora_A}
    if not found:
        raise unknown("adapter", name, names(model))
    return found


def names(model: Any) -> list[str]:
    """Return the names of a model's adapters, active or not, sorted."""
    return sorted({name for _, layer in all_layers(model) for name in layer.lora_A})


def active(model: Any) -> list[str]:
    """Return the names of the active adapters, in the order in which they are added up."""
    acting = (
        name for _, layer in all_layers(model) for name in layer.active_adapters if name in layer.lora_A
    )
    return list(dict.fromkeys(acting))


def training(model: Any) -> list[str]:
    """Return the names of the active adapters whose weights get gradients."""
    return [name for name in active(model) if _trains(model, name)]


def activate(model: Any, acting: Iterable[str], train: Iterable[str] = ()) -> None:
    """Make exactly the adapters in `acting` active; of them only those in `train` get gradients.

    This undoes that peft deactivates all others when one is added, and lets all active ones train.
    """
    acting, train = list(acting), set(train)
    assert train <= set(acting), f"{train} train and are not active"
    for _, layer in all_layers(model):
        layer.set_adapter(acting)
        for name, weights in [*layer.lora_A.items(), *layer.lora_B.items()]:
            weights.requires_grad_(name in train)


@contextlib.contextmanager
def disabled(model: Any, name: str) -> Generator[None]:
    """Leave adapter `name` out in a `with` block; the other active ones act as before.

    Only names in plain attributes change: no parameter, no `requires_grad`, so that it works on a sharded
    model and between a forward and its backward pass.
    """
    changed = [
        (layer, layer._active_adapter) for _, layer in all_layers(model) if name in layer.active_adapters
    ]
    try:
        for layer, _ in changed:
            layer._active_adapter = [other for other in layer.active_adapters if other != name]
        yield
    finally:
        for layer, before in changed:
            layer._active_adapter = before


@contextlib.contextmanager
def several_adapters() -> Generator[None]:
    """Suppress peft's warning about a second adapter on a model, which is intended here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")
        yield


def check_unmerged(model: Any) -> None:
    """Raise UserError if adapters are merged: peft would remove them by subtraction, which is not exact."""
    if any(layer.merged_adapters for _, layer in all_layers(model)):
        raise UserError("adapters are merged into this model", "unmerge them first")


def attach(layers: Mapping[str, Any], name: str, variant: Variant) -> None:
    """Set the arithmetic of adapter `name` in these layers."""
    for path, layer in layers.items():
        assert name not in layer.lora_variant, f"'{name}' already has a variant at {path}"
        layer.lora_variant[name] = variant


def variant_of(layer: Any, name: str) -> Variant | None:
    """Return the adapter's variant in a layer; None for an ordinary LoRA."""
    return layer.lora_variant.get(name)


def variants(model: Any) -> list[Variant]:
    """Return the variants of all adapters in all layers."""
    return [variant for _, layer in all_layers(model) for variant in layer.lora_variant.values()]


def delta_weight(layer: Any, name: str) -> torch.Tensor:
    """Return an adapter's update of a layer's weight at its present scale: [out, in], float32 at least."""
    variant = variant_of(layer, name)
    if variant is not None:
        return variant.delta(layer, name)
    a, b = layer.lora_A[name].weight, layer.lora_B[name].weight
    dtype = torch.promote_types(a.dtype, torch.float32)
    return (b.to(dtype) @ a.to(dtype)) * layer.scaling[name]


def low_rank(layer: Any, name: str) -> LowRank:
    """Return a layer's adapter as an ordinary LoRA at its present scale; tensors are shared, not copied."""
    variant = variant_of(layer, name)
    return ordinary(layer, name) if variant is None else variant.low_rank(layer, name)


def ordinary(layer: Any, name: str) -> LowRank:
    """The same of an adapter whose arithmetic is (alpha / rank) B A x."""
    a, b = layer.lora_A[name].weight.detach(), layer.lora_B[name].weight.detach()
    return LowRank(a, b, layer.scaling[name] * a.shape[0])


def linear_of(module: Any) -> Any:
    """Return the frozen linear of a module: the module itself, or the one inside peft's layer."""
    return getattr(module, "base_layer", module)


def base_weight(layer: Any) -> torch.Tensor:
    """Return a layer's frozen weight, [out, in], dequantised, float32 at least.

    Raises UserError if it cannot be dequantised.
    """
    base = layer.get_base_layer()
    weight = _dequantised(base)
    if not weight.is_floating_point() or tuple(weight.shape) != (layer.out_features, layer.in_features):
        what = (
            f"a weight of {type(base).__name__} cannot be dequantised ({weight.dtype}, {tuple(weight.shape)})"
        )
        raise UserError(what, "load the transformer in bfloat16 or float32")
    weight = weight.detach()
    return weight.to(torch.promote_types(weight.dtype, torch.float32))


def _dequantised(base: Any) -> torch.Tensor:
    kind = type(base.weight).__name__
    if kind == "Int8Params":
        # peft's function removes the row scales from the module if it is on the CPU
        scales = base.state.SCB if base.weight.SCB is None else base.weight.SCB
        return base.weight.data.float() * scales.float()[:, None] / 127
    if kind == "GGUFParameter":
        from diffusers.quantizers.gguf.utils import dequantize_gguf_tensor

        return dequantize_gguf_tensor(base.weight)
    from peft.utils.integrations import dequantize_module_weight

    return dequantize_module_weight(base)


def put(
    model: Any, lora: Lora, name: str, where: str, scale: float = 1.0, dtype: torch.dtype = torch.float32
) -> None:
    """Add an adapter's values to the model under a new name, `scale` times as strong and frozen.

    Active adapters stay active. Exactly the modules of `lora` are adapted. torch's random state does not
    change. Raises UserError, in which `where` names the adapter, for a module that the model lacks or has in
    another shape.
    """
    from peft import LoraConfig, inject_adapter_in_model

    check_unmerged(model)
    check_fits(model, lora, where)
    if name in names(model):
        raise UserError(f"adapter name '{name}' is taken on this model", f"taken: {', '.join(names(model))}")
    acting, trained = active(model), training(model)
    config = LoraConfig(
        target_modules="|".join(re.escape(path) for path in lora),
        rank_pattern={f"^{re.escape(path)}": part.rank for path, part in lora.items()},
        alpha_pattern={f"^{re.escape(path)}": part.alpha for path, part in lora.items()},
        init_lora_weights=False,
    )
    with several_adapters():
        inject_adapter_in_model(config, model, name, low_cpu_mem_usage=True)
    model._hf_peft_config_loaded = True  # diffusers' own loader sets it, and its methods require it
    for path, layer in layers_of(model, name).items():
        device = layer.get_base_layer().weight.device
        layer.lora_A[name].weight = torch.nn.Parameter(lora[path].a.to(device, dtype, copy=True))
        layer.lora_B[name].weight = torch.nn.Parameter(lora[path].b.to(device, dtype, copy=True))
        layer.set_scale(name, scale)
    activate(model, [*acting, name], trained)


def check_fits(model: Any, lora: Lora, where: str) -> None:
    """Raise UserError, in which `where` names the adapter, unless the model has all its modules and
    shapes."""
    modules = dict(model.named_modules())
    for path, part in lora.items():
        layer = modules.get(path)
        shape = (getattr(layer, "out_features", None), getattr(layer, "in_features", None))
        if layer is None or shape != part.features:
            has = "has no such linear" if None in shape else f"has {shape[0]} x {shape[1]} there"
            what = f"adapter {where}: '{path}' is {part.features[0]} x {part.features[1]}, this model {has}"
            raise UserError(what, "it was made for another backbone")


def remove(model: Any, name: str) -> None:
    """Remove an adapter; without any, the model has its plain linears and former `state_dict` again."""
    layers_of(model, name)
    rest = [other for other in active(model) if other != name]
    trained = [other for other in training(model) if other != name]
    model.delete_adapters(name)
    if names(model):
        activate(model, rest, trained)
    else:
        model.unload_lora()


def _trains(model: Any, name: str) -> bool:
    weights = (layer.lora_A[name] for layer in layers_of(model, name).values())
    return any(parameter.requires_grad for linear in weights for parameter in linear.parameters())
