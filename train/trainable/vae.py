"""The VAE, or its decoder, as the trained part."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from uhr.base.errors import UserError
from uhr.models.specs.spec import ModelSpec
from uhr.train.trainable.base import PartFile, Trainable, config_of

if TYPE_CHECKING:
    import torch

    from uhr.models.adapters.formats.usage import IntendedSampling
    from uhr.models.loading.opening import ModelName
    from uhr.models.publish.card import CardFacts

CONFIG = "vae_config"
"""The key in a file's metadata for the content of the VAE's config.json."""


class Vae(Trainable):
    """The VAE of a model. Its file has all weights under diffusers' own names, in float32.

    part: "decoder" leaves the encoder as it is, so that latents that were encoded before stay valid, and so
        does a backbone that was trained on them. "whole" trains both.
    """

    file: ClassVar[str] = "vae"
    component: ClassVar[Literal["transformer", "vae"]] = "vae"
    removable: ClassVar[bool] = False

    kind: str = "vae"
    part: Literal["decoder", "whole"] = "decoder"

    def prepare(self, model: Any, spec: ModelSpec, seed: int) -> None:
        """Freeze the VAE and make the part trainable. `seed` is not used."""
        model.requires_grad_(self.part == "whole")
        model.decoder.requires_grad_(True)
        if model.post_quant_conv is not None:
            model.post_quant_conv.requires_grad_(True)

    def parameters(self, model: Any) -> dict[str, torch.nn.Parameter]:
        return {name: p for name, p in model.named_parameters() if p.requires_grad}

    def constants(self, model: Any) -> dict[str, torch.Tensor]:
        trained = self.parameters(model)
        return {name: tensor for name, tensor in model.state_dict().items() if name not in trained}

    def read(self, path: Path, model: Any, spec: ModelSpec) -> Mapping[str, torch.Tensor]:
        from safetensors.torch import load_file

        found, own = load_file(path), {**self.parameters(model), **self.constants(model)}
        for name in sorted(found.keys() | own.keys()):
            if name not in found or name not in own or found[name].shape != own[name].shape:
                raise UserError(f"{path} is not a VAE of {spec.name}: {name} differs", "name one of its VAEs")
        return found

    def off(self, model: Any) -> AbstractContextManager[None]:
        raise AssertionError("objectives of a VAE have no teacher")

    def describe(self, spec: ModelSpec) -> str:
        return "the VAE's decoder" if self.part == "decoder" else "the whole VAE"

    def metadata(self, model: Any, over: Mapping[str, str], sampling: IntendedSampling) -> dict[str, str]:
        return {CONFIG: config_of(model)}

    def export(self, part: PartFile, spec: ModelSpec, out: Path, facts: CardFacts) -> Path:
        from uhr.models.publish.component import export_component

        return export_component("vae", part.tensors, json.loads(part.metadata[CONFIG]), out, facts)

    def sample_options(self, folder: Path, model: ModelName) -> list[str]:
        return [*model.options(), "--vae", str(folder)]
