"""What is known of a backbone before any of its weights are read: geometry, guidance, texts, licence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from uhr.models.ops.choices import ShiftPolicy

GuidanceKind = Literal["embedded", "none", "cfg"]
"""How a backbone is guided: a number that it takes as an input ("embedded"), not at all ("none"), or two
passes with and without the prompt ("cfg")."""


@dataclass(frozen=True)
class Licence:
    """The licence of published weights.

    `id` is the value of a model card's `license:` (an SPDX name, or "other" with `name` as its name);
    `commercial` is whether the weights may be used commercially without an agreement.
    """

    id: str
    name: str
    url: str
    commercial: bool


@dataclass(frozen=True)
class ModelSpec:
    """A backbone's name, its configuration, latent geometry, guidance and licence.

    Creating one loads nothing. Sizes are in pixels, in the order (height, width) everywhere.
    """

    name: str
    family: str
    summary: str
    pipeline_class: str
    """Name in `diffusers` of the stock pipeline, as `model_index.json` writes it."""

    components: Mapping[str, str]
    """Every part by its folder name, as `library:Class`."""

    transformer_config: Mapping[str, Any]
    """The values of `transformer/config.json` that distinguish this backbone from its siblings."""

    native_size: int
    """Side in px of the square images that the backbone was trained on. The sizes of base pass, window and
    patch are multiples or fractions of it."""

    guidance: GuidanceKind
    text_lengths: Mapping[str, int]
    """Tokens that each text encoder pads and truncates to."""

    double_block: str
    single_block: str
    lora_target_sets: Mapping[str, tuple[str, ...]]
    """Named sets of module suffixes for adapters; every spec has one called "attention"."""

    licence: Licence
    hub_id: str | None
    shift: ShiftPolicy
    """The schedule that the weights were published with."""

    steps: int
    """Sampling steps of the model card."""

    guidance_scale: float | None
    """Sampling guidance of the model card; None where the backbone takes none. Training never reads it."""

    vae_factor: int = 8
    patch: int = 2
    latent_channels: int = 16
    pipeline_config: Mapping[str, Any] = field(default_factory=dict)
    """Values of `model_index.json` besides the components: they distinguish siblings, and are arguments of
    the pipeline."""

    notes: tuple[str, ...] = field(default=())

    configs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Shapes from the published `config.json` of the VAE and of each text encoder, from which costs are
    estimated without any file."""

    scheduler_config: Mapping[str, Any] = field(default_factory=dict, compare=False)
    """The `scheduler_config.json` of a checkpoint whose folder is known. Empty for a spec of the registry,
    which has `shift` only."""

    @property
    def pixel_multiple(self) -> int:
        """Height and width must be multiples of this many px: VAE factor times patch side."""
        return self.vae_factor * self.patch

    @property
    def text_components(self) -> tuple[str, ...]:
        """The components that encode texts, each tokenizer before its encoder."""
        names = ("tokenizer", "text_encoder", "tokenizer_2", "text_encoder_2")
        return tuple(name for name in names if name in self.components)

    @property
    def transformer_class(self) -> str:
        return self.components["transformer"].partition(":")[2]

    @property
    def tiny(self) -> bool:
        """Whether it has random weights, made here."""
        return self.hub_id is None

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Return the rows and columns of image tokens of an image of height x width px."""
        return height // self.pixel_multiple, width // self.pixel_multiple

    def tokens(self, height: int, width: int) -> int:
        """Return the number of image tokens (packed latent positions) of height x width px, without text."""
        rows, columns = self.grid(height, width)
        return rows * columns
