"""What one family of backbones knows and the others do not: the contract that samplers and training call.

A backbone is stateless and loads nothing; transformers, configurations and text encoders are arguments.
Common to all families, and so not in here: sigma in [0, 1] with 1 = noise, velocity = noise - data, model
latents z [B, C, H/8, W/8] packed into tokens [B, N, 4C] by 2x2 patches (`latents.pack`), ids in float32.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from uhr.models.families.conditions import Condition, Prompt
from uhr.models.families.text import Embedded
from uhr.models.ops.schedules import Shifter
from uhr.models.specs.spec import GuidanceKind


class Backbone(ABC):
    """One family. `name` is the `family` of its specs."""

    name: ClassVar[str]

    pooled: ClassVar[bool]
    """Whether it takes a second text and a pooled embedding."""

    @abstractmethod
    def embed(self, pipeline: Any, prompt: Prompt, length: int) -> Embedded:
        """Encode texts by the text encoders of a diffusers pipeline of the family, at most `length` tokens of
        each; embeddings that are given stay as they are."""

    @abstractmethod
    def image_ids(self, rows: int, columns: int, device: torch.device | str = "cpu") -> torch.Tensor:
        """Position ids of a token grid, row by row: float32 [rows * columns, axes]."""

    @abstractmethod
    def text_ids(self, length: int, device: torch.device | str = "cpu") -> torch.Tensor:
        """Position ids of the text tokens: float32 [length, axes]."""

    @abstractmethod
    def guidance_kind(self, transformer: Any, pipeline_config: Mapping[str, Any]) -> GuidanceKind:
        """How this very checkpoint is guided."""

    @abstractmethod
    def text_length(self, transformer: Any) -> int:
        """Text tokens that the checkpoint was trained with: the default of a call."""

    @abstractmethod
    def noise_shape(self, channels: int, height: int, width: int) -> tuple[int, int, int]:
        """The shape [c, h, w] in which the stock pipeline draws z [C, H, W]: the same seed, the same noise.

        It is z's own, or that of z's 2x2 patches as channels [4C, H/2, W/2].
        """

    @abstractmethod
    def shifter(self, scheduler_config: Mapping[str, Any], steps: int) -> Shifter:
        """The family's dynamic shift by the number of image tokens, for this many steps."""

    @abstractmethod
    def call(
        self,
        transformer: Any,
        tokens: torch.Tensor,
        sigma: torch.Tensor,
        condition: Condition,
        attention: Mapping[str, Any] | None = None,
    ) -> torch.Tensor:
        """One forward pass: velocity (noise - data) at tokens [B, N, 4C] of noise level sigma [B], float32.

        Sigma and guidance go in as float32: the transformer itself casts them to its dtype before it
        multiplies by 1000, in training as in sampling. `attention` are the user's keyword arguments of the
        attention processors; `condition.attention` is added to them.
        """


def attention_arguments(condition: Condition, attention: Mapping[str, Any] | None) -> dict[str, Any]:
    """`joint_attention_kwargs` of one call."""
    own = {} if condition.attention is None else {"attention": condition.attention}
    return {**(attention or {}), **own}
