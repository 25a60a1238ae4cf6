"""Which files of an installation a model consists of, by their tensors' names and shapes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from uhr.base.errors import UserError
from uhr.models.files.containers import StoredTensor, part_of, stored_tensors
from uhr.models.files.kinds import check_plain
from uhr.models.loading.comfyui.installation import Installation
from uhr.models.loading.file_spec import candidates
from uhr.models.specs.registry import get
from uhr.models.specs.spec import ModelSpec

_MARKS = {
    "CLIPTextModel": "text_model.embeddings.token_embedding.weight",
    "T5EncoderModel": "shared.weight",
    "Qwen3ForCausalLM": "model.embed_tokens.weight",
}
"""A weight [vocabulary, width] that each class of text encoders has under this name in ComfyUI's files."""

_BLOCK = {
    "CLIPTextModel": r"text_model\.encoder\.layers\.(\d+)\.",
    "T5EncoderModel": r"encoder\.block\.(\d+)\.",
    "Qwen3ForCausalLM": r"model\.layers\.(\d+)\.",
}

_LARGEST = {"F32": 0, "BF16": 1, "F16": 2}
"""The order of preference among equal files: 8-bit floats are less precise."""


@dataclass(frozen=True)
class Selection:
    """The files of a model. `files` has the text encoders and the VAE by component; `others` the files that
    would fit as well, by component; `missing` what each missing component is, in words."""

    backbone: Path
    spec: ModelSpec
    files: Mapping[str, Path]
    others: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)


def select(place: Installation, model: str | None, spec: str | None, shapes: Mapping[str, int]) -> Selection:
    """Choose the files of a model.

    Args:
        model: the backbone's name in the installation; None if there is only one of a FLUX.
        spec: the model's spec, where several have the same backbone.
        shapes: by component the width that it must have: of a text encoder's embeddings, or a VAE's latent
            channels. Empty where the spec's published configuration has it.

    Raises:
        UserError: for a backbone that does not exist or is ambiguous.
    """
    backbone = _backbone(place, model)
    known = _spec(backbone, spec)
    files: dict[str, Path] = {}
    others: dict[str, tuple[str, ...]] = {}
    missing: dict[str, str] = {}
    for component, named in known.components.items():
        kind = named.partition(":")[2]
        if component == "vae":
            fitting = _vaes(place, known.latent_channels)
        elif kind in _MARKS:
            fitting = _text_encoders(place, kind, shapes.get(component, _published(known, component)))
        else:
            continue
        if not fitting:
            folder = "vae" if component == "vae" else "text_encoders"
            missing[component] = f"{_called(kind)} in models/{folder}"
            continue
        (name, files[component]), *rest = fitting.items()
        if component == "vae" and rest and not _is_flux(name):
            found = ", ".join(fitting)
            what = f"{place.root} has several VAEs of {known.latent_channels} latent channels ({found})"
            raise UserError(what, "rename the right one to ae.safetensors, or keep only that one there")
        others[component] = tuple(each for each, _ in rest)
    return Selection(backbone, known, files, others, missing)


def _backbone(place: Installation, model: str | None) -> Path:
    if model is not None:
        for kind in ("diffusion_models", "checkpoints"):
            if (found := place.named(kind, model)) is not None:
                return found
    files = {**place.files("checkpoints"), **place.files("diffusion_models")}
    usable = {name: path for name, path in files.items() if _is_backbone(path)}
    known = ", ".join(usable) or "none"
    if model is not None:
        raise UserError(f"{place.root} has no model called {model}", f"its FLUX models: {known}")
    if len(usable) != 1:
        what = f"{place.root} has {len(usable) or 'no'} FLUX models" + (f" ({known})" if usable else "")
        fix = "name one: --model NAME" if usable else "put one into models/diffusion_models"
        raise UserError(what, fix)
    return next(iter(usable.values()))


def _is_backbone(path: Path) -> bool:
    try:
        return bool(candidates(path))
    except UserError:
        return False


def _spec(backbone: Path, name: str | None) -> ModelSpec:
    if name is not None:
        return get(name)
    found = candidates(backbone)
    if len(found) > 1:
        names = " or ".join(each.name for each in found)
        raise UserError(f"{backbone} may be {names}: the files are alike", f"--spec {found[0].name}")
    return found[0]


def _published(spec: ModelSpec, component: str) -> int | None:
    config = spec.configs.get(component, {})
    return config.get("d_model") or config.get("hidden_size")


def _text_encoders(place: Installation, kind: str, width: int | None) -> dict[str, Path]:
    """The text encoders of a class with this width (any if None), the most precise first."""
    found = {}
    for name, path in place.files("text_encoders").items():
        tensors = _plain_tensors(path)
        mark = tensors.get(_MARKS[kind])
        whole = mark is not None and any(re.match(_BLOCK[kind], key) for key in tensors)
        if mark is not None and whole and width in (None, mark.shape[1]):
            found[name] = (_LARGEST.get(_main_dtype(tensors), 3), name, path)
    return {name: path for _, name, path in sorted(found.values())}


def _vaes(place: Installation, channels: int) -> dict[str, Path]:
    """The VAEs with this number of latent channels, those whose name says FLUX first."""
    found = {}
    for name, path in place.files("vae").items():
        tensors = _plain_tensors(path)
        inside = {key: tensor for key, (_, tensor) in part_of(tensors, "vae").items()}
        first = inside.get("decoder.conv_in.weight")
        if first is not None and "encoder.conv_in.weight" in inside and first.shape[1] == channels:
            found[name] = (not _is_flux(name), name, path)
    return {name: path for _, name, path in sorted(found.values())}


def _is_flux(name: str) -> bool:
    stem = Path(name).stem.lower()
    return stem == "ae" or "flux" in stem


def _plain_tensors(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a file that can be loaded: none of a GGUF, a damaged or a quantised one."""
    if path.suffix.lower() == ".gguf":
        return {}
    try:
        tensors = stored_tensors(path)
        check_plain(tensors, str(path))
    except UserError:
        return {}
    return tensors


def _main_dtype(tensors: Mapping[str, StoredTensor]) -> str:
    return max(tensors.values(), key=lambda each: each.shape[0] * each.shape[-1] if each.shape else 0).dtype


def _called(kind: str) -> str:
    return {
        "CLIPTextModel": "CLIP-L (clip_l.safetensors)",
        "T5EncoderModel": "T5-XXL (t5xxl_fp16.safetensors or t5xxl_fp8_e4m3fn.safetensors)",
        "Qwen3ForCausalLM": "Qwen3 (qwen_3_4b.safetensors or qwen_3_8b.safetensors)",
    }.get(kind, "the VAE (ae.safetensors)")
