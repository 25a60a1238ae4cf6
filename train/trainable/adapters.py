"""Adapters as trainable parts: LoRA, singular components, and a LoRA on guide tokens alone."""

from __future__ import annotations

import json
from abc import abstractmethod
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from uhr.base.errors import unknown
from uhr.models.specs.spec import ModelSpec
from uhr.train.trainable.base import PartFile, Trainable

if TYPE_CHECKING:
    import torch

    from uhr.models.adapters.formats.usage import Usage
    from uhr.models.adapters.surgeries import AdapterSurgery
    from uhr.models.loading.opening import ModelName
    from uhr.models.publish.card import CardFacts


class Adapter(Trainable):
    """An adapter of rank `rank` on each target, in float32 whatever the model's dtype.

    targets: the name of a target set of the spec, or suffixes of module names.
    """

    file: ClassVar[str] = "adapter"

    rank: int = Field(gt=0)
    targets: str | tuple[str, ...]

    def suffixes(self, spec: ModelSpec) -> tuple[str, ...]:
        """Suffixes of the names of the modules that get an adapter."""
        return spec.lora_target_sets[self.targets] if isinstance(self.targets, str) else self.targets

    def check(self, spec: ModelSpec) -> None:
        if isinstance(self.targets, str) and self.targets not in spec.lora_target_sets:
            raise unknown("set of targets", self.targets, spec.lora_target_sets, "trainable part")

    @abstractmethod
    def surgery(self, spec: ModelSpec, seed: int) -> AdapterSurgery:
        """The surgery that adds the adapter."""

    @property
    @abstractmethod
    def strength(self) -> float:
        """Alpha: the adapter's product is scaled by alpha / rank."""

    @property
    def usage(self) -> Usage:
        """How the adapter is used, which its export says."""
        from uhr.models.adapters.formats.usage import ORDINARY

        return ORDINARY

    def prepare(self, transformer: Any, spec: ModelSpec, seed: int) -> None:
        transformer.requires_grad_(False)
        self.surgery(spec, seed).apply(transformer)

    def parameters(self, transformer: Any) -> dict[str, torch.nn.Parameter]:
        from uhr.models.adapters.plain import ADAPTER

        return {
            name.replace(f".{ADAPTER}.", "."): parameter
            for name, parameter in transformer.named_parameters()
            if parameter.requires_grad
        }

    def off(self, transformer: Any) -> AbstractContextManager[None]:
        from uhr.models.adapters import peft_layers
        from uhr.models.adapters.plain import ADAPTER

        return peft_layers.disabled(transformer, ADAPTER)

    def metadata(self, transformer: Any) -> dict[str, str]:
        """Rank and alpha as diffusers writes them, so that the file is loaded at the right strength."""
        from uhr.models.adapters.formats.alphas import DIFFUSERS_METADATA

        lora = {"transformer.r": self.rank, "transformer.lora_alpha": self.strength}
        return {DIFFUSERS_METADATA: json.dumps(lora, sort_keys=True), **self.usage.metadata()}

    def export(self, part: PartFile, spec: ModelSpec, out: Path, facts: CardFacts) -> Path:
        from uhr.models.adapters.plain import LoraSpec
        from uhr.models.publish.export import export_lora

        lora = LoraSpec(self.rank, self.suffixes(spec), self.strength)
        return export_lora(part.tensors, lora, out, facts, self.usage)

    def sample_options(self, folder: Path, model: ModelName) -> list[str]:
        return [*model.options(), "--adapter", str(folder)]


class Lora(Adapter):
    """A LoRA (Hu et al. 2106.09685): (alpha / rank) B A; A is Gaussian and B zero at the start."""

    kind: str = "lora"
    alpha: float = Field(gt=0)

    @property
    def strength(self) -> float:
        return self.alpha

    def surgery(self, spec: ModelSpec, seed: int) -> AdapterSurgery:
        from uhr.models.adapters.surgeries import PlainLora

        return PlainLora(rank=self.rank, alpha=self.alpha, targets=self.suffixes(spec), seed=seed)

    def describe(self, spec: ModelSpec) -> str:
        return f"LoRA of rank {self.rank} on {', '.join(self.suffixes(spec))}"


class GuideLora(Lora):
    """UltraGen's LoRA (2510.16325, section 3): it acts on guide tokens and on no others."""

    kind: str = "token-masked-lora"

    @property
    def usage(self) -> Usage:
        from uhr.models.adapters.formats.usage import Usage

        return Usage(tokens="guide")

    def surgery(self, spec: ModelSpec, seed: int) -> AdapterSurgery:
        from uhr.models.adapters.surgeries import TokenMaskedLora

        return TokenMaskedLora(rank=self.rank, alpha=self.alpha, targets=self.suffixes(spec), seed=seed)

    def describe(self, spec: ModelSpec) -> str:
        return f"{super().describe(spec)}, guide tokens alone"


class Components(Adapter):
    """URAE's singular components of each weight (2503.16322, section 2.3), in difference form.

    components: "minor" trains the smallest, "major" the largest. See `models/adapters/minor.py`.
    """

    kind: str = "singular-components"
    components: Literal["minor", "major"] = "minor"

    @property
    def strength(self) -> float:
        # the components are trained at scale 1
        return float(self.rank)

    def surgery(self, spec: ModelSpec, seed: int) -> AdapterSurgery:
        from uhr.base.files import user_cache
        from uhr.models.adapters.surgeries import SingularComponents

        return SingularComponents(
            rank=self.rank,
            targets=self.suffixes(spec),
            components=self.components,
            cache=user_cache("components"),
        )

    def constants(self, transformer: Any) -> dict[str, torch.Tensor]:
        from uhr.models.adapters.minor import START
        from uhr.models.adapters.plain import ADAPTER

        return {
            name.replace(f".{ADAPTER}.", "."): buffer
            for name, buffer in transformer.named_buffers()
            if name.endswith(f".{ADAPTER}.{START}")
        }

    def describe(self, spec: ModelSpec) -> str:
        return f"{self.rank} {self.components} singular components of {', '.join(self.suffixes(spec))}"
