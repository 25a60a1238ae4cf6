"""Images that the model generates as it is during a run, with any sampler, from prompts encoded before it."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import json
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from uhr.base.config import build
from uhr.base.files import atomic
from uhr.models.families.conditions import Prompt
from uhr.models.families.registry import FAMILIES
from uhr.models.files.write import save_tensors
from uhr.models.loading.hashes import shown_hash
from uhr.models.loading.model import load_component, load_text_encoders, load_vae
from uhr.models.samplers import find_sampler, options_class, sampler_class
from uhr.models.samplers.core.sampler import plan_of_spec
from uhr.models.specs.spec import ModelSpec
from uhr.models.surgery.base import Surgery, compose
from uhr.models.zoo import Model
from uhr.train.recipes.core.base import Recipe
from uhr.train.recipes.core.validation import ValidationImages

FOLDER = "validation"
"""The subfolder of a run."""

PROMPTS = "prompts.safetensors"
_KEY = "uhr_prompts"
"""The key in the metadata of `PROMPTS` for what the embeddings are of."""


def check(recipe: Recipe, spec: ModelSpec) -> None:
    """Raise UserError if the sampler cannot generate the images of the recipe's validation."""
    config = recipe.validation.images
    if config is None:
        return
    sampler_class(config.sampler, spec.family)
    options = build(options_class(config.sampler), config.options, "validation.images.options")
    size = None if config.size is None else (config.size[1], config.size[0])
    plan_of_spec(find_sampler(config.sampler), spec, options, size, config.steps, guidance=config.guidance)


class ValidationImageWriter:
    """Generates the images of one run. Text encoders are in memory only while it is made.

    Args:
        out: the run's folder. dtype: of the text encoders and the VAE.
        surgeries: those of training that a sampler applies itself.
    """

    def __init__(
        self,
        out: Path,
        config: ValidationImages,
        model: Model,
        device: torch.device,
        surgeries: list[Surgery],
    ) -> None:
        self.config, self.device, self.surgeries = config, device, surgeries
        self.model = model.fetched([*model.spec.text_components, "vae", "scheduler"])
        self.folder = out / FOLDER
        self._dtype = "float32" if device.type == "cpu" else "bfloat16"
        self._embeds = self._read() or self._encode()

    def _key(self) -> str:
        """What the embeddings depend on."""
        names = self.model.spec.text_components
        encoders = {name: shown_hash(self.model.folder / name, name) for name in names}
        parts = [list(self.config.prompts), encoders, dict(self.model.spec.text_lengths), self._dtype]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def _read(self) -> dict[str, torch.Tensor] | None:
        file = self.folder / PROMPTS
        if not file.is_file():
            return None
        with safe_open(file, framework="pt") as opened:
            if (opened.metadata() or {}).get(_KEY) != self._key():
                return None
            # a file sorts them by name
            return {name: opened.get_tensor(name) for name in FAMILIES[self.model.spec.family].text_tensors}

    def _encode(self) -> dict[str, torch.Tensor]:
        """Encode the prompts and, last, the empty one; keep them in the run's folder."""
        family = FAMILIES[self.model.spec.family]
        encoders = load_text_encoders(self.model, self._dtype, str(self.device))
        found: dict[str, list[torch.Tensor]] = {name: [] for name in family.text_tensors}
        for text in (*self.config.prompts, ""):
            for name, tensor in family.embed(encoders, Prompt(text)).texts.items():
                found[name].append(tensor.cpu())
        del encoders
        _free()
        tensors = {name: torch.cat(each) for name, each in found.items()}
        save_tensors(tensors, self.folder / PROMPTS, {_KEY: self._key()})
        return tensors

    def write(self, transformer: Any, step: int) -> Path:
        """Generate every image with the model as it is, into `step-XXXXXXXX/`, and return that folder."""
        from PIL.PngImagePlugin import PngInfo

        config, folder = self.config, self.folder / f"step-{step:08d}"
        with self._pipeline(transformer) as pipeline:
            for number, prompt in enumerate(config.prompts):
                (image,) = pipeline(
                    **self._arguments(number, pipeline.guidance_kind),
                    **({} if config.size is None else {"width": config.size[0], "height": config.size[1]}),
                    num_inference_steps=config.steps,
                    guidance_scale=config.guidance,
                    # the CPU's generator: the same noise on every device
                    generator=torch.Generator("cpu").manual_seed(config.seed + number),
                    **config.options,
                ).images
                facts = PngInfo()
                for name, value in {"prompt": prompt, "seed": config.seed + number, "step": step}.items():
                    facts.add_itxt(name, str(value))
                with atomic(folder / f"{number:03d}.png") as temporary:
                    image.save(temporary, format="PNG", pnginfo=facts)
        return folder

    def _arguments(self, number: int, guidance: str) -> dict[str, Any]:
        """The embeddings of one prompt, and of the empty one where two passes need it."""
        own = _arguments({name: t[number : number + 1] for name, t in self._embeds.items()})
        if guidance != "cfg":
            return own
        null = _arguments({name: t[-1:] for name, t in self._embeds.items()})
        return own | {f"negative_{name}": tensor for name, tensor in null.items()}

    @contextlib.contextmanager
    def _pipeline(self, transformer: Any) -> Generator[Any]:
        """The sampler's pipeline around the live transformer, with a VAE that is freed afterwards."""
        spec = self.model.spec
        parts: dict[str, Any] = dict.fromkeys(spec.components)
        parts["scheduler"] = load_component(self.model, "scheduler")
        parts["vae"] = load_vae(self.model, self._dtype, str(self.device))
        parts["transformer"] = transformer
        pipeline = sampler_class(self.config.sampler, spec.family)(**parts, **spec.pipeline_config)
        pipeline.set_progress_bar_config(disable=True)
        for surgery in reversed(self.surgeries):
            surgery.revert(transformer)
        try:
            yield pipeline
        finally:
            compose(transformer, self.surgeries)
            parts.clear()
            pipeline.vae = None
            _free()


def _arguments(texts: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A family's text tensors, of which a second is the pooled one, as arguments of a pipeline."""
    return dict(zip(("prompt_embeds", "pooled_prompt_embeds"), texts.values(), strict=False))


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
