"""Load modules from a folder or a hub id: a single component, or a whole pipeline."""

from __future__ import annotations

import importlib
import resource
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uhr.base.console import Advance
from uhr.base.errors import UserError, unknown
from uhr.base.files import user_path
from uhr.models.files.folders import under_usual_names, variant_of
from uhr.models.loading.checks import load_whole
from uhr.models.loading.hashes import config_of
from uhr.models.loading.offload import check as check_offload
from uhr.models.loading.offload import offload as put_offload
from uhr.models.loading.opening import Model, open_model
from uhr.models.loading.quantize import LARGE, MOVABLE, check_quantised, is_large
from uhr.models.loading.quantize import check as check_quantize
from uhr.models.loading.quantize import options as quantize_options
from uhr.models.loading.single_file import load_single_file
from uhr.models.specs.registry import FAMILY_SPECS

if TYPE_CHECKING:
    import torch

    from uhr.models.families.text import TextEncoders
    from uhr.models.ops.latents import Normalisation, PatchNormalisation

DTYPES = ("float32", "bfloat16", "float16")


def pick_dtype(dtype: str | torch.dtype) -> torch.dtype:
    import torch

    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in DTYPES:
        raise unknown("dtype", dtype, DTYPES)
    return getattr(torch, dtype)


def pick_device(device: str) -> torch.device:
    """Return the device of that name; `auto` is the first GPU if there is one, else the CPU.

    Raises UserError for an invalid name, or a GPU that is not available.
    """
    import torch

    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise UserError(f"'{device}' is not a device", "give auto, cpu, cuda or cuda:1") from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device '{device}' is not available: torch finds no GPU", give={"device": "cpu"})
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        what = f"device '{device}' is not available: torch finds {count}, counted from 0"
        raise UserError(what, give={"device": "cuda"})
    return chosen


def peak_memory(device: torch.device) -> int:
    """Return the peak of memory in bytes: of a GPU since its last reset, otherwise of this process so far."""
    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def load_component(
    model: str | Path | Model,
    name: str,
    dtype: str | torch.dtype = "float32",
    device: str = "cpu",
    *,
    quantize: str | None = None,
    weights: str | Path | None = None,
) -> Any:
    """Load one component by its folder name, in evaluation mode.

    Only safetensors (or GGUF) are read, and a local folder never uses the network. A tokenizer or scheduler
    ignores `dtype` and `device`.

    Args:
        quantize: a name of `quantize.KINDS`, for the backbone and the large text encoder; other components
            are not quantised.
        weights: another place for the component's weights: a folder of its own (with a config.json), or a
            single file of BFL's, ComfyUI's or GGUF.
    """
    opened = model if isinstance(model, Model) else open_model(model, components=(name,))
    weights = opened.weights.get(name) if weights is None else weights
    if name not in opened.spec.components:
        raise unknown("component", name, opened.spec.components, opened.spec.name)
    library_name, _, class_name = opened.spec.components[name].partition(":")
    library = importlib.import_module(library_name)
    cls = getattr(library, class_name)
    if not hasattr(cls, "parameters"):
        return _without_weights(cls, opened, name)
    torch_dtype, place = pick_dtype(dtype), pick_device(device)
    options = {"use_safetensors": True, _DTYPE_OPTION[library_name]: torch_dtype}
    quantised = quantize is not None and class_name in LARGE
    if quantize is not None and quantised:
        check_quantize(quantize, place)
        options |= quantize_options(quantize, library, torch_dtype, place)
    source = opened.folder / name if weights is None else user_path(weights)
    if source.is_file():
        if quantised:
            raise UserError(f"{name} from a single file cannot be quantised", f"leave out {quantize}")
        changes = opened.changes(name) if source == opened.backbone else {}
        part = load_single_file(cls, name, source, opened.folder, torch_dtype, place, changes)
    else:
        where = f"{name} of {opened.source.text}" if weights is None else f"{name} in {source}"
        _check_stored(source, where)
        usual = _WEIGHTS[library_name]
        variant = variant_of(source, usual)
        with under_usual_names(source, usual) as folder:
            part = load_whole(cls, folder, where, options | ({"variant": variant} if variant else {}))
    if quantize is not None and quantised:
        check_quantised(part, quantize)
    if name == "vae":
        from uhr.models.vae.f16 import restore

        restore(part)
    return part.eval() if quantised else part.eval().to(place)


def _check_stored(folder: Path, where: str) -> None:
    """Raise UserError for weights that were stored quantised by bitsandbytes, on a machine without a GPU,
    where they fail to load or at the first call."""
    import torch

    stored = config_of(folder).get("quantization_config")
    method = stored.get("quant_method") if isinstance(stored, dict) else None
    if method == "bitsandbytes" and not torch.cuda.is_available():
        what = f"{where} is stored quantised by {method}, which requires a GPU"
        raise UserError(what, "use the plain weights, or a GGUF file")


def _without_weights(cls: Any, model: Model, name: str) -> Any:
    """Load a tokenizer or the scheduler."""
    where = f"{name} of {model.source.text}"
    part = load_whole(cls, model.folder / name, where)
    if name == "tokenizer" and FAMILY_SPECS[model.spec.family].chat_template and not part.chat_template:
        raise UserError(f"{where} lacks chat_template.jinja", "download it again")
    return part


_DTYPE_OPTION = {"diffusers": "torch_dtype", "transformers": "dtype"}
_WEIGHTS = {"diffusers": "diffusion_pytorch_model.safetensors", "transformers": "model.safetensors"}
"""Each library's name of a component's only file of weights."""


def load_transformer(
    model: str | Path | Model, dtype: str | torch.dtype = "float32", device: str = "cpu"
) -> Any:
    """Load the backbone (diffusers' own class), in evaluation mode."""
    return load_component(model, "transformer", dtype, device)


def empty_transformer(model: Model) -> Any:
    """Build the backbone's modules on the meta device, with shapes and without weights."""
    import diffusers
    import torch

    cls = getattr(diffusers, model.spec.transformer_class)
    config = cls.load_config(model.config_folder("transformer"), local_files_only=True)
    with torch.device("meta"):
        return cls.from_config({**config, **model.changes("transformer")})


def load_vae(model: str | Path | Model, dtype: str | torch.dtype = "float32", device: str = "cpu") -> Any:
    """Load the VAE, in evaluation mode; by default in float32, since encoders overflow in float16."""
    return load_component(model, "vae", dtype, device)


def load_text_encoders(
    model: str | Path | Model, dtype: str | torch.dtype = "float32", device: str = "cpu"
) -> TextEncoders:
    """Load a model's text encoders with their tokenizers, for the family's `Backbone.embed`.

    Raises UserError if CLIP's tokenizer has another length than the spec.
    """
    opened = model if isinstance(model, Model) else open_model(model)
    opened = opened.fetched(opened.spec.text_components)
    parts = {name: load_component(opened, name, dtype, device) for name in opened.spec.text_components}
    length, clip = opened.spec.text_lengths.get("clip"), parts["tokenizer"].model_max_length
    if length is not None and clip != length:
        # samplers pad to the tokenizer's own length, as the stock pipeline does, and these to the spec's
        what = f"tokenizer of {opened.source.text} has model_max_length {clip}, and {opened.spec.name} reads"
        raise UserError(f"{what} {length}", "correct its tokenizer_config.json")
    return _text_encoders(opened, parts)


def load_tokenizers(model: Model) -> TextEncoders | None:
    """Load the tokenizers alone, which is enough to count tokens.

    Nothing is fetched: None if a tokenizer's files are not on this machine.
    """
    names = model.spec.text_components
    tokenizers = [name for name in names if name.startswith("tokenizer")]
    if not all((model.folder / name).is_dir() for name in tokenizers):
        return None
    return _text_encoders(
        model, {name: load_component(model, name) if name in tokenizers else None for name in names}
    )


def _text_encoders(model: Model, parts: Mapping[str, Any]) -> TextEncoders:
    from uhr.models.families.text import TextEncoders

    return TextEncoders(**parts, lengths=dict(model.spec.text_lengths))


def load_pipeline(
    model: str | Path | Model,
    dtype: str | torch.dtype = "float32",
    device: str = "cpu",
    pipeline_class: type | None = None,
    *,
    quantize: str | None = None,
    offload: str | None = None,
    weights: Mapping[str, str | Path] | None = None,
    park: bool = False,
    advance: Advance | None = None,
) -> Any:
    """Load a whole pipeline.

    Args:
        pipeline_class: its class, such as a sampler of ours; by default the stock class of its spec.
        quantize, weights: as in `load_component`; `weights` by component.
        offload: model, group or sequential: keep the weights in the CPU's memory. A caller that adds adapters
            offloads after that itself.
        park: move each component back to the CPU once it was quantised on the device, if that is possible
            (`quantize.MOVABLE`), so that the device never needs the memory of two.
        advance: `advance(n, note, total)` is called for every component that is loaded.
    """
    opened = model if isinstance(model, Model) else open_model(model)
    place, weights = pick_device(device), {**opened.weights, **(weights or {})}
    strange = sorted(set(weights) - set(opened.spec.components))
    if strange:
        raise unknown("component", strange[0], opened.spec.components, opened.spec.name)
    opened = opened.fetched(opened.spec.components, weights)
    kind = None if offload is None else check_offload(offload, place)
    cls = pipeline_class or getattr(importlib.import_module("diffusers"), opened.spec.pipeline_class)
    resting = device if kind is None and not park else "cpu"
    parts: dict[str, Any] = {}
    for name in opened.spec.components:
        if advance is not None:
            advance(0, note=name, total=len(opened.spec.components))
        quantised = quantize is not None and is_large(opened.spec.components[name])
        parts[name] = load_component(
            opened,
            name,
            dtype,
            # weights are quantised on the GPU, and the offload takes them from there
            device if quantised or (quantize is not None and not park) else resting,
            quantize=quantize,
            weights=weights.get(name),
        )
        if park and quantised and quantize in MOVABLE:
            parts[name].to("cpu")
        if advance is not None:
            advance(1, note="")
    pipeline = cls(**parts, **opened.spec.pipeline_config)
    if kind is not None:
        put_offload(pipeline, kind, place)
    return pipeline


def load_normalisation(model: Model) -> Normalisation | PatchNormalisation:
    """Return the normalisation of a model's VAE, between raw and model latents.

    The weights are read only if they contain the statistics, as FLUX.2's do.
    """
    from uhr.models.ops.latents import Normalisation, PatchNormalisation

    if model.spec.components["vae"].endswith(":AutoencoderKLFlux2"):
        return PatchNormalisation.of(load_vae(model))
    return Normalisation.of(config_of(model.folder / "vae"))
