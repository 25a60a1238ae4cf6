"""The pipelines of each family of backbones: diffusers' stock pipeline with a sampler's `__call__`."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Generator, Iterator, Sequence

import torch
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline
from diffusers.pipelines.flux2.pipeline_flux2_klein import Flux2KleinPipeline
from diffusers.utils import scale_lora_layers, unscale_lora_layers

from uhr.base.errors import load_object
from uhr.models.families.conditions import Prompt
from uhr.models.families.flux1 import Flux1
from uhr.models.families.flux2 import TEXT_LAYERS, Flux2
from uhr.models.samplers.core.options import SamplerOptions
from uhr.models.samplers.core.pipelines.base import SamplerPipeline
from uhr.models.samplers.core.sampler import Sampler, pipeline_name
from uhr.models.specs.registry import FAMILY_SPECS

FLUX1, FLUX2 = Flux1(), Flux2()


class Flux1SamplerPipeline(SamplerPipeline, FluxPipeline):
    """A sampler on FLUX.1, with the components of diffusers' FluxPipeline."""

    family = FLUX1

    def encode_prompt(
        self,
        prompt: str | list[str] | None,
        prompt_2: str | list[str] | None = None,
        device: torch.device | None = None,
        num_images_per_prompt: int = 1,
        prompt_embeds: torch.Tensor | None = None,
        pooled_prompt_embeds: torch.Tensor | None = None,
        max_sequence_length: int = 512,
        lora_scale: float | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
        """Encode prompts like the stock pipeline, by the family's `embed`; cut prompts are logged in one
        line."""
        with self._text_lora(lora_scale):
            given = Prompt(prompt, prompt_2 or None, prompt_embeds, pooled_prompt_embeds)
            found = FLUX1.embed(FLUX1.encoders(self, max_sequence_length), given)
        self.log_cuts(found.counts)
        device = device or self._execution_device
        texts = {
            name: tensor.to(device).repeat_interleave(num_images_per_prompt, dim=0)
            for name, tensor in found.texts.items()
        }
        text = texts["t5"]
        dtype = self.transformer.dtype if self.text_encoder is None else self.text_encoder.dtype
        return text, texts.get("pooled"), torch.zeros(text.shape[1], 3, device=device, dtype=dtype)

    @contextlib.contextmanager
    def _text_lora(self, scale: float | None) -> Generator[None]:
        """Scale the text encoders' LoRA layers for a block, as the stock pipeline does; None changes
        nothing."""
        encoders = [each for each in (self.text_encoder, self.text_encoder_2) if each is not None]
        if scale is not None:
            self._lora_scale = scale
            for encoder in encoders:
                scale_lora_layers(encoder, scale)
        try:
            yield
        finally:
            for encoder in encoders:
                unscale_lora_layers(encoder, scale)


class Flux2SamplerPipeline(SamplerPipeline, Flux2KleinPipeline):
    """A sampler on FLUX.2 [klein], with the components of diffusers' Flux2KleinPipeline."""

    family = FLUX2

    def encode_prompt(
        self,
        prompt: str | list[str] | None,
        device: torch.device | None = None,
        num_images_per_prompt: int = 1,
        prompt_embeds: torch.Tensor | None = None,
        max_sequence_length: int = 512,
        text_encoder_out_layers: Sequence[int] = TEXT_LAYERS,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Encode prompts like the stock pipeline, by the family's `embed`; cut prompts are logged in one
        line."""
        text = "" if prompt is None and prompt_embeds is None else prompt
        given = Prompt(text, embeds=prompt_embeds)
        found = FLUX2.embed(FLUX2.encoders(self, max_sequence_length), given, text_encoder_out_layers)
        self.log_cuts(found.counts)
        device = device or self._execution_device
        embeds = found.texts["qwen3"].to(device).repeat_interleave(num_images_per_prompt, dim=0)
        return embeds, self._prepare_text_ids(embeds).to(device)


@functools.cache
def pipeline_class(sampler: type[Sampler], family: str) -> type[SamplerPipeline]:
    """Return the pipeline class of a sampler on a family of backbones. Every call returns the same class."""
    base = load_object(FAMILY_SPECS[family].pipeline, "pipeline")
    name = pipeline_name(sampler, family)
    texts = [inspect.getdoc(sampler), "Options:", *_documented(sampler.Options)]
    namespace = {
        "sampler": sampler(),
        "Options": sampler.Options,
        "__module__": sampler.__module__,
        "__qualname__": name,
        "__doc__": "\n\n".join(text for text in texts if text),
    }
    return type(name, (base,), namespace)


def _documented(options: type[SamplerOptions]) -> Iterator[str]:
    """The docstrings of an options class and its bases, shared options first."""
    for cls in reversed(options.__mro__):
        if issubclass(cls, SamplerOptions) and "__doc__" in vars(cls) and cls.__doc__:
            yield inspect.cleandoc(cls.__doc__)
