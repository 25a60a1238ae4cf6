"""The model that is measured: FLUX.1-dev's shape, or a tiny one that proves the script on a CPU.

Weights are random, drawn where they will be used: nothing is downloaded, and 24 GB never pass through the
host's memory. They are scaled by their fan-in, so that no value overflows over 57 layers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from uhr.models.attention.layout import WindowLayout, window_side
from uhr.models.specs import registry
from uhr.models.specs.spec import ModelSpec

SIZES = {"1K": 1, "2K": 2, "4K": 4, "8K": 8}
"""Sides over the backbone's native one: 1024 px of FLUX.1-dev."""


@dataclass(frozen=True)
class Shape:
    """A model's geometry, and where and in what its numbers are."""

    spec: ModelSpec
    transformer: dict[str, Any]
    """What its transformer has beside the spec's part of the configuration."""

    vae: dict[str, Any]
    text: int
    """Text tokens of a prompt."""

    device: torch.device
    dtype: torch.dtype

    @property
    def heads(self) -> int:
        return self.spec.transformer_config["num_attention_heads"]

    @property
    def head_dim(self) -> int:
        return self.spec.transformer_config["attention_head_dim"]

    @property
    def width(self) -> int:
        return self.heads * self.head_dim

    @property
    def layers(self) -> int:
        config = self.spec.transformer_config
        return config["num_layers"] + config["num_single_layers"]

    def side(self, size: str) -> int:
        """Side in px of a size of `SIZES`."""
        return SIZES[size] * self.spec.native_size

    def layout(self, size: str) -> WindowLayout:
        """UltraGen's windows over a square image: 16 tokens a side on FLUX.1-dev."""
        tokens = self.side(size) // self.spec.pixel_multiple
        window = window_side(self.spec.native_size // self.spec.pixel_multiple)
        return WindowLayout(tokens, tokens, window)

    def attention_flops(self, pairs: int) -> float:
        """Operations of one layer's attention over so many query-key pairs, forward."""
        return 4.0 * self.width * pairs

    def call_flops(self, tokens: int, pairs: int) -> float:
        """Operations of a whole call: `tokens` text and image tokens, `pairs` in each layer.

        A token passes 12 width^2 weights a layer, in double blocks (4 of attention, 8 of feed-forward) and
        in single ones (3 + 4 into the joint projection, 5 out of it).
        """
        linear = 2.0 * 12 * self.width**2 * tokens
        return self.layers * (linear + self.attention_flops(pairs))


def flux1_dev() -> Shape:
    """The published configuration in bfloat16 on the GPU."""
    spec = registry.get("flux1-dev")
    text = spec.text_lengths["t5"]
    return Shape(spec, {}, dict(spec.configs["vae"]), text, torch.device("cuda"), torch.bfloat16)


def tiny() -> Shape:
    """The same classes with half a million parameters, in float32 on the CPU."""
    spec = registry.get("tiny-flux1")
    axes = spec.transformer_config["attention_head_dim"]
    side = axes * 56 // 128 // 2 * 2  # the real 16:56:56 of 128, in even numbers
    transformer = {
        "joint_attention_dim": 32,
        "pooled_projection_dim": 32,
        "axes_dims_rope": (axes - 2 * side, side, side),
    }
    published = registry.get("flux1-dev").configs["vae"]
    vae = {**published, "block_out_channels": (8, 8, 8, 8), "layers_per_block": 1, "norm_num_groups": 4}
    return Shape(spec, transformer, vae, 16, torch.device("cpu"), torch.float32)


class Models:
    """The parts of a pipeline, each created at its first use."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape

    @functools.cached_property
    def transformer(self) -> Any:
        from diffusers import FluxTransformer2DModel

        config = {**self.shape.spec.transformer_config, **self.shape.transformer}
        return drawn(lambda: FluxTransformer2DModel(**config), self.shape, seed=0)

    @functools.cached_property
    def vae(self) -> Any:
        from diffusers import AutoencoderKL

        return drawn(lambda: AutoencoderKL(**self.shape.vae), self.shape, seed=1)

    def pipeline(self, cls: Any) -> Any:
        """A sampler of ours on these parts, without text encoders: its prompts are embeddings."""
        from uhr.models.families.tiny.flux1 import scheduler

        absent = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
        parts = dict.fromkeys(absent)
        made = cls(scheduler=scheduler(), vae=self.vae, transformer=self.transformer, **parts)
        made.set_progress_bar_config(disable=True)
        return made

    def prompt(self) -> dict[str, torch.Tensor]:
        """Embeddings of a prompt as a pipeline takes them."""
        shape, config = self.shape, self.transformer.config
        draw = torch.Generator(shape.device).manual_seed(2)
        place: dict[str, Any] = {"generator": draw, "device": shape.device, "dtype": shape.dtype}
        return {
            "prompt_embeds": torch.randn(1, shape.text, config.joint_attention_dim, **place),
            "pooled_prompt_embeds": torch.randn(1, config.pooled_projection_dim, **place),
        }


def drawn(make: Callable[[], Any], shape: Shape, seed: int) -> Any:
    """A module with random weights in the shape's dtype, made on its device."""
    with torch.device("meta"):
        model = make()
    # torch's own `to`: diffusers' warns of modules to be kept in float32, of which these have none
    torch.nn.Module.to(model, dtype=shape.dtype)
    model.to_empty(device=shape.device)
    assert not list(model.buffers()), "a buffer that nothing fills"
    draw = torch.Generator(shape.device).manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1:
                weight.normal_(std=weight[0].numel() ** -0.5, generator=draw)
            else:
                weight.fill_(float("norm" in name and name.endswith("weight")))
    return model.eval().requires_grad_(False)
