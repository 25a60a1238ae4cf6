"""Check that weights that replace a model's own fit the model, without reading them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from uhr.base.errors import UserError, one_line
from uhr.models.files.containers import part_of, stored_tensors
from uhr.models.files.kinds import check_plain, kind_of
from uhr.models.loading.file_spec import candidates
from uhr.models.specs.spec import ModelSpec

INTERFACE = ("in_channels", "joint_attention_dim", "pooled_projection_dim", "guidance_embeds")
"""Values of a backbone's configuration that the rest of the pipeline must match; the blocks may differ."""

VAE_INPUT = "decoder.conv_in.weight"
"""The suffix of this weight's name in every file; its second dimension is the number of latent channels."""


def check_weights(component: str, path: Path, spec: ModelSpec, spec_given: bool = False) -> None:
    """Raise UserError unless the transformer or VAE at `path` (its own folder or a single file) fits the
    spec.

    If the user named the spec (`spec_given`), the backbone's geometry is not compared.
    """
    if path.is_dir():
        _check_folder(component, path, spec, spec_given)
    elif component == "vae":
        _check_vae(path, spec)
    elif not spec_given and spec not in (found := candidates(path)):
        what = f"--transformer {path} is a backbone of {found[0].name}, and the model is {spec.name}"
        raise UserError(what, f"name one of {spec.name}")


def _check_folder(component: str, folder: Path, spec: ModelSpec, spec_given: bool) -> None:
    config = _config(component, folder)
    expected: dict[str, Any] = {"_class_name": spec.components[component].partition(":")[2]}
    if component == "vae":
        expected["latent_channels"] = spec.latent_channels
    elif not spec_given:
        known: Mapping[str, Any] = spec.transformer_config
        expected |= {name: known[name] for name in INTERFACE if name in known}
    for name, value in expected.items():
        # what a configuration leaves out is its class's default
        if (found := config.get(name, value)) != value:
            what = f"--{component} {folder} has {name.strip('_')} {found}, and {spec.name} has {value}"
            raise UserError(what, f"name a {component} of {spec.name}")


def _config(component: str, folder: Path) -> dict[str, Any]:
    file = folder / "config.json"
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        what = f"--{component} {folder} has no config.json"
        raise UserError(what, f"name the {component}'s own folder, or a file of its weights") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read ({one_line(error)})", "fix or download it again") from error
    if not isinstance(found, dict):
        raise UserError(f"{file} is not a configuration", "download it again")
    return found


def _check_vae(file: Path, spec: ModelSpec) -> None:
    weights = {name: tensor for name, (_, tensor) in part_of(stored_tensors(file), "vae").items()}
    check_plain(weights, f"--vae {file}")
    inputs = [tensor.shape for name, tensor in weights.items() if name.endswith(VAE_INPUT)]
    if not inputs:
        kind = kind_of(weights)
        what = f"--vae {file} is not a VAE" + (f" but {kind}" if kind else "")
        raise UserError(what, f"name one of {spec.name}")
    channels = inputs[0][1]
    if channels != spec.latent_channels:
        what = f"--vae {file} has {channels} latent channels, and {spec.name} has {spec.latent_channels}"
        raise UserError(what, f"name a VAE of {spec.name}")
