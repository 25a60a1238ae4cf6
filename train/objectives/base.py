"""The interface of objectives: what they are given, and what they return.

Shapes: B samples, C latent channels, h x w latent pixels.
Convention: sigma in [0, 1], 1 is noise; velocity = noise - data.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar, Protocol

from uhr.base.kinds import Kind

if TYPE_CHECKING:
    import torch

    from uhr.models.specs.spec import ModelSpec
    from uhr.train.objectives.draws import Draws


@dataclass(frozen=True)
class BatchCondition:
    """What the model is given besides noisy latents and noise level. Objectives do not look inside.

    texts: the family's text tensors by name (`Backbone.text_tensors`); B is the first dimension.
    null_texts: those of the empty prompt; the first dimension is 1.
    guidance: the model's guidance input, float32 [B]; None if it has none.
    guide: the model latents of the image at a lower resolution, float32 [B, C, h', w'], which UltraGen's
        guide tokens show to the model; None without a guide.
    """

    texts: Mapping[str, torch.Tensor]
    null_texts: Mapping[str, torch.Tensor]
    guidance: torch.Tensor | None = None
    guide: torch.Tensor | None = None

    @property
    def count(self) -> int:
        """B."""
        return next(iter(self.texts.values())).shape[0]

    def null(self) -> BatchCondition:
        """The same with the empty prompt in place of the texts."""
        texts = {name: null.expand(self.count, *null.shape[1:]) for name, null in self.null_texts.items()}
        return replace(self, texts=texts)

    def with_guidance(self, guidance: torch.Tensor | float) -> BatchCondition:
        """The same with another guidance input, [B] or one value for all samples.

        The model must have a guidance input.
        """
        import torch

        assert self.guidance is not None, "this model has no guidance input"
        values = torch.as_tensor(guidance, dtype=torch.float32, device=self.guidance.device)
        return replace(self, guidance=values.expand(self.count))

    def slice(self, start: int, stop: int) -> BatchCondition:
        """The samples from `start` to `stop` (exclusive)."""
        return replace(
            self,
            texts={name: tensor[start:stop] for name, tensor in self.texts.items()},
            guidance=None if self.guidance is None else self.guidance[start:stop],
            guide=None if self.guide is None else self.guide[start:stop],
        )


def joined(conditions: Sequence[BatchCondition]) -> BatchCondition:
    """Conditions of one model, one after the other along the first dimension."""
    import torch

    first = conditions[0]
    return BatchCondition(
        {name: torch.cat([each.texts[name] for each in conditions]) for name in first.texts},
        first.null_texts,
        _cat([each.guidance for each in conditions]),
        _cat([each.guide for each in conditions]),
    )


def _cat(tensors: Sequence[torch.Tensor | None]) -> torch.Tensor | None:
    import torch

    found = [tensor for tensor in tensors if tensor is not None]
    assert len(found) in (0, len(tensors)), "some conditions have it and others do not"
    return torch.cat(found) if found else None


@dataclass(frozen=True)
class Batch:
    """Samples of one bucket with the noise and the noise levels at which they are trained.

    data: model latents (shifted and scaled), float32 [B, C, h, w]. noise: N(0, I), like `data`.
    sigma: noise level of each sample, float32 [B].
    mask: weight of each latent pixel in the loss, float32 [B, 1, h, w] in [0, 1]; None is 1 everywhere.
    sample_ids: those of the manifest's rows, for error messages.
    """

    data: torch.Tensor
    noise: torch.Tensor
    sigma: torch.Tensor
    condition: BatchCondition
    sample_ids: tuple[str, ...]
    mask: torch.Tensor | None = None

    @property
    def noise_levels(self) -> torch.Tensor:
        """Sigma of each sample, for the log."""
        return self.sigma

    @property
    def amount(self) -> tuple[str, float]:
        """The size of one sample with its unit, for rates in the log: its image, text and guide tokens."""
        guide = self.condition.guide
        streams = [self.data, *([] if guide is None else [guide])]
        image = sum(stream.shape[-2] * stream.shape[-1] // 4 for stream in streams)
        # the sequence is the first of a family's text tensors
        text = next(iter(self.condition.texts.values())).shape[1]
        return "tokens", image + text

    @property
    def levels(self) -> torch.Tensor:
        """Sigma as [B, 1, 1, 1]."""
        return self.sigma.view(-1, 1, 1, 1)

    @property
    def noisy(self) -> torch.Tensor:
        """x_sigma = (1 - sigma) data + sigma noise, float32 [B, C, h, w]."""
        from uhr.models.ops.flow import interpolate

        return interpolate(self.data, self.noise, self.levels)

    @property
    def target(self) -> torch.Tensor:
        """The true velocity, noise - data, float32 [B, C, h, w]."""
        return self.noise - self.data

    def slice(self, start: int, stop: int) -> Batch:
        """The samples from `start` to `stop` (exclusive)."""
        return Batch(
            self.data[start:stop],
            self.noise[start:stop],
            self.sigma[start:stop],
            self.condition.slice(start, stop),
            self.sample_ids[start:stop],
            None if self.mask is None else self.mask[start:stop],
        )


class Denoiser(Protocol):
    """The model that is trained, as a function of unpacked latents."""

    def velocity(self, noisy: torch.Tensor, sigma: torch.Tensor, condition: BatchCondition) -> torch.Tensor:
        """Predict the velocity, float32 [B, C, h, w], of noisy [B, C, h, w] at sigma [B]."""
        ...

    def teacher(self, noisy: torch.Tensor, sigma: torch.Tensor, condition: BatchCondition) -> torch.Tensor:
        """`velocity` of the model before training, without gradients.

        Only an objective whose `uses_teacher` is true may call it.
        """
        ...


@dataclass(frozen=True)
class Errors:
    """What an objective returns: the loss of each place, before masks and means.

    map: float32 [B, K, H, W], not negative; H x W is h x w or an integer part of it (wavelet bands).
    weight: factor of each sample, float32 [B]; None is 1.
    parts: named values of each sample, [B], for the log.
    """

    map: torch.Tensor
    weight: torch.Tensor | None = None
    parts: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def per_sample(self, mask: torch.Tensor | None = None) -> torch.Tensor:
        """The loss of each sample, float32 [B]: its weight times the mean of its map.

        mask: [B, 1, h, w] in [0, 1]: the mean is then weighted by the mask, averaged over the places that
        one value of the map covers. A sample whose mask is 0 everywhere has the loss 0.
        """
        import torch

        if mask is None:
            mean = self.map.mean(dim=(1, 2, 3))
        else:
            height, width = self.map.shape[-2:]
            weights = torch.nn.functional.adaptive_avg_pool2d(mask.float(), (height, width))
            total = weights.sum(dim=(1, 2, 3)) * self.map.shape[1]
            mean = (self.map * weights).sum(dim=(1, 2, 3)) / total.clamp(min=torch.finfo(total.dtype).tiny)
        return mean if self.weight is None else mean * self.weight


class Objective(Kind):
    """A training objective and its parameters; a pure function.

    The same model, batch and draws give the same errors. It knows nothing of devices, logging or the loop.
    """

    uses_teacher: ClassVar[bool] = False
    """Whether it calls `Denoiser.teacher`, which may cost the memory of a second model."""

    passes: ClassVar[int] = 1
    """Number of passes of the trained model over each sample, all of which keep activations."""

    def check(self, spec: ModelSpec, guidance: float | None) -> None:
        """Raise UserError if the objective cannot train a model of this spec.

        guidance: the value of the model's guidance input in training; None if it has none.
        """
        return

    @abstractmethod
    def __call__(self, denoiser: Denoiser, batch: Batch, draws: Draws) -> Errors:
        """Return the errors of the model on a batch; `draws` are the random numbers of its samples."""
