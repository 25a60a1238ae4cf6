"""Run guide tokens through the blocks of each family: their embedding, their modulation, and one layer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import Flux2Transformer2DModel

from uhr.models.attention.processors import Attend, Rotary


@dataclass
class GuideStream(ABC):
    """Runs guide tokens through one transformer, layer by layer.

    `latents` [B, M, C] in window-first order and the model's dtype; `inputs` are the call's arguments by
    name, of which guidance and pooled text are used: only the guide's timestep differs from the image's; it
    is 0.
    """

    transformer: Any
    latents: torch.Tensor
    inputs: Mapping[str, Any]

    @staticmethod
    def of(transformer: Any, latents: torch.Tensor, inputs: Mapping[str, Any]) -> GuideStream:
        family = Flux2Stream if isinstance(transformer, Flux2Transformer2DModel) else Flux1Stream
        return family(transformer, latents, inputs)

    def __post_init__(self) -> None:
        self.blocks = [*self.transformer.transformer_blocks, *self.transformer.single_transformer_blocks]
        self.doubles = len(self.transformer.transformer_blocks)
        self.places = {id(block.attn.processor): i for i, block in enumerate(self.blocks)}

    def index(self, layer: Any) -> int:
        """Return the index of the layer that a processor belongs to, double blocks first."""
        return self.places[id(layer)]

    def step(self, index: int, state: torch.Tensor, rotary: Rotary, attention: Attend) -> torch.Tensor:
        """Run Y [B, M, width] through one block.

        It calls the class's own forward: the block is already running, and its hooks (offloading, sharding)
        must not run again.
        """
        block = self.blocks[index]
        empty = state[:, :0]
        call = type(block).forward
        kwargs = {"attention": attention}
        if index < self.doubles:
            _, following = self.double(call, block, state, empty, rotary, kwargs)
            return following
        return self.single(call, block, state, empty, rotary, kwargs)

    def timestep(self) -> torch.Tensor:
        return self.latents.new_zeros(self.latents.shape[0])

    def guidance(self) -> torch.Tensor | None:
        guidance = self.inputs.get("guidance")
        return None if guidance is None else guidance.to(self.latents.dtype) * 1000

    @abstractmethod
    def embed(self) -> torch.Tensor:
        """Return Y before the first layer, and compute the modulation."""

    @abstractmethod
    def double(
        self,
        call: Any,
        block: Any,
        state: torch.Tensor,
        text: torch.Tensor,
        rotary: Rotary,
        kwargs: dict[str, Any],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Call a double block's forward on Y with an empty text; return the text, and Y after the block."""

    @abstractmethod
    def single(
        self,
        call: Any,
        block: Any,
        state: torch.Tensor,
        text: torch.Tensor,
        rotary: Rotary,
        kwargs: dict[str, Any],
    ) -> torch.Tensor:
        """Call a single block's forward on Y with an empty text; return Y after the block."""


class Flux1Stream(GuideStream):
    """FLUX.1: each block makes its modulation from one embedding of time, guidance and pooled text."""

    def embed(self) -> torch.Tensor:
        tensors = (self.timestep(), self.guidance(), self.inputs["pooled_projections"])
        self.modulation = self.transformer.time_text_embed(*(x for x in tensors if x is not None))
        return self.transformer.x_embedder(self.latents)

    def double(self, call, block, state, text, rotary, kwargs):
        return call(block, state, text, self.modulation, rotary, kwargs)

    def single(self, call, block, state, text, rotary, kwargs):
        return call(block, state, text, self.modulation, rotary, kwargs)[1]


class Flux2Stream(GuideStream):
    """FLUX.2: all blocks of a kind share modulations that the transformer makes."""

    def embed(self) -> torch.Tensor:
        model = self.transformer
        embedding = model.time_guidance_embed(self.timestep(), self.guidance())
        self.image = model.double_stream_modulation_img(embedding)
        self.text = model.double_stream_modulation_txt(embedding)
        self.joint = model.single_stream_modulation(embedding)
        return model.x_embedder(self.latents)

    def double(self, call, block, state, text, rotary, kwargs):
        return call(block, state, text, self.image, self.text, rotary, kwargs)

    def single(self, call, block, state, text, rotary, kwargs):
        return call(block, state, None, self.joint, rotary, kwargs)
