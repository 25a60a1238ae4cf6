"""The interface of trainable parts: what optimiser, average, checkpoint, estimate and export need of them."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from uhr.base.errors import UserError
from uhr.base.kinds import Kind
from uhr.models.specs.spec import ModelSpec

if TYPE_CHECKING:
    import torch

    from uhr.models.adapters.formats.usage import IntendedSampling
    from uhr.models.adapters.low_rank import LowRank
    from uhr.models.loading.opening import ModelName
    from uhr.models.publish.card import CardFacts


@dataclass(frozen=True)
class PartFile:
    """The content of a trained part's file in a checkpoint: tensors by name, float32, and metadata."""

    tensors: Mapping[str, torch.Tensor]
    metadata: Mapping[str, str]


def config_of(model: Any) -> str:
    """Return the content of a component's config.json, without where its weights were on this machine."""
    config = json.loads(model.to_json_string())
    config.pop("_name_or_path", None)
    return json.dumps(config, sort_keys=True)


class Trainable(Kind):
    """A part of a model that is trained, with its settings. The rest of the model is frozen."""

    file: ClassVar[str]
    """Name of its file in a checkpoint, without `.safetensors`."""

    component: ClassVar[Literal["transformer", "vae"]] = "transformer"
    """The component of the model that it is a part of."""

    removable: ClassVar[bool] = True
    """Whether `off` gives the model before training. Otherwise an objective's teacher is a second, frozen
    copy of the model."""

    needs_guide: ClassVar[bool] = False
    """Whether it acts on a guide's tokens alone, and so learns nothing without a guide."""

    quantised_base: ClassVar[bool] = False
    """Whether the frozen weights may be quantised."""

    divisible: ClassVar[bool] = False
    """Whether its parameters are weights of the backbone, which `runtime.shard` divides among processes.
    Otherwise each process has the whole part, and the frozen backbone is divided."""

    def check(self, spec: ModelSpec) -> None:
        """Raise UserError if it does not fit the model."""
        return

    @abstractmethod
    def prepare(self, model: Any, spec: ModelSpec, seed: int) -> None:
        """Freeze the model and make the part trainable. Raises UserError if the model lacks it.

        `seed` is that of its initial values. On the meta device only the structure is made.
        """

    @abstractmethod
    def parameters(self, model: Any) -> dict[str, torch.nn.Parameter]:
        """The trained parameters of a prepared model, by the names of its file."""

    def constants(self, model: Any) -> dict[str, torch.Tensor]:
        """Frozen tensors that belong to the part, by the names of its file; a checkpoint contains them."""
        return {}

    @abstractmethod
    def read(self, path: Path, model: Any, spec: ModelSpec) -> Mapping[str, torch.Tensor]:
        """Read a file of such a part, to train it further: the tensors of `parameters` and `constants`.

        `model` is prepared; it may be on the meta device. Raises UserError for another part.
        """

    @abstractmethod
    def off(self, model: Any) -> AbstractContextManager[None]:
        """A `with` block in which the model is the one before training, if the part is `removable`."""

    @abstractmethod
    def describe(self, spec: ModelSpec) -> str:
        """What is trained, in a few words for people."""

    def metadata(self, model: Any, over: Mapping[str, str], sampling: IntendedSampling) -> dict[str, str]:
        """The metadata of its file in a checkpoint, for the model that is trained.

        over: adapters that were fused with the weights, name -> SHA-256 of the file. A part that does not
        contain these weights needs them beside it.
        sampling: how its images are generated, by the recipe.
        """
        return {}

    @abstractmethod
    def export(self, part: PartFile, spec: ModelSpec, out: Path, facts: CardFacts) -> Path:
        """Write the part with a model card into a new folder, in the form that other programs load."""

    def plain_lora(self, part: PartFile, spec: ModelSpec) -> dict[str, LowRank]:
        """Return the part as a plain LoRA that is exactly the same function, by diffusers' paths.

        Raises UserError if there is none.
        """
        what = f"{self.describe(spec)}: no LoRA is the same function"
        raise UserError(what, "export it as a folder, without --to")

    @abstractmethod
    def sample_options(self, folder: Path, model: ModelName) -> list[str]:
        """The options of `uhr sample` for the model that was trained with the part exported to `folder`."""
