"""Resolve a request into a setup, and check an item as a call that can be generated.

Nothing here loads weights, so an invalid request fails within a second.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from uhr.base.config import Config, build
from uhr.base.errors import UserError, unknown
from uhr.base.files import user_path
from uhr.models.generate.input_images import InputImage, open_image
from uhr.models.generate.request import Adapter, Item, Request
from uhr.models.loading import offload, quantize
from uhr.models.loading.hashes import (
    FileState,
    config_hash,
    file_hash,
    file_state,
    hashed_files,
    same_bytes,
    shown_hash,
)
from uhr.models.loading.model import DTYPES, pick_device
from uhr.models.loading.opening import Model, open_model
from uhr.models.loading.other_weights import check_weights
from uhr.models.loading.scheduler_config import SchedulerConfig
from uhr.models.ops.fitting import Fit, check_patch, fit, target_size
from uhr.models.ops.sizes import Size
from uhr.models.samplers import check_name, check_takes_image, find_sampler, options_class, sampler_class
from uhr.models.samplers.core.facts import ModelFacts
from uhr.models.samplers.core.plan import SamplingPlan, SamplingRequest
from uhr.models.samplers.core.sampler import Sampler, make_plan
from uhr.models.specs.spec import ModelSpec

WEIGHTED = ("transformer", "vae", "text_encoder", "text_encoder_2")
"""Components that have weights of their own."""


@dataclass(frozen=True)
class CheckedCall:
    """One image that can be generated: its item, with every open number filled in. Sizes in px.

    `height` and `width` are those of the finished image; the plan's are larger if an input image is not a
    whole number of tokens (windows, grids). `given` is that image, opened, and `fit` how it is padded to a
    size that can be generated.
    """

    item: Item
    height: int
    width: int
    plan: SamplingPlan
    given: InputImage | None = None
    fit: Fit | None = None

    @property
    def steps(self) -> int:
        return self.plan.request.steps

    @property
    def guidance(self) -> float | None:
        """The call's guidance; None if the sampler's published numbers apply, or there is no guidance."""
        return self.plan.guidance

    @property
    def planned(self) -> Size:
        """The size that the sampler generates."""
        return self.plan.request.size


@dataclass(frozen=True)
class SamplerChoice:
    """A sampler with its options on a backbone, known without any file of a model."""

    request: Request
    spec: ModelSpec
    sampler: Sampler
    facts: ModelFacts
    options: Any
    steps: int

    @property
    def pipeline_class(self) -> Any:
        """The diffusers pipeline of the sampler on the backbone's family."""
        return sampler_class(self.request.sampler, self.spec.family)

    @classmethod
    def of(cls, request: Request, spec: ModelSpec) -> SamplerChoice:
        """Resolve the sampler of a request. Raises UserError if it does not run on the backbone's family, or
        does not take the options."""
        if request.steps is not None and request.steps < 1:
            raise UserError(f"--steps {request.steps} is invalid", "give at least 1")
        if request.guidance is not None and spec.guidance == "none":
            raise UserError(f"{spec.name} takes no guidance", "leave out --guidance")
        sampler_class(request.sampler, spec.family)  # raises UserError if there is none
        sampler = find_sampler(request.sampler)
        options = _options(options_class(request.sampler), request)
        facts = sampler.facts_of(spec, options)
        return cls(
            request, spec, sampler, facts, options, sampler.command_steps(facts, options, request.steps)
        )

    def call(self, item: Item) -> CheckedCall:
        """Check an item and fill in what it leaves open. Raises UserError for a size that cannot be
        generated, an image that cannot be opened or used, and a negative prompt that would have no effect."""
        if item.image is not None:
            return self._of_image(item, item.image)
        if self.request.scale is not None:
            raise UserError(
                f"--scale {self.request.scale:g} is given without an image", "give --size instead"
            )
        size = self._size(item) or self.sampler.default_size(self.facts)
        return CheckedCall(item, size[0], size[1], self._plan(item, size))

    def _of_image(self, item: Item, path: Path) -> CheckedCall:
        check_takes_image(self.request.sampler)
        given, rule = open_image(user_path(path)), self.sampler.sizes(self.facts, self.options)
        scale = self.sampler.default_scale()
        target = target_size(given.size, self.request.scale, self._size(item), scale)
        least = rule.least or self.facts.native
        check_patch(given.size, target, least, whole=rule.above is not None)
        if self.sampler.fits_images:
            found, planned = Fit(given.size, target, given.size, target), rule.whole_units(target)
        else:
            found = fit(given.size, target, lambda height, width: rule.smallest((height, width)))
            planned = found.made
        return CheckedCall(item, target[0], target[1], self._plan(item, planned, target), given, found)

    def _size(self, item: Item) -> Size | None:
        """Requested height and width."""
        size = item.size or self.request.size
        return None if size is None else (size[1], size[0])

    def _plan(self, item: Item, size: Size, cut: Size | None = None) -> SamplingPlan:
        """The plan for a size that is generated, and cut to `cut`."""
        request = SamplingRequest(
            *size,
            self.steps,
            image=item.image is not None,
            guidance=self.request.guidance,
            negative=item.negative is not None,
            cut=cut,
        )
        return make_plan(self.sampler, self.facts, request, self.options)


def _options(cls: type[Config], request: Request) -> Any:
    """The sampler's options. Setting one part of an option (`toolkit.ntk`) keeps the sampler's own values of
    its other parts."""
    tree = dict(request.options)
    for name, value in tree.items():
        usual = (
            cls.model_fields[name].get_default(call_default_factory=True)
            if name in cls.model_fields
            else None
        )
        if isinstance(usual, Config) and isinstance(value, Mapping):
            tree[name] = {**usual.model_dump(), **value}
    return build(cls, tree, f"sampler {request.sampler}")


@dataclass(frozen=True)
class AdapterFacts:
    """Facts from an adapter's files: the file of peft's settings, if one was read, and notes for the user."""

    config: Path | None
    notes: tuple[str, ...]


def adapter_id(entry: Mapping[str, Any]) -> str:
    """Return the identity of an adapter in a record: the hashes of its file and of its settings file."""
    return "+".join(filter(None, (entry["sha256"], entry.get("config"))))


def usual_dtype(device: str) -> str:
    """Return the dtype that `--dtype auto` means on a device."""
    return "float32" if device.partition(":")[0] == "cpu" else "bfloat16"


def check_names(request: Request) -> None:
    """Raise UserError for an unknown sampler, dtype, offload or quantisation. No file is opened."""
    check_name(request.sampler)
    if request.dtype not in ("auto", *DTYPES):
        raise unknown("dtype", request.dtype, ("auto", *DTYPES), "--dtype")
    if request.offload is not None:
        offload.named(request.offload)
    if request.quantize is not None:
        quantize.check_name(request.quantize)


@dataclass(frozen=True)
class Setup:
    """A request with every name resolved and every file found; nothing is loaded."""

    request: Request
    model: Model
    choice: SamplerChoice
    dtype: str
    device: str
    adapter_facts: tuple[AdapterFacts, ...] = ()
    states: Mapping[Path, FileState] = field(default_factory=dict)
    """The state of every file of weights and adapters when the setup was made. They are checked, loaded and
    hashed one after another, and must be the same bytes each time."""

    @classmethod
    def of(cls, request: Request, fetch: bool = True) -> Setup:
        """Resolve a request. Raises UserError for everything in it that is invalid whatever the image is.
        Without `fetch` nothing is downloaded from the hub, and only its cache is read."""
        check_names(request)
        model = open_model(request.model, request.spec, base=request.base, fetch=fetch)
        model = model.with_vae(request.weights.get("vae"))
        if model.backbone is not None and request.transformer is not None:
            raise UserError(
                f"--transformer {request.transformer} and a backbone as --model", "give one of them"
            )
        SchedulerConfig.of(model.spec.scheduler_config, f"scheduler of {model.source.text}")
        choice = SamplerChoice.of(request, model.spec)
        for name, path in request.weights.items():
            if not path.exists():
                raise UserError(
                    f"--{name} {path} does not exist", "name a folder, or a .safetensors or .gguf file"
                )
            check_weights(name, path, model.spec, spec_given=request.spec is not None)
        if (backbone := request.weights.get("transformer")) is not None:
            model = model.with_backbone(backbone, spec_given=request.spec is not None)
        place = pick_device(request.device)
        if request.offload is not None:
            offload.check(request.offload, place)
        if request.quantize is not None:
            quantize.check(request.quantize, place)
        states = {file: file_state(file) for file in _files(model, request)}
        facts = _check_adapters(model, choice, request.adapters)
        dtype = usual_dtype(place.type) if request.dtype == "auto" else request.dtype
        return cls(request, model, choice, dtype, str(place), facts, states)

    @property
    def spec(self) -> ModelSpec:
        return self.model.spec

    @cached_property
    def weights(self) -> dict[str, dict[str, Any]]:
        """For every component the file or folder that the user named for its weights (None: the model's own),
        their SHA-256 (`hashes.hash_of`; all files of a scheduler or tokenizer), and the hash of its
        configuration. A hub model must have been loaded before."""
        return {name: self._hashed(name) for name in self.spec.components}

    @property
    def elsewhere(self) -> dict[str, Path]:
        """Weights outside the model's folder, by component."""
        return {**self.model.weights, **self.request.weights}

    def _hashed(self, name: str) -> dict[str, Any]:
        named, own = self.elsewhere.get(name), self.model.folder / name
        return {
            "path": None if named is None else str(named),
            "sha256": shown_hash(named or own, name),
            # a lone file is loaded by the configuration of the model's own component
            "config": config_hash(named if named is not None and named.is_dir() else own),
        }

    def hash_weights(self) -> None:
        """Compute the hashes now, with a progress bar if that takes long.

        Raises UserError if a file changed after the setup was made, since it is unknown which version was
        loaded.
        """
        _ = self.weights, self.adapters
        for file, before in self.states.items():
            if not file.exists() or not same_bytes(before, file_state(file)):
                what = f"{file} changed after it was checked"
                raise UserError(what, "run the command again when nothing writes to it")

    @cached_property
    def adapters(self) -> list[dict[str, Any]]:
        """For every adapter its file, its scale, and the SHA-256 of the file and of its settings file (None
        if none was read)."""
        return [
            {
                "file": str(each.file),
                "scale": each.scale,
                "sha256": file_hash(each.file),
                "config": None if facts.config is None else file_hash(facts.config),
            }
            for each, facts in zip(self.request.adapters, self.adapter_facts, strict=True)
        ]

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes on adapters, for the record of every image."""
        return tuple(dict.fromkeys(note for facts in self.adapter_facts for note in facts.notes))

    def call(self, item: Item) -> CheckedCall:
        """Check an item and fill in what it leaves open; see `SamplerChoice.call`."""
        return self.choice.call(item)

    def preview_names(self, call: CheckedCall) -> list[str]:
        """Return the names of the stages before the last. Raises UserError if there is only one stage."""
        names = [stage.name for stage in call.plan.stages[:-1]]
        if names:
            return names
        name = self.request.sampler
        what = f"{name} generates this image in one stage, and previews show those before the last"
        raise UserError(what, "leave out --previews")


def _files(model: Model, request: Request) -> Iterator[Path]:
    """Files of weights and adapters on the disk; those of a hub model may not have been fetched yet."""
    named = {**model.weights, **request.weights}
    for name in model.spec.components:
        path = named.get(name, model.folder / name)
        yield from [path] if path.is_file() else hashed_files(path)
    yield from (adapter.file for adapter in request.adapters)


def _check_adapters(
    model: Model, choice: SamplerChoice, adapters: tuple[Adapter, ...]
) -> tuple[AdapterFacts, ...]:
    """Check, without weights, that every adapter can be read, fits the backbone's shape, and can be combined
    with the others and with the sampler."""
    if not adapters:
        return ()
    files = [adapter.file for adapter in adapters]
    from uhr.models.adapters.files import check, read_all
    from uhr.models.loading.model import empty_transformer

    transformer = empty_transformer(model)
    found = read_all(files, transformer)
    check(found, transformer, choice.sampler.guide_tokens)
    return tuple(AdapterFacts(each.config, each.notes) for each in found.values())
