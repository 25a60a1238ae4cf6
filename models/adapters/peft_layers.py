"""Adapters inside peft's layers: which layers have one, several at once, other arithmetic, removal.

Every adapter of ours lives in peft's own LoRA layers, beside ordinary ones: one `lora_A`, `lora_B` and scale
per name, several names at once, quantised bases, the names that FSDP and `state_dict` show, and diffusers'
`set_adapters`, `disable_lora`, `fuse_lora` and loaders, which know nothing of ours. Where the arithmetic is
not (alpha / rank) B A x, the layer's `lora_variant` holds an object that peft calls instead. That is peft's
own hook for DoRA and its kin, but private: `Variant` is all that we use of it, and a contract test holds it.
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
    """One adapter's arithmetic in one layer, with the methods that peft calls. Not a peft subclass: importing
    this imports no peft."""

    @abstractmethod
    def forward(
        self, module: Any, active_adapter: str, x: torch.Tensor, result: torch.Tensor, **kwargs: Any
    ) -> torch.Tensor:
        """`result` [.., out] with the adapter's part of x [.., in] added; x comes in the adapter's dtype."""

    @abstractmethod
    def delta(self, module: Any, name: str) -> torch.Tensor:
        """What the adapter adds to the weight: [out, in], scale included, float32 at least.

        UserError where it adds nothing that a weight can hold.
        """

    @abstractmethod
    def low_rank(self, module: Any, name: str) -> LowRank:
        """The same as an ordinary LoRA, exactly; UserError likewise."""

    def supports_lora_conversion(self) -> bool:
        """Whether peft may convert it to an ordinary LoRA by its own means: never, see `low_rank`."""
        return False

    def merge_safe(self, module: Any, active_adapter: str, orig_weight: torch.Tensor) -> torch.Tensor:
        """`fuse_lora(safe_fusing=True)`: a new weight with the adapter in it."""
        return (orig_weight + self.delta(module, active_adapter)).to(orig_weight.dtype)

    def merge_unsafe(self, module: Any, active_adapter: str, orig_weight: torch.Tensor) -> None:
        """`fuse_lora()`: the same in place."""
        orig_weight.data.copy_(self.merge_safe(module, active_adapter, orig_weight.data))

    def unmerge(self, module: Any, active_adapter: str, orig_weight: torch.Tensor) -> torch.Tensor:
        """`unfuse_lora()`: subtracted again, so only up to rounding; `merging.merge` restores bitwise."""
        return (orig_weight - self.delta(module, active_adapter)).to(orig_weight.dtype)


def all_layers(model: Any) -> list[tuple[str, Any]]:
    """(path, layer) of peft's layers that can hold adapters, in module order; none where peft is not even
    loaded, or not installed."""
    if sys.modules.get("peft") is None:
        return []
    from peft.tuners.lora import LoraLayer

    return [(path, module) for path, module in model.named_modules() if isinstance(module, LoraLayer)]


def layers_of(model: Any, name: str) -> dict[str, Any]:
    """peft's layers that hold adapter `name`, by the module's path; UserError if none does."""
    found = {path: layer for path, layer in all_layers(model) if name in layer.lora_A}
    if not found:
        raise unknown("adapter", name, names(model))
    return found


def names(model: Any) -> list[str]:
    """The adapters that a model carries, sorted; active or not."""
    return sorted({name for _, layer in all_layers(model) for name in layer.lora_A})


def active(model: Any) -> list[str]:
    """The adapters that act, in the order in which they are added up."""
    acting = (
        name for _, layer in all_layers(model) for name in layer.active_adapters if name in layer.lora_A
    )
    return list(dict.fromkeys(acting))


def training(model: Any) -> list[str]:
    """The acting adapters whose weights get gradients."""
    return [name for name in active(model) if _trains(model, name)]


def activate(model: Any, acting: Iterable[str], train: Iterable[str] = ()) -> None:
    """Let exactly these adapters act; of them only those in `train` get gradients.

    peft silences all others whenever one is added, and lets all active ones train.
    """
    acting, train = list(acting), set(train)
    assert train <= set(acting), f"{train} train and do not act"
    for _, layer in all_layers(model):
        layer.set_adapter(acting)
        for name, weights in [*layer.lora_A.items(), *layer.lora_B.items()]:
            weights.requires_grad_(name in train)


@contextlib.contextmanager
def several_adapters() -> Generator[None]:
    """Within it peft does not warn of a second adapter on a model: it is what is meant."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")
        yield


def check_unmerged(model: Any) -> None:
    """UserError where adapters are merged: peft would take them out by subtraction, which is not exact."""
    if any(layer.merged_adapters for _, layer in all_layers(model)):
        raise UserError("adapters are merged into this model", "unmerge them first")


def attach(layers: Mapping[str, Any], name: str, variant: Variant) -> None:
    """Give adapter `name` another arithmetic in these layers."""
    for path, layer in layers.items():
        assert name not in layer.lora_variant, f"'{name}' has an arithmetic of its own at {path}"
        layer.lora_variant[name] = variant


def variant_of(layer: Any, name: str) -> Variant | None:
    """The adapter's own arithmetic in a layer; None for an ordinary LoRA."""
    return layer.lora_variant.get(name)


def variants(model: Any) -> list[Variant]:
    """Every arithmetic of its own that some adapter has in some layer."""
    return [variant for _, layer in all_layers(model) for variant in layer.lora_variant.values()]


def delta_weight(layer: Any, name: str) -> torch.Tensor:
    """What an adapter adds to a layer's weight at its present scale: [out, in], float32 at least."""
    variant = variant_of(layer, name)
    if variant is not None:
        return variant.delta(layer, name)
    a, b = layer.lora_A[name].weight, layer.lora_B[name].weight
    dtype = torch.promote_types(a.dtype, torch.float32)
    return (b.to(dtype) @ a.to(dtype)) * layer.scaling[name]


def low_rank(layer: Any, name: str) -> LowRank:
    """An adapter of a layer as an ordinary LoRA at its present scale; its tensors are shared, not copied."""
    variant = variant_of(layer, name)
    if variant is not None:
        return variant.low_rank(layer, name)
    a, b = layer.lora_A[name].weight.detach(), layer.lora_B[name].weight.detach()
    return LowRank(a, b, layer.scaling[name] * a.shape[0])


def base_weight(layer: Any) -> torch.Tensor:
    """The frozen weight under a layer's adapters, [out, in], float32 at least; dequantised where need be."""
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
        # by hand: peft's way takes the row scales off the module when it is on the CPU
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
    """Put an adapter's values on the model under a new name, `scale` times as strong and frozen.

    Adapters that act go on acting. Exactly the modules of `lora` are adapted; one that the model lacks, or of
    another shape, is a UserError in which `where` names the adapter. torch's random state is left alone.
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
    model._hf_peft_config_loaded = True  # what diffusers' own loader sets, and all its methods ask for
    for path, layer in layers_of(model, name).items():
        device = layer.get_base_layer().weight.device
        layer.lora_A[name].weight = torch.nn.Parameter(lora[path].a.to(device, dtype, copy=True))
        layer.lora_B[name].weight = torch.nn.Parameter(lora[path].b.to(device, dtype, copy=True))
        layer.set_scale(name, scale)
    activate(model, [*acting, name], trained)


def check_fits(model: Any, lora: Lora, where: str) -> None:
    """UserError, in which `where` names the adapter, unless the model has every module of it in its shape."""
    modules = dict(model.named_modules())
    for path, part in lora.items():
        layer = modules.get(path)
        shape = (getattr(layer, "out_features", None), getattr(layer, "in_features", None))
        if layer is None or shape != part.features:
            has = "has no such linear" if None in shape else f"has {shape[0]} x {shape[1]} there"
            what = f"adapter {where}: '{path}' is {part.features[0]} x {part.features[1]}, this model {has}"
            raise UserError(what, "it was made for another backbone")


def remove(model: Any, name: str) -> None:
    """Take an adapter off; with the last one the plain linears are back, and `state_dict` is as it was."""
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
