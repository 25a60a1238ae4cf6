"""Plain low-rank adapters through peft: add, read out, load, scale.

An adapter adds (alpha / rank) B A to a frozen weight W [out, in], with A [rank, in] and B [out, rank]. Its
own weights stay in float32 whatever the backbone's dtype is: optimisers stall on half-precision masters.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from uhr.base.errors import UserError
from uhr.models.adapters import peft_layers
from uhr.models.adapters.keys import layout_of
from uhr.models.hub import lora_file

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

        alpha: Any = self.alpha  # peft's annotation is too narrow
        return LoraConfig(
            r=self.rank,
            lora_alpha=alpha,
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
    for _, layer in peft_layers.all_layers(transformer):
        for weights in (layer.lora_A, layer.lora_B):
            if name in weights:
                weights[name].float()
                found += list(weights[name].parameters())
    return found


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


@dataclass(frozen=True)
class LoraFile:
    """A LoRA as it stands in a file: tensors with diffusers' keys, alphas by module, peft's settings."""

    file: Path
    state: dict[str, torch.Tensor]
    alphas: dict[str, float] | None
    metadata: dict[str, Any] | None

    @property
    def ranks(self) -> tuple[int, ...]:
        """The distinct ranks of its modules."""
        return tuple(sorted({t.shape[0] for key, t in self.state.items() if key.endswith("lora_A.weight")}))

    @property
    def changes_text_encoder(self) -> bool:
        return any(key.startswith("text_encoder.") for key in self.state)

    def check_fits(self, transformer: Any) -> None:
        """UserError unless every A and B meets a module of its shape; `transformer` may be on the meta
        device."""
        modules = dict(transformer.named_modules())
        for key, tensor in self.state.items():
            if not key.startswith("transformer.") or ".lora_" not in key:
                continue
            path, _, part = key.removeprefix("transformer.").partition(".lora_")
            module = modules.get(path)
            weight = getattr(getattr(module, "base_layer", module), "weight", None)
            fix = "it was made for another backbone"
            if weight is None:
                raise UserError(f"adapter {self.file}: this model has no '{path}'", fix)
            axis = 1 if part.startswith("A") else 0
            if tensor.shape[axis] != weight.shape[axis]:
                what = f"'{path}' has width {weight.shape[axis]} here and {tensor.shape[axis]} in the file"
                raise UserError(f"adapter {self.file}: {what}", fix)


def read_lora(path: str | Path, family: str = "flux1") -> LoraFile:
    """Read a LoRA file or the one in a folder: whatever diffusers reads for that family of backbones (its own
    keys, kohya's, for FLUX.1 XLabs')."""
    file = lora_file(path)
    try:
        state, alphas, metadata = _READERS[family](str(file))
    except (OSError, ValueError, RuntimeError, KeyError, AssertionError) as error:
        # the converter asserts FLUX.1-dev's widths without a word
        words = _line(error) or "its widths are not those of FLUX.1-dev"
        raise UserError(f"adapter {file} cannot be read ({words})", f"is it a {family} LoRA?") from error
    strange = sorted(key for key in state if key.partition(".")[0] not in ("transformer", "text_encoder"))
    if strange or not state:
        why = f"key {strange[0]}" if strange else "it is empty"
        raise UserError(f"adapter {file} is no {family} LoRA", why)
    return LoraFile(file, state, alphas, metadata)


def _read_flux1(file: str) -> tuple[dict[str, torch.Tensor], dict[str, float] | None, dict[str, Any] | None]:
    from diffusers import FluxPipeline

    return FluxPipeline.lora_state_dict(
        file, return_alphas=True, return_lora_metadata=True, local_files_only=True
    )


def _read_flux2(file: str) -> tuple[dict[str, torch.Tensor], dict[str, float] | None, dict[str, Any] | None]:
    from diffusers import Flux2KleinPipeline

    state, metadata = Flux2KleinPipeline.lora_state_dict(
        file, return_lora_metadata=True, local_files_only=True
    )
    return state, None, metadata


_READERS = {"flux1": _read_flux1, "flux2": _read_flux2}


def load_lora(target: Any, path: str | Path, name: str) -> LoraFile:
    """Put a LoRA file onto a pipeline or a bare transformer, under an adapter name of its own.

    Alpha comes from the file: its metadata, or its per-module tensors. Keys that match no module are an
    error: part of the adapter would be silently lost. So is a part for CLIP when `target` is a transformer.
    Scales are set by `activate`.
    """
    whole = hasattr(target, "transformer")
    transformer = target.transformer if whole else target
    lora = read_lora(path, layout_of(transformer).family)
    if lora.changes_text_encoder and not whole:
        raise UserError(f"adapter {lora.file} also changes CLIP", "load it into a whole pipeline")
    lora.check_fits(transformer)
    with warnings.catch_warnings():
        # several adapters on one model are what is wanted here
        warnings.filterwarnings("ignore", message="Already found a `peft_config` attribute")
        if lora.changes_text_encoder:
            target.load_lora_weights(str(lora.file), adapter_name=name, local_files_only=True)
        else:
            # a pipeline's own loader would complain of every file without a part for CLIP
            transformer.load_lora_adapter(
                dict(lora.state),
                network_alphas=lora.alphas,
                adapter_name=name,
                metadata=lora.metadata,
                prefix="transformer",
            )
    _own_parameters(transformer, name)
    return lora


def activate(target: Any, scales: Mapping[str, float]) -> None:
    """Let exactly these adapters act, each this many times as strong as it was trained (0 is off).

    `target` is a pipeline or a bare transformer.
    """
    target.set_adapters(list(scales), [float(scale) for scale in scales.values()])


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
