"""Images that the model generates as it is during a run, with any sampler, from prompts encoded before it."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import json
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from uhr.base.config import build
from uhr.base.files import atomic
from uhr.models.families.conditions import Prompt
from uhr.models.families.registry import FAMILIES
from uhr.models.files.run_steps import step_name, steps_in
from uhr.models.files.write import save_tensors
from uhr.models.loading.hashes import shown_hash
from uhr.models.loading.model import load_component, load_text_encoders, load_vae
from uhr.models.samplers import find_sampler, options_class, sampler_class
from uhr.models.samplers.core.sampler import plan_of_spec
from uhr.models.specs.spec import ModelSpec
from uhr.models.surgery.base import Surgery, compose
from uhr.models.zoo import Model
from uhr.train.encode.work.memory import text_device
from uhr.train.recipes.core.base import Recipe
from uhr.train.recipes.core.validation import ValidationImages
from uhr.train.run.monitoring.validation_grid import FILE as GRID
from uhr.train.run.monitoring.validation_grid import has_facts, write_grid

FOLDER = "validation"
"""The subfolder of a run."""

WITHOUT = "without"
"""The subfolder of `FOLDER` for images without the trained part, if they are not those of step 0."""

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
        off: as `Trainable.off`; None if the trained part cannot be left out. starts_off: whether the part
            changes nothing before the first step.
    """

    def __init__(
        self,
        out: Path,
        config: ValidationImages,
        model: Model,
        device: torch.device,
        surgeries: list[Surgery],
        off: Callable[[Any], AbstractContextManager[None]] | None,
        starts_off: bool,
    ) -> None:
        self.config, self.device, self.surgeries = config, device, surgeries
        self._off, self._starts_off = off, starts_off
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
        device = text_device(self.model, self._dtype, self.device)
        encoders = load_text_encoders(self.model, self._dtype, device)
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
        """Generate every image with the model as it is, into `step-XXXXXXXX/`, and return that folder.

        The first time, those without the trained part are generated too, into `WITHOUT`, from the same
        noise. `validation_grid.FILE` then has all images.
        """
        folder = self._step(step)
        with self._pipeline(transformer) as pipeline:
            self._generate(pipeline, folder, step)
            if self._off is not None and not (step == 0 and self._starts_off):
                self._without(pipeline, transformer)
        self._write_grid()
        return folder

    def _step(self, step: int) -> Path:
        return self.folder / step_name(step)

    def _without(self, pipeline: Any, transformer: Any) -> None:
        """Generate the images without the trained part, unless they exist."""
        assert self._off is not None
        if (self._starts_off and self._same(self._step(0))) or self._same(self.folder / WITHOUT):
            return
        with self._off(transformer):
            self._generate(pipeline, self.folder / WITHOUT, None)

    def _same(self, folder: Path) -> bool:
        """Whether a folder has the images of this configuration."""
        return all(
            has_facts(folder / f"{number:03d}.png", facts) for number, facts in enumerate(self._facts())
        )

    def _facts(self) -> list[dict[str, str]]:
        """What each image's PNG says of it, besides the step."""
        seed = self.config.seed
        return [{"prompt": text, "seed": str(seed + n)} for n, text in enumerate(self.config.prompts)]

    def _write_grid(self) -> None:
        """Write all images of the run so far into one, without the trained part first."""
        steps = steps_in(self.folder)
        columns = [(f"step {step}, adapter 1", self._step(step)) for step in steps]
        if self._off is None:
            columns = [(f"step {step}", self._step(step)) for step in steps]
        elif self._starts_off and self._same(self._step(0)):
            columns[0] = ("adapter 0 (step 0)", self._step(0))
        else:
            columns.insert(0, ("adapter 0", self.folder / WITHOUT))
        config = self.config
        parts = [f"sampler {config.sampler}"]
        parts += [] if config.size is None else ["{}x{}".format(*config.size)]
        parts += [] if config.steps is None else [f"{config.steps} steps"]
        parts += [] if config.guidance is None else [f"guidance {config.guidance:g}"]
        write_grid(self.folder / GRID, columns, self._facts(), ", ".join(parts))

    def _generate(self, pipeline: Any, folder: Path, step: int | None) -> None:
        """Write every image into `folder`; `step` is None of those without the trained part."""
        from PIL.PngImagePlugin import PngInfo

        config = self.config
        for number, facts in enumerate(self._facts()):
            (image,) = pipeline(
                **self._arguments(number, pipeline.guidance_kind),
                **({} if config.size is None else {"width": config.size[0], "height": config.size[1]}),
                num_inference_steps=config.steps,
                guidance_scale=config.guidance,
                # the CPU's generator: the same noise on every device
                generator=torch.Generator("cpu").manual_seed(config.seed + number),
                **config.options,
            ).images
            info = PngInfo()
            for name, value in {**facts, **({} if step is None else {"step": str(step)})}.items():
                info.add_itxt(name, value)
            with atomic(folder / f"{number:03d}.png") as temporary:
                image.save(temporary, format="PNG", pnginfo=info)

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
