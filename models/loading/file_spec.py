"""Recognise the backbone in a single file by the names and shapes of its weights, which are not read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uhr.base.errors import UserError
from uhr.models.files.containers import part_of, stored_tensors
from uhr.models.files.kinds import ADAPTER, check_plain, kind_of
from uhr.models.specs.registry import FAMILY_SPECS, SPECS
from uhr.models.specs.spec import ModelSpec

Shapes = Mapping[str, tuple[int, ...]]
"""Name -> shape, [out, in] of a linear."""


@dataclass(frozen=True)
class Naming:
    """The names of some weights in BFL's or diffusers' files."""

    image_in: str
    text_in: str
    double: str
    single: str
    guidance: str


BFL = Naming(
    "img_in.weight", "txt_in.weight", "double_blocks", "single_blocks",
    "guidance_in.",
)  # fmt: skip
DIFFUSERS = Naming(
    "x_embedder.weight", "context_embedder.weight", "transformer_blocks", "single_transformer_blocks",
    "guidance_embedder.",
)  # fmt: skip


def candidates(file: Path) -> list[ModelSpec]:
    """Return the specs that a file's backbone may have.

    There are several if only a `model_index.json` distinguishes them (FLUX.2 distilled and not). Raises
    UserError for a file without a known backbone.
    """
    return fitting(backbone_facts(file), str(file))


def fitting(facts: Mapping[str, Any], where: str) -> list[ModelSpec]:
    """Return the specs that have these facts (`backbone_facts`).

    Raises UserError, in which `where` names the backbone, if there is none.
    """
    found = [spec for spec in SPECS.values() if _fits(spec, facts)]
    if not found:
        shown = ", ".join(f"{name}={value}" for name, value in facts.items())
        fix = f"known: {', '.join(SPECS)}; to take it as one of them, with other numbers of blocks, name it"
        raise UserError(f"{where}: no spec has this backbone ({shown})", fix, give={"spec": "NAME"})
    return found


def backbone_facts(file: Path) -> dict[str, Any]:
    """Return the values of a transformer's configuration that follow from the names and shapes in a file.

    They are family, num_layers, num_single_layers, width, in_channels, joint_attention_dim, guidance_embeds.
    Raises UserError, which names what the file is, unless it has a FLUX backbone in plain weights or GGUF.
    """
    weights = {name: tensor for name, (_, tensor) in part_of(stored_tensors(file), "transformer").items()}
    check_plain(weights, str(file))
    facts = _facts({name: tensor.shape for name, tensor in weights.items()})
    kind = kind_of(weights, with_backbone=facts is not None)
    if facts is not None and kind is None:
        return facts
    if kind == ADAPTER:
        fix = "name the model that it adapts as the model, and this file as an adapter"
        raise UserError(f"{file} is an adapter, not a model", fix)
    what = f"(its first weight is {next(iter(weights), 'none')})" if kind is None else f"but {kind}"
    raise UserError(f"{file} has no FLUX backbone {what}", "name a file or folder of a backbone's weights")


def _facts(shapes: Shapes) -> dict[str, Any] | None:
    """Return the facts of `backbone_facts` from names and shapes; None if they are not those of a FLUX."""
    for naming in (BFL, DIFFUSERS):
        if naming.image_in in shapes and naming.text_in in shapes:
            width, channels = shapes[naming.image_in]
            return {
                "family": _family(shapes),
                "num_layers": _count(shapes, naming.double),
                "num_single_layers": _count(shapes, naming.single),
                "width": width,
                "in_channels": channels,
                "joint_attention_dim": shapes[naming.text_in][1],
                "guidance_embeds": any(naming.guidance in name for name in shapes),
            }
    return None


def _family(shapes: Shapes) -> str:
    """Return the family whose marker is in the names; without any, the family that has none."""
    marked = [each for each in FAMILY_SPECS.values() if each.marker]
    found = (each for each in marked if any(name.startswith(each.marker) for name in shapes))
    return next(found, next(each for each in FAMILY_SPECS.values() if not each.marker)).name


def _count(shapes: Shapes, blocks: str) -> int:
    numbers = (re.match(rf"{blocks}\.(\d+)\.", name) for name in shapes)
    return len({number[1] for number in numbers if number})


def _fits(spec: ModelSpec, facts: Mapping[str, Any]) -> bool:
    config = dict(spec.transformer_config)
    width = config.pop("num_attention_heads") * config.pop("attention_head_dim")
    expected = {**config, "family": spec.family, "width": width}
    return all(facts.get(name) == value for name, value in expected.items())
