"""URAE's adapters of singular components, in the exact difference form.

    y = W x + s (b_t (a_t x) - b_0 (a_0 x))

a_t [rank, in] and b_t [out, rank] are trained and start as a_0 and b_0, the smallest ("minor") or largest
("major") singular components of W, which are kept as frozen copies. The paper (section 2.3, eq. 5 and 6) and
its code set the weight to W - b_0 a_0 and add b_t a_t; that is the same function, but a bfloat16 weight
rounds the residual back to W (b_0 a_0 is below half a unit in the last place of most entries), and the minor
part is counted twice. Here W is never changed: the start is exact in any dtype, quantised weights work, and
the teacher is the model with the adapter disabled. There is no alpha / rank; s is 1 in training.

URAE's "major" in its 2K recipe is an ordinary LoRA (`plain.LoraSpec`), and so are its 2K weights.
`components="major"` is the same construction as minor with the largest components.

It is one adapter of peft's (see `peft_layers.py`): a_t and b_t are its `lora_A` and `lora_B`, a_0 and b_0 are
buffers `start` of these, so that `plain.lora_state` and any checkpoint contain all four.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from uhr.base.console import progress
from uhr.base.errors import UserError, unknown
from uhr.models.adapters import peft_layers
from uhr.models.adapters.components import Factors, Which, cached
from uhr.models.adapters.low_rank import Lora, LowRank
from uhr.models.adapters.peft_layers import Variant
from uhr.models.adapters.plain import ADAPTER, LoraSpec, add_lora

START = "start"
"""Name of the frozen copy of a trained `weight`."""


@dataclass(frozen=True)
class MinorSpec:
    """The components to train and their linears: `targets` are module suffixes (of `lora_target_sets`)."""

    rank: int
    targets: tuple[str, ...]
    components: Which = "minor"


class Difference(Variant):
    """The update s (b_t a_t - b_0 a_0).

    Both halves go through the same operations in the same dtype, so that equal factors cancel exactly.
    """

    def forward(
        self, module: Any, active_adapter: str, x: torch.Tensor, result: torch.Tensor, **kwargs: Any
    ) -> torch.Tensor:
        a, b = module.lora_A[active_adapter], module.lora_B[active_adapter]
        start = F.linear(F.linear(x, a.start.to(a.weight.dtype)), b.start.to(b.weight.dtype))
        return result + (b(a(x)) - start) * module.scaling[active_adapter]

    def delta(self, module: Any, name: str) -> torch.Tensor:
        a, b = module.lora_A[name], module.lora_B[name]
        dtype = torch.promote_types(a.weight.dtype, torch.float32)
        now = b.weight.detach().to(dtype) @ a.weight.detach().to(dtype)
        return (now - b.start.to(dtype) @ a.start.to(dtype)) * module.scaling[name]

    def low_rank(self, module: Any, name: str) -> LowRank:
        a, b = module.lora_A[name], module.lora_B[name]
        trained = Factors(a.weight.detach(), b.weight.detach())
        return difference(trained, Factors(a.start, b.start)).scaled(module.scaling[name])


def difference(trained: Factors, start: Factors) -> LowRank:
    """Return b_t a_t - b_0 a_0 as one LoRA of twice the rank and scale 1.

    The order is that of URAE's own converter: A = [-a_0; a_t], B = [b_0, b_t].
    """
    a = torch.cat([-start.a.to(trained.a.dtype), trained.a])
    b = torch.cat([start.b.to(trained.b.dtype), trained.b], dim=1)
    return LowRank(a, b, alpha=float(a.shape[0]))


def add_minor(
    transformer: Any,
    spec: MinorSpec,
    cache: Path | None,
    name: str = ADAPTER,
    over: Iterable[str] = (),
    device: torch.device | str | None = None,
) -> list[torch.nn.Parameter]:
    """Freeze the backbone, add an adapter, and return its parameters a_t, b_t, float32 and trainable.

    The model's output stays the same, bit for bit. Adapters that are active stay so, and are not trained.
    Raises UserError for an adapter in `over` that is not active, and for adapters merged into the weights.

    Args:
        name: the adapter's name in peft.
        cache: the folder of decompositions (`components.py`); None caches none.
        over: adapters on the model that count as part of W, at their present scale (URAE's 4K adapter is
            trained on top of its 2K LoRA).
        device: where to decompose; None is the weight's device.

    A model on the meta device gets the structure alone.
    """
    peft_layers.check_unmerged(transformer)
    acting, over = peft_layers.active(transformer), _check_over(transformer, over)
    with peft_layers.several_adapters():
        own = add_lora(transformer, LoraSpec(spec.rank, spec.targets), seed=0, name=name)
    layers = peft_layers.layers_of(transformer, name)
    try:
        starts = _starts(layers, spec.rank, spec.components, cache, over, device)
    except BaseException:
        peft_layers.remove(transformer, name)
        raise
    for path, layer in layers.items():
        if path in starts:
            with torch.no_grad():
                layer.lora_A[name].weight.copy_(starts[path].a)
                layer.lora_B[name].weight.copy_(starts[path].b)
    _attach(layers, name, starts)
    peft_layers.activate(transformer, [*acting, name], train=[name])
    return own


def load_minor(
    transformer: Any,
    trained: Lora,
    name: str,
    cache: Path | None,
    over: Iterable[str] = (),
    device: torch.device | str | None = None,
) -> None:
    """Add published factors a_t, b_t to the model (`published.urae_factors` reads URAE's file).

    a_0 and b_0 are decomposed again, from the weights and adapters that the factors were trained on: `over`
    must name the same. `cache`, `device`: as for `add_minor`. The adapter is frozen; active adapters stay
    active.
    """
    over = _check_over(transformer, over)
    _check_loaded(transformer, trained, name)
    peft_layers.put(transformer, trained, name, f"'{name}'")
    layers = peft_layers.layers_of(transformer, name)
    ranks = {part.rank for part in trained.values()}
    assert len(ranks) == 1, f"ranks {ranks}"
    try:
        starts = _starts(layers, ranks.pop(), "minor", cache, over, device)
    except BaseException:
        peft_layers.remove(transformer, name)
        raise
    _attach(layers, name, starts)


def _check_loaded(transformer: Any, trained: Lora, name: str) -> None:
    """Raise UserError if weights are offloaded: they cannot be decomposed, and the values would be lost.

    A model that is on the meta device as a whole, without accelerate's hooks, has no values to lose.
    """
    modules = dict(transformer.named_modules())
    hooked = any(hasattr(module, "_hf_hook") for module in modules.values())
    if not hooked and all(parameter.is_meta for parameter in transformer.parameters()):
        return
    for path in trained:
        linear = peft_layers.linear_of(modules[path]) if path in modules else None
        if linear is not None and linear.weight.is_meta:
            what = f"adapter '{name}' needs the weight of {path}, which is offloaded from memory"
            raise UserError(what, "load the adapter before the model is offloaded")


def state_factors(state: Mapping[str, torch.Tensor]) -> tuple[dict[str, Factors], dict[str, Factors]]:
    """Return the trained and the start factors by module, from the tensors of `plain.lora_state`."""
    paths = list(dict.fromkeys(key.partition(".lora_")[0] for key in state))
    trained, starts = (
        {path: Factors(state[f"{path}.lora_A.{part}"], state[f"{path}.lora_B.{part}"]) for path in paths}
        for part in ("weight", START)
    )
    return trained, starts


def _starts(
    layers: Mapping[str, Any],
    rank: int,
    components: Which,
    cache: Path | None,
    over: Iterable[str],
    device: torch.device | str | None,
) -> dict[str, Factors]:
    """Return the components of every layer's weight; none for a model on the meta device."""
    if any(layer.get_base_layer().weight.is_meta for layer in layers.values()):
        return {}
    starts = {}
    with progress(f"{components} components", len(layers), "linears") as advance:
        for path, layer in layers.items():
            weight = peft_layers.base_weight(layer)
            for other in over:
                if other in layer.lora_A:
                    weight = weight + peft_layers.delta_weight(layer, other)
            starts[path], found = cached(weight.to(device or weight.device), rank, components, cache)
            advance(note="from the cache" if found else "")
    return starts


def _attach(layers: Mapping[str, Any], name: str, starts: Mapping[str, Factors]) -> None:
    """Register the frozen factors as buffers of the trained ones, and let peft call `Difference`."""
    for path, layer in layers.items():
        a, b = layer.lora_A[name], layer.lora_B[name]
        start = starts.get(path, Factors(a.weight.detach().clone(), b.weight.detach().clone()))
        a.register_buffer(START, start.a.to(a.weight.device, torch.float32))
        b.register_buffer(START, start.b.to(b.weight.device, torch.float32))
    peft_layers.attach(layers, name, Difference())


def _check_over(transformer: Any, over: Iterable[str]) -> tuple[str, ...]:
    acting, over = peft_layers.active(transformer), tuple(over)
    for name in over:
        if name not in acting:
            raise unknown("active adapter", name, acting)
    return over
