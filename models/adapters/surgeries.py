"""Adapters that training adds, as surgeries: named in recipes, listed in checkpoints and cards, reversible.

A surgery describes an adapter's structure; its weights are in the checkpoint. A model can have several whose
`adapter` names differ.
"""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from uhr.base.errors import UserError
from uhr.models.adapters import peft_layers
from uhr.models.adapters.components import Which
from uhr.models.surgery.base import Surgery


class AdapterSurgery(Surgery):
    """One adapter; `targets` are module suffixes (a set of `ModelSpec.lora_target_sets`)."""

    adapts: ClassVar[bool] = True
    adapter: str = "default"
    rank: int = Field(gt=0)
    targets: tuple[str, ...] = Field(min_length=1)

    @property
    def key(self) -> str:
        return f"{self.name}:{self.adapter}"

    def perform(self, model: Any) -> Any:
        """Add the adapter and let it train; return the parameters that were trainable before."""
        if self.adapter in peft_layers.names(model):
            raise UserError(f"adapter name '{self.adapter}' is taken on this model", "choose another name")
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        acting, training = peft_layers.active(model), peft_layers.training(model)
        with peft_layers.several_adapters():
            self.add(model)
        peft_layers.activate(model, [*acting, self.adapter], train=[*training, self.adapter])
        return trained

    def undo(self, model: Any, kept: Any) -> None:
        peft_layers.remove(model, self.adapter)
        for parameter in kept:
            parameter.requires_grad_(True)

    @abstractmethod
    def add(self, model: Any) -> None:
        """Add the adapter to the model."""


class PlainLora(AdapterSurgery):
    """An ordinary LoRA, `plain.add_lora`; its initial weights are drawn from `seed`. It is added to a
    linear's output in one operation (`added.py`).
    """

    name: ClassVar[str] = "lora"
    alpha: float = Field(gt=0)
    seed: int = 0

    def add(self, model: Any) -> None:
        from uhr.models.adapters.added import add_at_once

        self._add_weights(model)
        add_at_once(model, self.adapter)

    def _add_weights(self, model: Any) -> None:
        from uhr.models.adapters.plain import LoraSpec, add_lora

        add_lora(model, LoraSpec(self.rank, self.targets, self.alpha), self.seed, self.adapter)


class TokenMaskedLora(PlainLora):
    """A LoRA on the tokens that `masked.masks(model)` choose."""

    name: ClassVar[str] = "token-masked-lora"

    def add(self, model: Any) -> None:
        from uhr.models.adapters.masked import TokenMask, mask_adapter

        self._add_weights(model)
        mask_adapter(model, self.adapter, TokenMask())


class SingularComponents(AdapterSurgery):
    """URAE's minor or major components, `minor.add_minor`.

    `cache`, the folder of decompositions, depends on the machine and is not recorded.
    """

    name: ClassVar[str] = "singular-components"
    components: Which = "minor"
    over: tuple[str, ...] = ()
    cache: Path | None = Field(None, exclude=True)

    def add(self, model: Any) -> None:
        from uhr.models.adapters.minor import MinorSpec, add_minor

        spec = MinorSpec(self.rank, self.targets, self.components)
        add_minor(model, spec, self.cache, self.adapter, self.over)
