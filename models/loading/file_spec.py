"""Which backbone a lone file holds, told by the names and shapes of its weights, which are not read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uhr.base.errors import UserError
from uhr.models.files.containers import ADAPTER, check_plain, kind_of, part_of, stored
from uhr.models.specs.registry import SPECS
from uhr.models.specs.spec import ModelSpec

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
    return fitting(backbone_facts(file), str(file))


def fitting(facts: Mapping[str, Any], where: str) -> list[ModelSpec]:
    """The specs that have these facts (`backbone_facts`); UserError, which names the backbone as `where`, for
    none."""
    found = [spec for spec in SPECS.values() if _fits(spec, facts)]
    if not found:
        shown = ", ".join(f"{name}={value}" for name, value in facts.items())
        fix = f"known: {', '.join(SPECS)}; to take it as one of them, with other numbers of blocks, name it"
        raise UserError(f"{where}: no spec has this backbone ({shown})", fix, give={"spec": "NAME"})
    return found


def backbone_facts(file: Path) -> dict[str, Any]:
    """What of a transformer's configuration the names and shapes of a file show: family, num_layers,
    num_single_layers, width, in_channels, joint_attention_dim, guidance_embeds.

    Raises UserError, which says what it is, for a file that holds no FLUX backbone in plain weights or GGUF.
    """
    weights = {name: tensor for name, (_, tensor) in part_of(stored(file), "transformer").items()}
    check_plain(weights, str(file))
    facts = _facts({name: tensor.shape for name, tensor in weights.items()})
    kind = kind_of(weights, beside=facts is not None)
    if facts is not None and kind is None:
        return facts
    if kind == ADAPTER:
        fix = "name the model that it adapts as the model, and this file as an adapter"
        raise UserError(f"{file} is an adapter, not a model", fix)
    what = f"(its first weight is {next(iter(weights), 'none')})" if kind is None else f"but {kind}"
    raise UserError(f"{file} holds no FLUX backbone {what}", "name a file or folder of a backbone's weights")


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
    return all(facts.get(name) == value for name, value in wanted.items())
