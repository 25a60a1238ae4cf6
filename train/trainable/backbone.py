"""The whole backbone as the trained part."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from uhr.base.errors import UserError
from uhr.models.specs.spec import ModelSpec
from uhr.train.trainable.base import PartFile, Trainable, config_of

if TYPE_CHECKING:
    import torch

    from uhr.models.adapters.formats.usage import IntendedSampling
    from uhr.models.loading.opening import ModelName
    from uhr.models.publish.card import CardFacts

CONFIG = "transformer_config"
"""The key in a file's metadata for the content of the transformer's config.json."""


class WholeBackbone(Trainable):
    """All weights of the backbone. Its file has the names of diffusers' own, in float32.

    An objective that needs the model before training gets a second, frozen copy of the backbone.
    """

    file: ClassVar[str] = "backbone"
    removable: ClassVar[bool] = False
    divisible: ClassVar[bool] = True

    kind: str = "backbone"

    def prepare(self, model: Any, spec: ModelSpec, seed: int) -> None:
        model.requires_grad_(True)

    def parameters(self, model: Any) -> dict[str, torch.nn.Parameter]:
        return dict(model.named_parameters())

    def read(self, path: Path, model: Any, spec: ModelSpec) -> Mapping[str, torch.Tensor]:
        from safetensors.torch import load_file

        return load_file(path)

    def off(self, model: Any) -> AbstractContextManager[None]:
        what = "the objective needs the model before training, and with trainable part 'backbone' all of it"
        raise UserError(f"{what} changes", "set `uses_teacher = True` in the objective's class")

    def describe(self, spec: ModelSpec) -> str:
        return "the whole backbone"

    def metadata(self, model: Any, over: Mapping[str, str], sampling: IntendedSampling) -> dict[str, str]:
        return {CONFIG: config_of(model)}

    def export(self, part: PartFile, spec: ModelSpec, out: Path, facts: CardFacts) -> Path:
        from uhr.models.publish.component import export_component

        return export_component("backbone", part.tensors, json.loads(part.metadata[CONFIG]), out, facts)

    def sample_options(self, folder: Path, model: ModelName) -> list[str]:
        from uhr.models.loading.opening import ModelName

        return ModelName(str(folder), model.spec, model.base or model.model).options()
