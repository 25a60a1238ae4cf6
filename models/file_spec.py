"""Which backbone a lone file holds, told by the names and shapes of its weights, which are not read."""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uhr.base.errors import UserError
from uhr.models.quantize import check_installed
from uhr.models.registry import SPECS
from uhr.models.spec import ModelSpec

BACKBONE_PREFIXES = ("model.diffusion_model.", "diffusion_model.")
"""Before the backbone's names in a checkpoint of ComfyUI's."""

Shapes = Mapping[str, tuple[int, ...]]
"""Name -> shape, [out, in] of a linear."""


@dataclass(frozen=True)
class Naming:
    """How BFL's files and diffusers' call the same weights."""

    image_in: str
    text_in: str
    double: str
    single: str
    modulation: str
    guidance: str


BFL = Naming(
    "img_in.weight", "txt_in.weight", "double_blocks", "single_blocks",
    "double_stream_modulation_img.", "guidance_in.",
)  # fmt: skip
DIFFUSERS = Naming(
    "x_embedder.weight", "context_embedder.weight", "transformer_blocks", "single_transformer_blocks",
    "double_stream_modulation_img.", "guidance_embedder.",
)  # fmt: skip


def candidates(file: Path) -> list[ModelSpec]:
    """The specs that a file's backbone may be of: more than one where an index alone tells them apart (FLUX.2
    distilled and not). UserError for a file without a known backbone."""
    from uhr.models.single_file import check_plain

    shapes = read_shapes(file)
    check_plain(shapes, str(file))
    facts = _facts(shapes)
    if facts is None:
        if any("lora" in name.lower() for name in shapes):
            raise UserError(f"{file} is an adapter", "give it with --adapter, and its backbone as the model")
        what = f"{file} holds no FLUX backbone (its first weight is {next(iter(shapes), 'none')})"
        raise UserError(what, "a text encoder or VAE alone is no model; --vae takes a VAE")
    found = [spec for spec in SPECS.values() if _fits(spec, facts)]
    if not found:
        words = ", ".join(f"{name}={value}" for name, value in facts.items())
        raise UserError(f"{file}: no spec has this backbone ({words})", f"known: {', '.join(SPECS)}")
    return found


def _facts(shapes: Shapes) -> dict[str, Any] | None:
    """What of a transformer's configuration its weights show; None where they are of no FLUX."""
    for naming in (BFL, DIFFUSERS):
        if naming.image_in in shapes and naming.text_in in shapes:
            width, channels = shapes[naming.image_in]
            return {
                "family": "flux2" if any(name.startswith(naming.modulation) for name in shapes) else "flux1",
                "num_layers": _count(shapes, naming.double),
                "num_single_layers": _count(shapes, naming.single),
                "width": width,
                "in_channels": channels,
                "joint_attention_dim": shapes[naming.text_in][1],
                "guidance_embeds": any(naming.guidance in name for name in shapes),
            }
    return None


def _count(shapes: Shapes, blocks: str) -> int:
    numbers = (re.match(rf"{blocks}\.(\d+)\.", name) for name in shapes)
    return len({number[1] for number in numbers if number})


def _fits(spec: ModelSpec, facts: Mapping[str, Any]) -> bool:
    config = dict(spec.transformer_config)
    width = config.pop("num_attention_heads") * config.pop("attention_head_dim")
    wanted = {**config, "family": spec.family, "width": width}
    return all(facts[name] == value for name, value in wanted.items())


def read_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the backbone's weights in a safetensors file or GGUF; of all weights in a file that
    marks none as the backbone's. UserError for a file that cannot be read."""
    shapes = stored_shapes(file)
    for prefix in BACKBONE_PREFIXES:
        inside = {
            name.removeprefix(prefix): shape for name, shape in shapes.items() if name.startswith(prefix)
        }
        if inside:
            return inside
    return shapes


def stored_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all weights in a safetensors file or GGUF; UserError for what cannot be read."""
    try:
        return _gguf(file) if file.suffix == ".gguf" else _safetensors(file)
    except (OSError, ValueError, IndexError, KeyError) as error:
        raise UserError(
            f"{file} cannot be read ({' '.join(str(error).split())})", "download it again"
        ) from error


def _safetensors(file: Path) -> dict[str, tuple[int, ...]]:
    from safetensors import SafetensorError, safe_open

    if file.suffix != ".safetensors":
        raise UserError(f"{file} is no safetensors file or GGUF", "convert it; pickles are never opened")
    try:
        with safe_open(file, framework="numpy") as opened:
            return {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(error) from error


def _gguf(file: Path) -> dict[str, tuple[int, ...]]:
    check_installed("gguf", "reading GGUF")
    tensors = importlib.import_module("gguf").GGUFReader(file).tensors
    # GGUF counts dimensions from the last
    return {each.name: tuple(int(n) for n in each.shape[::-1]) for each in tensors}
