"""From a folder or a hub id to modules in memory: each component alone, or a whole pipeline."""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uhr.base.errors import UserError, unknown
from uhr.base.files import sha256_file
from uhr.models.hub import INDEX, Source
from uhr.models.quiet import quiet_loading
from uhr.models.registry import get, match, names
from uhr.models.spec import ModelSpec

if TYPE_CHECKING:
    import torch

    from uhr.models.text import ChatEncoder, TextEncoders

DTYPES = ("float32", "bfloat16", "float16")
TEXT_COMPONENTS = ("tokenizer", "text_encoder", "tokenizer_2", "text_encoder_2")


@dataclass(frozen=True)
class Model:
    """A model whose files are here and whose spec is known; nothing of it is loaded."""

    source: Source
    folder: Path
    spec: ModelSpec

    @property
    def revision(self) -> str | None:
        """The hub's commit (the snapshot's folder is named after it); None for a folder of the user's own."""
        return self.folder.name if self.source.repository else None


def open_model(model: str | Path, spec: str | None = None, components: Collection[str] = ()) -> Model:
    """Find a model and recognise it. The named components of a hub repository are fetched, nothing else.

    `spec` overrides what the configuration says.
    """
    if str(model) in names() and not Path(model).is_dir():
        known = get(str(model))
        what = (
            f"give a folder, or its hub id {known.hub_id}"
            if known.hub_id
            else "make one: `uhr models make-tiny DIR`"
        )
        raise UserError(f"'{model}' is the name of a spec, not of weights", what)
    source = Source.parse(model)
    folder = source.fetch(components)
    return Model(source, folder, get(spec) if spec else recognise(folder))


def recognise(path: str | Path) -> ModelSpec:
    """The spec of a diffusers folder, from `model_index.json` and `transformer/config.json`."""
    folder = Path(path)
    index = _read_json(folder / INDEX, f"{folder} is no diffusers checkpoint")
    config = _read_json(folder / "transformer" / "config.json", f"{folder} has no transformer")
    return match(index, config, where=str(folder))


def _read_json(path: Path, what: str) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        fix = f"expected {path.name} there, as `save_pretrained` writes it"
        raise UserError(f"{what} (no {path})", fix) from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error})", "mend or download it again") from error


def pick_dtype(dtype: str | torch.dtype) -> torch.dtype:
    import torch

    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in DTYPES:
        raise unknown("dtype", dtype, DTYPES)
    return getattr(torch, dtype)


def pick_device(device: str) -> torch.device:
    """`auto` is the first GPU if there is one, else the CPU."""
    import torch

    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise UserError(f"'{device}' is no device", "give auto, cpu, cuda or cuda:1") from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device '{device}' is not here: torch sees no GPU", "give --device cpu")
    return chosen


def load_component(
    model: str | Path | Model, name: str, dtype: str | torch.dtype = "float32", device: str = "cpu"
) -> Any:
    """One component by its folder name, in evaluation mode; a tokenizer or scheduler takes no dtype or
    device.

    Only safetensors are read, and a local folder never touches the network.
    """
    opened = model if isinstance(model, Model) else open_model(model, components=(name,))
    if name not in opened.spec.components:
        raise unknown("component", name, opened.spec.components, opened.spec.name)
    library, _, class_name = opened.spec.components[name].partition(":")
    cls = getattr(importlib.import_module(library), class_name)
    options: dict[str, Any] = {"local_files_only": True}
    module = hasattr(cls, "parameters")
    if module:
        options |= {"use_safetensors": True, _dtype_option(library): pick_dtype(dtype)}
    try:
        with quiet_loading():
            part = cls.from_pretrained(opened.folder / name, **options)
    except (OSError, ValueError, RuntimeError) as error:
        words = " ".join(str(error).split())
        raise UserError(
            f"{name} of {opened.source.text} cannot be loaded ({words})", "check its files"
        ) from error
    if name == "vae":
        from uhr.models.vae.f16 import restore

        restore(part)
    return part.eval().to(pick_device(device)) if module else part


def _dtype_option(library: str) -> str:
    return {"diffusers": "torch_dtype", "transformers": "dtype"}[library]


def load_transformer(
    model: str | Path | Model, dtype: str | torch.dtype = "float32", device: str = "cpu"
) -> Any:
    """The backbone alone (diffusers' own class), in evaluation mode."""
    return load_component(model, "transformer", dtype, device)


def empty_transformer(model: Model) -> Any:
    """The backbone's modules and shapes without any weights (meta device)."""
    import diffusers
    import torch

    cls = getattr(diffusers, model.spec.transformer_class)
    with torch.device("meta"):
        return cls.from_config(cls.load_config(model.folder / "transformer", local_files_only=True))


def load_vae(model: str | Path | Model, dtype: str | torch.dtype = "float32", device: str = "cpu") -> Any:
    """The VAE alone, in evaluation mode. float32 unless asked: encoders overflow in float16."""
    return load_component(model, "vae", dtype, device)


def load_text_encoders(
    model: str | Path | Model, dtype: str | torch.dtype = "float32", device: str = "cpu"
) -> TextEncoders | ChatEncoder:
    """A family's text encoders with their tokenizers: FLUX.1's for `text.encode_prompts`, FLUX.2's for
    `text.encode_chat`."""
    from uhr.models.text import ChatEncoder, TextEncoders

    opened = model if isinstance(model, Model) else open_model(model)
    names = [name for name in TEXT_COMPONENTS if name in opened.spec.components]
    if opened.source.repository:
        opened = open_model(opened.source.text, opened.spec.name, names)
    parts = {name: load_component(opened, name, dtype, device) for name in names}
    cls = {"flux1": TextEncoders, "flux2": ChatEncoder}[opened.spec.family]
    return cls(**parts, lengths=dict(opened.spec.text_lengths))


def load_pipeline(
    model: str | Path | Model,
    dtype: str | torch.dtype = "float32",
    device: str = "cpu",
    pipeline_class: type | None = None,
) -> Any:
    """A whole pipeline: the stock class of its spec, or `pipeline_class` (a sampler of ours, say)."""
    opened = model if isinstance(model, Model) else open_model(model)
    if opened.source.repository:
        opened = open_model(opened.source.text, opened.spec.name, opened.spec.components)
    cls = pipeline_class or getattr(importlib.import_module("diffusers"), opened.spec.pipeline_class)
    parts = {name: load_component(opened, name, dtype, device) for name in opened.spec.components}
    return cls(**parts, **opened.spec.pipeline_config)


def weights_hash(model: str | Path | Model, component: str) -> str:
    """SHA-256 (64 hex digits) over a component's safetensors files: sorted names and the hash of each one's
    bytes.

    A component without weights (a tokenizer, a scheduler) is hashed over all of its files.
    """
    opened = model if isinstance(model, Model) else open_model(model, components=(component,))
    folder = opened.folder / component
    files = sorted(folder.glob("*.safetensors")) or sorted(p for p in folder.glob("*") if p.is_file())
    if not files:
        raise UserError(f"{opened.source.text} has no component '{component}'", f"expected files in {folder}")
    total = hashlib.sha256()
    for file in files:
        total.update(f"{file.name} {sha256_file(file)}\n".encode())
    return total.hexdigest()
