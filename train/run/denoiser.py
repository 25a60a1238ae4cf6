"""The backbone as a function from unpacked latents to velocity, as objectives call it."""

from __future__ import annotations

from typing import Any

import torch

from uhr.models.families.base import Backbone
from uhr.models.ops.latents import pack, unpack
from uhr.train.objectives.base import BatchCondition
from uhr.train.recipes.core.windows import CallAttention
from uhr.train.trainable.base import Trainable


class BackboneDenoiser:
    """A transformer, called as samplers call it: an adapter gets the same inputs in training and sampling, in
    the same dtypes.

    Args:
        family: that of the transformer.
        transformer: the model with its trainable part.
        trainable: the part; the teacher is the model without it, if it can be taken out.
        dtype: that of the computation; None is the transformer's. A divided transformer has float32 weights,
            and computes in the dtype of its inputs.
        frozen: the model before training, which is the teacher where the part cannot be taken out.
        attention: of its calls; None is the backbone's own.
    """

    def __init__(
        self,
        family: Backbone,
        transformer: Any,
        trainable: Trainable,
        attention: CallAttention | None = None,
        frozen: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.family, self.transformer, self.trainable = family, transformer, trainable
        self.attention, self.frozen = attention, frozen
        self.dtype = dtype or transformer.dtype

    def velocity(self, noisy: torch.Tensor, sigma: torch.Tensor, condition: BatchCondition) -> torch.Tensor:
        """Predict the velocity (noise - data), float32 [B, C, h, w], of noisy [B, C, h, w] at sigma [B] in
        [0, 1].
        """
        return self._velocity(self.transformer, noisy, sigma, condition)

    @torch.no_grad()
    def teacher(self, noisy: torch.Tensor, sigma: torch.Tensor, condition: BatchCondition) -> torch.Tensor:
        """`velocity` of the model before training, without gradients."""
        if self.frozen is not None:
            return self._velocity(self.frozen, noisy, sigma, condition)
        with self.trainable.off(self.transformer):
            return self.velocity(noisy, sigma, condition)

    def _velocity(
        self, transformer: Any, noisy: torch.Tensor, sigma: torch.Tensor, condition: BatchCondition
    ) -> torch.Tensor:
        height, width = noisy.shape[-2:]
        image_ids = self.family.image_ids(height // 2, width // 2, noisy.device)
        inputs = self.family.condition(condition.texts, image_ids, condition.guidance, self.dtype)
        if self.attention is not None:
            inputs = self.attention.attended(inputs, noisy, condition.guide)
        return unpack(self.family.call(transformer, pack(noisy), sigma, inputs), height, width)
