"""A model folder in diffusers' layout, made of the files of a ComfyUI installation.

The backbone stays where it is: it is a lone file, and the folder made here is its base. Text encoders are
links to their files, whose tensors have the names of transformers' classes already; the VAE, which has other
names, is converted. Configurations are the published ones of the spec, or those of a base model that the user
names; tokenizers are those of ComfyUI's own code, or the base's.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from uhr.base.errors import UserError, unknown
from uhr.base.files import saving, user_cache, user_path, write_json
from uhr.models.files.containers import stored_tensors
from uhr.models.files.write import save_tensors
from uhr.models.loading.comfyui.installation import Installation
from uhr.models.loading.comfyui.selection import Selection, select
from uhr.models.loading.hashes import file_state
from uhr.models.loading.opening import Model, ModelName, is_backbone, open_model
from uhr.models.loading.single_file import load_single_file
from uhr.models.loading.source import INDEX
from uhr.models.ops.choices import ShiftPolicy
from uhr.models.specs.spec import ModelSpec

CACHE = "comfyui"
"""The folder in the user's cache where the assembled folders are."""

TOKENIZERS = {"CLIPTokenizer": "comfy/sd1_tokenizer", "T5TokenizerFast": "comfy/text_encoders/t5_tokenizer"}
"""Tokenizers in ComfyUI's code. That of Qwen3 there has no chat template, which FLUX.2's prompts need."""

_SHIFT = {"base_image_seq_len": 256, "max_image_seq_len": 4096, "base_shift": 0.5, "max_shift": 1.15}
_LEFT_OUT = ("logit_scale", "text_projection.weight", "spiece_model")
"""Tensors of text encoders that FLUX does not use."""

_VERSION = 2


@dataclasses.dataclass(frozen=True)
class Assembled:
    """A model as `open_model` takes it, and what was chosen, a line each."""

    name: ModelName
    lines: tuple[str, ...]


def assemble(comfyui: Path, model: str | None, base: str | None = None, spec: str | None = None) -> Assembled:
    """Find a model's files in a ComfyUI installation, and make the folder that provides its other parts.

    Args:
        model: the name of the backbone there; None if there is only one of a FLUX.
        base: a model's folder or hub id, for configurations and tokenizers (its weights are not fetched).
        spec: the model's spec, where several have the same backbone.

    Raises:
        UserError: if something is missing or ambiguous; it lists all that is.
    """
    place = Installation.open(comfyui)
    if model is not None and user_path(model).is_dir():
        raise UserError(
            f"--model {model} is a folder", "name a file in the installation, or leave out --comfyui"
        )
    given = None if base is None else _opened_base(base)
    widths = {} if given is None else _widths(given)
    found = select(place, model, spec, widths)
    if given is not None and given.spec.family != found.spec.family:
        what = f"--base {base} is {given.spec.name}, and {found.backbone} is {found.spec.name}"
        raise UserError(what, f"name a model of {found.spec.name}")
    configs = _configs(found.spec, given, str(comfyui))
    tokenizers = _tokenizers(place, found.spec, given)
    lacking = [*found.missing.values(), *(text for text in tokenizers.values() if isinstance(text, str))]
    if lacking:
        what = f"{place.root} lacks for {found.spec.name}: {'; '.join(lacking)}"
        raise UserError(what, "put it there, or leave out --comfyui and name a whole model")
    folders = {name: path for name, path in tokenizers.items() if isinstance(path, Path)}
    folder = _made(found, configs, folders)
    named = ModelName(str(found.backbone), found.spec.name if spec is not None else None, str(folder))
    return Assembled(named, tuple(_lines(found, folders, folder)))


def _lines(found: Selection, tokenizers: Mapping[str, Path], folder: Path) -> list[str]:
    chosen = {"backbone": found.backbone, **found.files}
    lines = [f"{name}: {path}" for name, path in chosen.items()]
    for name, others in found.others.items():
        if others:
            lines.append(f"{name}: {', '.join(others)} would fit as well")
    lines += [f"{name}: {path}" for name, path in tokenizers.items()]
    return [*lines, f"{found.spec.name}, assembled in {folder}"]


def _opened_base(base: str) -> Model:
    if is_backbone(user_path(base)):
        raise UserError(f"--base {base} is a backbone alone", "name a whole model's folder or hub id")
    opened = open_model(base)
    tokenizers = [name for name in opened.spec.components if name.startswith("tokenizer")]
    texts = [name for name in opened.spec.components if name.startswith("text_encoder")]
    if opened.source.repository is None:
        return opened
    return dataclasses.replace(opened, folder=opened.source.fetch(tokenizers, texts))


def _widths(base: Model) -> dict[str, int]:
    """The width of each text encoder of a base model."""
    found = {}
    for name in base.spec.components:
        if name.startswith("text_encoder"):
            config = _json(base.folder / name / "config.json")
            found[name] = config.get("d_model") or config.get("hidden_size")
    return {name: width for name, width in found.items() if width}


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({type(error).__name__})", "download it again") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} is not a configuration", "download it again")
    return found


def _configs(spec: ModelSpec, base: Model | None, where: str) -> dict[str, dict[str, Any]]:
    """The configuration of every component with weights, and of the scheduler."""
    names = [name for name in spec.components if not name.startswith(("tokenizer", "scheduler"))]
    if base is not None:
        found = {name: _json(base.folder / name / "config.json") for name in names}
        return {**found, "scheduler": _json(base.folder / "scheduler" / "scheduler_config.json")}
    if not spec.configs:
        what = f"{where}: no published configuration is known of {spec.name}"
        raise UserError(what, "name a model that has one", give={"base": "DIR"})
    found = {name: _published(spec, name) for name in names}
    return {**found, "scheduler": scheduler_config(spec)}


def _published(spec: ModelSpec, component: str) -> dict[str, Any]:
    library, _, cls = spec.components[component].partition(":")
    values = dict(spec.configs.get(component, {}))
    if component == "transformer":
        values = {**values, **spec.transformer_config}
    if library == "diffusers":
        return {"_class_name": cls, **values}
    config = getattr(importlib.import_module(library), cls).config_class(**values).to_dict()
    return {**config, "architectures": [cls]}


def scheduler_config(spec: ModelSpec) -> dict[str, Any]:
    """Return the published configuration of a model's scheduler."""
    dynamic = spec.shift is ShiftPolicy.DYNAMIC
    return {
        "_class_name": spec.components["scheduler"].partition(":")[2],
        "num_train_timesteps": 1000,
        "shift": 3.0 if dynamic else 1.0,
        "use_dynamic_shifting": dynamic,
        **_SHIFT,
    }


def _tokenizers(place: Installation, spec: ModelSpec, base: Model | None) -> dict[str, Path | str]:
    """The folder of each tokenizer, or in words what is missing."""
    found: dict[str, Path | str] = {}
    for name, named in spec.components.items():
        if not name.startswith("tokenizer"):
            continue
        cls = named.partition(":")[2]
        if base is not None:
            found[name] = base.folder / name
        elif cls not in TOKENIZERS:
            found[name] = (
                f"{cls} with a chat template, which ComfyUI does not have (--base {spec.hub_id} has it)"
            )
        elif not (folder := place.root / TOKENIZERS[cls]).is_dir():
            found[name] = f"{TOKENIZERS[cls]}, a part of ComfyUI's code (or --base {spec.hub_id})"
        else:
            found[name] = folder
    return found


def _made(found: Selection, configs: Mapping[str, Mapping[str, Any]], tokenizers: Mapping[str, Path]) -> Path:
    """The assembled folder, made if these files have none yet."""
    parts: list[Any] = [_VERSION, found.spec.name, configs]
    for name, path in sorted(found.files.items()):
        parts.append([name, str(path.resolve()), str(file_state(path))])
    for name, path in sorted(tokenizers.items()):
        files = sorted(file for file in path.rglob("*") if file.is_file())
        parts.append([name, [[file.name, hashlib.sha256(file.read_bytes()).hexdigest()] for file in files]])
    key = hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]
    folder = user_cache(CACHE) / f"{found.spec.name}-{key}"
    if (folder / INDEX).is_file():
        return folder
    with saving(folder, "free space there, or set XDG_CACHE_HOME"):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".new-", dir=folder.parent) as temporary:
            staging = Path(temporary) / "model"
            _write(found, configs, tokenizers, staging)
            if not folder.exists():
                staging.rename(folder)
    return folder


def _write(
    found: Selection, configs: Mapping[str, Mapping[str, Any]], tokenizers: Mapping[str, Path], folder: Path
) -> None:
    for name, config in configs.items():
        (folder / name).mkdir(parents=True)
        write_json(
            folder / name / ("scheduler_config.json" if name == "scheduler" else "config.json"), config
        )
    for name, path in tokenizers.items():
        shutil.copytree(path, folder / name, copy_function=shutil.copyfile)
        _set_length(folder / name / "tokenizer_config.json", found.spec, name)
    for name, path in found.files.items():
        if name == "vae":
            _write_vae(found.spec, path, folder)
        else:
            _put_text_encoder(path, folder / name / "model.safetensors")
    named = {name: text.split(":") for name, text in found.spec.components.items()}
    index = {"_class_name": found.spec.pipeline_class, **named, **found.spec.pipeline_config}
    write_json(folder / INDEX, index)


def _set_length(file: Path, spec: ModelSpec, tokenizer: str) -> None:
    """Have CLIP's tokenizer cut texts where the model does: ComfyUI's has 8192 tokens, and cuts elsewhere."""
    if spec.components[tokenizer].endswith(":CLIPTokenizer"):
        write_json(file, {**_json(file), "model_max_length": spec.text_lengths["clip"]})


def _put_text_encoder(file: Path, to: Path) -> None:
    """Link a text encoder, or copy it without what FLUX does not use."""
    extra = [name for name in stored_tensors(file) if name in _LEFT_OUT]
    if not extra:
        to.symlink_to(file.resolve())
        return
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:
        kept = {key: opened.get_tensor(key) for key in opened.keys() if key not in extra}  # noqa: SIM118
    save_tensors(kept, to, {"format": "pt"})


def _write_vae(spec: ModelSpec, file: Path, folder: Path) -> None:
    """Write a VAE in diffusers' names, in the dtype of its file."""
    import torch

    library, _, name = spec.components["vae"].partition(":")
    dtypes = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
    stored = {tensor.dtype for tensor in stored_tensors(file).values()} & dtypes.keys()
    dtype = dtypes[min(stored, key=list(dtypes).index)] if stored else torch.float32
    cls = getattr(importlib.import_module(library), name, None)
    if cls is None:
        raise unknown("class of a VAE", name, (), "diffusers")
    vae = load_single_file(cls, "vae", file, folder, dtype, torch.device("cpu"))
    state = {key: value.contiguous() for key, value in vae.state_dict().items()}
    save_tensors(state, folder / "vae" / "diffusion_pytorch_model.safetensors", {"format": "pt"})
