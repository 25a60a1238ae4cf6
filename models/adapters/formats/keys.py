"""Names of a backbone's linears in BFL's own code (used by kohya, ComfyUI and others), XLabs' and diffusers.

BFL fuses linears that read the same input: query, key and value, and in FLUX.1's single blocks the MLP's
first half as well. The tables follow `diffusers.loaders.single_file_utils`, which converts whole checkpoints;
a test compares every name and width with the real classes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from uhr.base.errors import unknown

_QKV = ("attn.to_q", "attn.to_k", "attn.to_v")
_ADDED_QKV = ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")


@dataclass(frozen=True)
class Fused:
    """A linear in BFL's code: diffusers' modules that it consists of, from the first row on."""

    parts: tuple[str, ...]
    widths: tuple[int, ...]
    """Rows of each part, in multiples of the width of the input; (0,) where one part has all the rows."""

    swapped: bool = False
    """Whether diffusers has its two halves in the opposite order (BFL: shift, scale)."""

    def outs(self, rows: int, width: int) -> list[int]:
        """Return the rows of every part of a weight [rows, width]."""
        return [rows] if self.widths == (0,) else [factor * width for factor in self.widths]


def _alone(part: str, swapped: bool = False) -> Fused:
    return Fused((part,), (0,), swapped)


XLABS = {
    "processor.qkv_lora1": Fused(_QKV, (1, 1, 1)),
    "processor.proj_lora1": _alone("attn.to_out.0"),
    "processor.qkv_lora2": Fused(_ADDED_QKV, (1, 1, 1)),
    "processor.proj_lora2": _alone("attn.to_add_out"),
    "processor.qkv_lora": Fused(_QKV, (1, 1, 1)),
    "processor.proj_lora": _alone("proj_out"),
}
"""XLabs' names inside a block of FLUX.1: numbered in double blocks, without a number in single ones."""


@dataclass(frozen=True)
class KeyLayout:
    """A family's names: inside a double block, inside a single block, and outside the blocks."""

    family: str
    kohya_module: str
    """`ss_network_module` in kohya's metadata."""

    double: Mapping[str, Fused]
    single: Mapping[str, Fused]
    top: Mapping[str, Fused]

    def locate(self, name: str) -> tuple[str, Fused] | None:
        """Return diffusers' prefix and the entry of a name of BFL's, XLabs' or diffusers' own, whose dots may
        be underscores; None for an unknown name."""
        for pattern, prefix, table in self._spellings():
            match = re.fullmatch(pattern, name)
            if match is None:
                continue
            index, inside = (match.group(1), match.group(2)) if prefix else ("", match.group(1))
            for key, entry in table.items():
                if inside.replace(".", "_") == key.replace(".", "_"):
                    return prefix.format(index), entry
        return None

    def linears(self, modules: Iterator[str] | Mapping[str, Any]) -> dict[str, tuple[str, Fused]]:
        """Return prefix and entry, by BFL's name, of every linear that contains one of the modules.

        The order is stable. Raises UserError for a module that BFL's code does not have.
        """
        found: dict[str, tuple[str, Fused]] = {}
        for module in modules:
            name, prefix, entry = self._linear(module)
            found[name] = (prefix, entry)
        return found

    def _linear(self, module: str) -> tuple[str, str, Fused]:
        match = re.fullmatch(r"(single_)?transformer_blocks\.(\d+)\.(.+)", module)
        if match is None:
            prefix, bfl, inside, table = "", "", module, self.top
        else:
            single, index, inside = match.groups()
            prefix = f"{single or ''}transformer_blocks.{index}."
            bfl = f"{'single' if single else 'double'}_blocks.{index}."
            table = self.single if single else self.double
        for key, entry in table.items():
            if inside in entry.parts:
                return bfl + key, prefix, entry
        raise unknown(f"module of {self.family}", module, (part for e in table.values() for part in e.parts))

    def _spellings(self) -> list[tuple[str, str, Mapping[str, Fused]]]:
        double, single = "transformer_blocks.{}.", "single_transformer_blocks.{}."
        return [
            (r"double_blocks[._](\d+)[._](.+)", double, {**self.double, **XLABS}),
            (r"single_blocks[._](\d+)[._](.+)", single, {**self.single, **XLABS}),
            (r"transformer_blocks[._](\d+)[._](.+)", double, _each_alone(self.double)),
            (r"single_transformer_blocks[._](\d+)[._](.+)", single, _each_alone(self.single)),
            (r"(.+)", "", {**self.top, **_each_alone(self.top)}),
        ]


def _each_alone(entries: Mapping[str, Fused]) -> dict[str, Fused]:
    return {part: _alone(part) for entry in entries.values() for part in entry.parts}


FLUX1 = KeyLayout(
    family="flux1",
    kohya_module="networks.lora_flux",
    double={
        "img_attn.qkv": Fused(_QKV, (1, 1, 1)),
        "img_attn.proj": _alone("attn.to_out.0"),
        "img_mlp.0": _alone("ff.net.0.proj"),
        "img_mlp.2": _alone("ff.net.2"),
        "img_mod.lin": _alone("norm1.linear"),
        "txt_attn.qkv": Fused(_ADDED_QKV, (1, 1, 1)),
        "txt_attn.proj": _alone("attn.to_add_out"),
        "txt_mlp.0": _alone("ff_context.net.0.proj"),
        "txt_mlp.2": _alone("ff_context.net.2"),
        "txt_mod.lin": _alone("norm1_context.linear"),
    },
    single={
        "linear1": Fused((*_QKV, "proj_mlp"), (1, 1, 1, 4)),
        "linear2": _alone("proj_out"),
        "modulation.lin": _alone("norm.linear"),
    },
    top={
        "img_in": _alone("x_embedder"),
        "txt_in": _alone("context_embedder"),
        "time_in.in_layer": _alone("time_text_embed.timestep_embedder.linear_1"),
        "time_in.out_layer": _alone("time_text_embed.timestep_embedder.linear_2"),
        "guidance_in.in_layer": _alone("time_text_embed.guidance_embedder.linear_1"),
        "guidance_in.out_layer": _alone("time_text_embed.guidance_embedder.linear_2"),
        "vector_in.in_layer": _alone("time_text_embed.text_embedder.linear_1"),
        "vector_in.out_layer": _alone("time_text_embed.text_embedder.linear_2"),
        "final_layer.linear": _alone("proj_out"),
        "final_layer.adaLN_modulation.1": _alone("norm_out.linear", swapped=True),
    },
)

FLUX2 = KeyLayout(
    family="flux2",
    kohya_module="networks.lora_flux_2",
    double={
        "img_attn.qkv": Fused(_QKV, (1, 1, 1)),
        "img_attn.proj": _alone("attn.to_out.0"),
        "img_mlp.0": _alone("ff.linear_in"),
        "img_mlp.2": _alone("ff.linear_out"),
        "txt_attn.qkv": Fused(_ADDED_QKV, (1, 1, 1)),
        "txt_attn.proj": _alone("attn.to_add_out"),
        "txt_mlp.0": _alone("ff_context.linear_in"),
        "txt_mlp.2": _alone("ff_context.linear_out"),
    },
    single={"linear1": _alone("attn.to_qkv_mlp_proj"), "linear2": _alone("attn.to_out")},
    top={
        "img_in": _alone("x_embedder"),
        "txt_in": _alone("context_embedder"),
        "time_in.in_layer": _alone("time_guidance_embed.timestep_embedder.linear_1"),
        "time_in.out_layer": _alone("time_guidance_embed.timestep_embedder.linear_2"),
        "guidance_in.in_layer": _alone("time_guidance_embed.guidance_embedder.linear_1"),
        "guidance_in.out_layer": _alone("time_guidance_embed.guidance_embedder.linear_2"),
        "double_stream_modulation_img.lin": _alone("double_stream_modulation_img.linear"),
        "double_stream_modulation_txt.lin": _alone("double_stream_modulation_txt.linear"),
        "single_stream_modulation.lin": _alone("single_stream_modulation.linear"),
        "final_layer.linear": _alone("proj_out"),
        "final_layer.adaLN_modulation.1": _alone("norm_out.linear", swapped=True),
    },
)

LAYOUTS: Mapping[str, KeyLayout] = {"FluxTransformer2DModel": FLUX1, "Flux2Transformer2DModel": FLUX2}
"""By the transformer's class."""


def layout_of(transformer: Any) -> KeyLayout:
    """Return the names of a backbone's family. Raises UserError for a class that is not in `LAYOUTS`.

    Base classes are searched too, since wrappers such as FSDP2 subclass the transformer on the fly.
    """
    for cls in type(transformer).__mro__:
        if cls.__name__ in LAYOUTS:
            return LAYOUTS[cls.__name__]
    raise unknown("transformer class", type(transformer).__name__, LAYOUTS)
