"""Low-rank adapters through peft: add, read out, load, scale, merge and take the merge back.

An adapter adds (alpha / rank) B A to a frozen weight W [out, in], with A [rank, in] and B [out, rank]. Its
own weights stay in float32 whatever the backbone's dtype is: optimisers stall on half-precision masters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from uhr.base.errors import UserError

ADAPTER = "default"
"""Name of the adapter that training adds."""


@dataclass(frozen=True)
class LoraSpec:
    """A plain LoRA: `targets` are module suffixes (a spec's `lora_targets`), `alpha` is `rank` unless
    given."""

    rank: int
    targets: tuple[str, ...]
    alpha: float | None = None

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise UserError(f"LoRA rank {self.rank}", "give a rank of at least 1")
        if self.alpha is None:
            object.__setattr__(self, "alpha", float(self.rank))

    @property
    def scale(self) -> float:
        """The factor alpha / rank on B A."""
        assert self.alpha is not None
        return self.alpha / self.rank

    def peft_config(self) -> Any:
        from peft import LoraConfig

        return LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            target_modules=list(self.targets),
            init_lora_weights="gaussian",
        )


def add_lora(transformer: Any, lora: LoraSpec, seed: int, name: str = ADAPTER) -> list[torch.nn.Parameter]:
    """Freeze the backbone and put an adapter on it; the adapter's parameters, float32 and trainable.

    A is Gaussian (standard deviation 1 / rank) from `seed`, B is zero: the first output is the backbone's
    own. A target that no module ends in is a UserError.
    """
    suffixes = {suffix: f".{suffix}" for suffix in lora.targets}
    modules = [f".{path}" for path, _ in transformer.named_modules()]
    for suffix, ending in suffixes.items():
        if not any(path.endswith(ending) for path in modules):
            raise UserError(
                f"LoRA target '{suffix}' matches no module of the {type(transformer).__name__}", "drop it"
            )
    transformer.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer.add_adapter(lora.peft_config(), adapter_name=name)
    return _own_parameters(transformer, name)


def _own_parameters(transformer: Any, name: str) -> list[torch.nn.Parameter]:
    """The adapter's parameters in module order, made float32."""
    found = []
    for layer in _lora_layers(transformer):
        for weights in (layer.lora_A, layer.lora_B):
            if name in weights:
                weights[name].float()
                found += list(weights[name].parameters())
    return found


def _lora_layers(model: Any) -> list[Any]:
    from peft.tuners.lora import LoraLayer

    return [module for module in model.modules() if isinstance(module, LoraLayer)]


def lora_state(
    transformer: Any, name: str = ADAPTER, state_dict: Mapping[str, torch.Tensor] | None = None
) -> dict[str, torch.Tensor]:
    """The adapter's tensors on the CPU: `<module>.lora_A.weight` [rank, in], `<module>.lora_B.weight` [out,
    rank].

    `state_dict` stands in for the module's own where that is sharded: pass the gathered one.
    """
    from peft import get_peft_model_state_dict

    state = get_peft_model_state_dict(transformer, state_dict=state_dict, adapter_name=name)
    return {key: tensor.detach().cpu().clone() for key, tensor in state.items()}


def set_lora_state(transformer: Any, state: Mapping[str, torch.Tensor], name: str = ADAPTER) -> None:
    """Write what `lora_state` gave back into an adapter of the same shape; bit for bit, and nothing left
    out."""
    from peft import set_peft_model_state_dict

    expected = lora_state(transformer, name)
    assert set(state) == set(expected), sorted(set(state) ^ set(expected))[:4]
    set_peft_model_state_dict(transformer, dict(state), adapter_name=name)


@dataclass
class Loaded:
    """What a file put onto a model: under which adapter name, from where, and on how many modules."""

    name: str
    path: Path
    modules: int
    text_modules: int = 0
    ranks: tuple[int, ...] = field(default=())


def lora_file(path: str | Path) -> Path:
    """The safetensors file of an adapter: the file itself, or the only one in a folder; UserError
    otherwise."""
    path = Path(path).expanduser()
    if path.is_file():
        if path.suffix != ".safetensors":
            raise UserError(f"adapter {path} is no safetensors file", "convert it; pickles are never opened")
        return path
    if not path.is_dir():
        raise UserError(f"adapter {path} is not there", "name a .safetensors file or the folder of one")
    files = sorted(path.glob("*.safetensors"))
    if len(files) != 1:
        found = ", ".join(file.name for file in files) or "none"
        raise UserError(
            f"adapter folder {path} must hold one safetensors file (found: {found})", "name the file"
        )
    return files[0]


def load_lora(
    transformer: Any, path: str | Path, name: str, scale: float = 1.0, text_encoder: Any = None
) -> Loaded:
    """Put a LoRA file onto a model, `scale` times as strong as it was trained; whatever diffusers reads is
    read.

    Alpha comes from the file: its metadata, or its per-module tensors. Keys that match no module are an
    error: part of an adapter would be silently lost. Parts for CLIP go to `text_encoder`, and are an error
    without one.
    """
    from diffusers import FluxPipeline

    file = lora_file(path)
    try:
        state, alphas, metadata = FluxPipeline.lora_state_dict(
            str(file), return_alphas=True, return_lora_metadata=True, local_files_only=True
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise UserError(f"adapter {file} cannot be read ({_line(error)})", "is it a FLUX LoRA?") from error
    own = {key.removeprefix("transformer."): t for key, t in state.items() if key.startswith("transformer.")}
    text = {key: t for key, t in state.items() if key.startswith("text_encoder.")}
    strange = sorted(set(state) - set(text) - {f"transformer.{key}" for key in own})
    if strange or not own:
        raise UserError(
            f"adapter {file} is no FLUX LoRA", f"unknown key {strange[0]}" if strange else "it is empty"
        )
    if text and text_encoder is None:
        raise UserError(f"adapter {file} also changes CLIP", "load it into a whole pipeline")
    _check_fits(transformer, own, file)
    transformer.load_lora_adapter(
        {f"transformer.{key}": tensor for key, tensor in own.items()},
        network_alphas=alphas,
        adapter_name=name,
        metadata=metadata,
        prefix="transformer",
    )
    _own_parameters(transformer, name)
    set_scale(transformer, name, scale)
    if text:
        FluxPipeline.load_lora_into_text_encoder(
            state, alphas, text_encoder, lora_scale=scale, adapter_name=name, metadata=metadata
        )
    ranks = sorted({tensor.shape[0] for key, tensor in own.items() if key.endswith("lora_A.weight")})
    modules = sum(key.endswith("lora_A.weight") for key in own)
    return Loaded(name, file, modules, sum(key.endswith("lora_A.weight") for key in text), tuple(ranks))


def _check_fits(transformer: Any, state: Mapping[str, torch.Tensor], file: Path) -> None:
    """Every A and B must meet a module of its shape."""
    modules = dict(transformer.named_modules())
    for key, tensor in state.items():
        if ".lora_A." not in key and ".lora_B." not in key:
            continue
        path, _, part = key.partition(".lora_")
        module = modules.get(path)
        module = getattr(module, "base_layer", module)
        weight = getattr(module, "weight", None)
        if weight is None:
            raise UserError(f"adapter {file}: this model has no '{path}'", "it was made for another backbone")
        side, wants = (
            (tensor.shape[1], weight.shape[1]) if part.startswith("A") else (tensor.shape[0], weight.shape[0])
        )
        if side != wants:
            raise UserError(
                f"adapter {file}: '{path}' has width {wants} here and {side} in the file",
                "it was made for another backbone",
            )


def set_scale(transformer: Any, name: str, scale: float) -> None:
    """Make an adapter `scale` times as strong as it was trained (1 is as trained, 0 is off); others are left
    alone."""
    layers = [layer for layer in _lora_layers(transformer) if name in layer.lora_A]
    assert layers, f"no adapter '{name}'"
    for layer in layers:
        layer.set_scale(name, scale)


@dataclass
class Merged:
    """A model whose adapters are in its weights, and the weights they replaced (on the CPU)."""

    layers: list[tuple[Any, torch.Tensor]]

    def unmerge(self) -> None:
        """Put the former weights back, bit for bit; the adapters act beside them again."""
        for layer, former in self.layers:
            layer.get_base_layer().weight.data.copy_(former)
            layer.merged_adapters.clear()
        self.layers = []


@torch.no_grad()
def merge(transformer: Any) -> Merged:
    """Add the active adapters' scale * B A to the weights; they sleep until `unmerge`.

    The sum is taken in float32 and rounded once to the weight's dtype. Subtracting it again would not give
    the weight back in floating point, so the result holds the former weights.
    """
    kept = []
    for layer in _lora_layers(transformer):
        names = [name for name in layer.active_adapters if name in layer.lora_A]
        assert not layer.merged_adapters, "merged twice"
        if not names:
            continue
        weight = layer.get_base_layer().weight
        kept.append((layer, weight.detach().to("cpu", copy=True)))
        total = weight.float() + sum(layer.get_delta_weight(name).float() for name in names)
        weight.data.copy_(total)
        layer.merged_adapters.extend(names)
    return Merged(kept)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
