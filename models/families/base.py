"""The interface of a family of backbones, which samplers and training call.

A backbone is stateless and loads nothing; transformers, configurations and text encoders are arguments.
The following is common to all families, and so not part of the interface: sigma is in [0, 1], and 1 is noise;
velocity is noise - data; model latents z [B, C, H/8, W/8] are packed into tokens [B, N, 4C] by 2x2 patches
(`latents.pack`); position ids are float32.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from uhr.models.families.conditions import Condition, Prompt
from uhr.models.families.text import Embedded, TextEncoders, TokenCount
from uhr.models.ops.choices import StageShift
from uhr.models.specs.spec import GuidanceKind

if TYPE_CHECKING:
    import torch

    from uhr.models.ops.schedules import Shifter


class Backbone(ABC):
    """A family of backbones. `name` is the `family` of its specs."""

    name: ClassVar[str]

    text_tensors: ClassVar[tuple[str, ...]]
    """Names of its text tensors, also in files of encoded data.

    The first is the sequence [B, L, D], named like its encoder in `ModelSpec.text_lengths`; a second one is
    the pooled vector [B, P].
    """

    stage_shift: ClassVar[StageShift] = StageShift.NATIVE
    """Default shift of the stages above the native size."""

    @property
    def sequence(self) -> str:
        """Name of the text tensor whose tokens the transformer attends to."""
        return self.text_tensors[0]

    @property
    def pooled(self) -> bool:
        """Whether its inputs include a second text and a pooled vector."""
        return len(self.text_tensors) > 1

    @abstractmethod
    def encoders(self, pipeline: Any, length: int) -> TextEncoders:
        """Return the text encoders of a diffusers pipeline; `length` is the number of tokens of the
        sequence."""

    @abstractmethod
    def embed(self, encoders: TextEncoders, prompt: Prompt) -> Embedded:
        """Encode texts, without gradients, in the encoders' own dtype and on their device.

        Embeddings in `prompt` are returned unchanged. Samplers and training both encode texts here.
        """

    @abstractmethod
    def count(self, encoders: TextEncoders, texts: Sequence[str]) -> tuple[TokenCount, ...]:
        """Return the counts of `embed` for these texts, from the tokenizers alone."""

    @abstractmethod
    def text_shapes(self, config: Mapping[str, Any], length: int) -> dict[str, tuple[int, ...]]:
        """Return the shape of each text tensor of one prompt, without the batch: [length, D] for the
        sequence, [P] for the pooled vector. `config` is the transformer's configuration."""

    @abstractmethod
    def image_ids(self, rows: int, columns: int, device: torch.device | str = "cpu") -> torch.Tensor:
        """Return the position ids of a token grid, row by row: float32 [rows * columns, axes]."""

    @abstractmethod
    def text_ids(self, length: int, device: torch.device | str = "cpu") -> torch.Tensor:
        """Return the position ids of the text tokens: float32 [length, axes]."""

    def condition(
        self,
        texts: Mapping[str, torch.Tensor],
        image_ids: torch.Tensor,
        guidance: torch.Tensor | None,
        dtype: torch.dtype,
    ) -> Condition:
        """Return the conditioning of a call.

        Args:
            texts: the text tensors of B prompts, by `text_tensors`; they are cast to `dtype`.
            image_ids: position ids of the image tokens, float32 [N, axes]; texts go to their device.
            guidance: embedded guidance of each sample, float32 [B]; None if the backbone has no such input.
            dtype: the transformer's dtype.
        """
        text, *others = (texts[name].to(image_ids.device, dtype) for name in self.text_tensors)
        text_ids = self.text_ids(text.shape[1], image_ids.device)
        return Condition(text, others[0] if others else None, text_ids, image_ids, guidance)

    @abstractmethod
    def guidance_kind(self, transformer: Any, pipeline_config: Mapping[str, Any]) -> GuidanceKind:
        """Return how this checkpoint is guided."""

    @abstractmethod
    def text_length(self, transformer: Any) -> int:
        """Return the number of text tokens that the checkpoint was trained with, the default of a call."""

    @abstractmethod
    def noise_shape(self, channels: int, height: int, width: int) -> tuple[int, int, int]:
        """Return the shape [c, h, w] in which the stock pipeline draws z [C, H, W], for equal noise per seed.

        It is the shape of z, or of z with its 2x2 patches as channels: [4C, H/2, W/2].
        """

    @abstractmethod
    def shifter(self, scheduler_config: Mapping[str, Any], steps: int) -> Shifter:
        """Return the family's dynamic shift, a function of the number of image tokens, for this many
        steps."""

    def other_inputs(self, condition: Condition) -> dict[str, Any]:
        """Return the keyword arguments of the transformer that only this family has."""
        return {}

    def call(
        self,
        transformer: Any,
        tokens: torch.Tensor,
        sigma: torch.Tensor,
        condition: Condition,
        attention: Mapping[str, Any] | None = None,
    ) -> torch.Tensor:
        """Run the transformer: return the velocity (noise - data) in float32, [B, N, 4C].

        `tokens` [B, N, 4C] have noise levels `sigma` [B]. Sigma and guidance are passed as float32: the
        transformer itself casts them to its dtype before it multiplies by 1000, in training as in sampling.
        `attention` are the user's keyword arguments for the attention processors; `condition.attention` is
        added to them.
        """
        return transformer(
            hidden_states=tokens.to(condition.text.dtype),
            timestep=sigma.float(),
            guidance=condition.guidance,
            encoder_hidden_states=condition.text,
            txt_ids=condition.text_ids,
            img_ids=condition.image_ids,
            joint_attention_kwargs=attention_arguments(condition, attention),
            return_dict=False,
            **self.other_inputs(condition),
        )[0].float()


def attention_arguments(condition: Condition, attention: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the `joint_attention_kwargs` of one call."""
    own = {} if condition.attention is None else {"attention": condition.attention}
    return {**(attention or {}), **own}
