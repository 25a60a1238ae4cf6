"""From a request to a setup in which every name is resolved, and from an item to a call that can be made.

Nothing here loads weights: what cannot be made is refused within a second.
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
from uhr.models.generate.images import Given, open_image
from uhr.models.generate.request import Adapter, Item, Request
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
from uhr.models.loading.offload import check as check_offload
from uhr.models.loading.opening import Model, open_model
from uhr.models.loading.other_weights import check_weights
from uhr.models.loading.quantize import check as check_quantize
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
class Call:
    """One image that can be made: its item, and every number that was left open filled in. Sizes in px.

    `height` and `width` are those of the finished image; the plan's are larger where a given image is no
    whole number of tokens (windows, grids). `given` is that image, opened, and `fit` how it is brought to a
    size that can be generated.
    """

    item: Item
    height: int
    width: int
    plan: SamplingPlan
    given: Given | None = None
    fit: Fit | None = None

    @property
    def steps(self) -> int:
        return self.plan.request.steps

    @property
    def guidance(self) -> float | None:
        """The call's number; None leaves the sampler's published numbers, or there is none."""
        return self.plan.guidance

    @property
    def planned(self) -> Size:
        """The size that the sampler generates."""
        return self.plan.request.size


@dataclass(frozen=True)
class Method:
    """A sampler with its options on a backbone: what is known without any file of a model."""

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
    def of(cls, request: Request, spec: ModelSpec) -> Method:
        """UserError for a sampler that the backbone's family has not, and for options that it does not
        take."""
        if request.steps is not None and request.steps < 1:
            raise UserError(f"--steps {request.steps}", "give at least 1")
        if request.guidance is not None and spec.guidance == "none":
            raise UserError(f"{spec.name} takes no guidance", "leave out --guidance")
        sampler_class(request.sampler, spec.family)  # whether there is one
        sampler = find_sampler(request.sampler)
        options = _options(options_class(request.sampler), request)
        facts = sampler.facts_of(spec, options)
        return cls(
            request, spec, sampler, facts, options, sampler.command_steps(facts, options, request.steps)
        )

    def call(self, item: Item) -> Call:
        """UserError for a size that cannot be made, an image that cannot be opened or taken, and a negative
        prompt that would have no effect."""
        if item.image is not None:
            return self._of_image(item, item.image)
        if self.request.scale is not None:
            raise UserError(
                f"--scale {self.request.scale:g} is given without an image", "give --size instead"
            )
        size = self._size(item) or self.sampler.default_size(self.facts)
        return Call(item, size[0], size[1], self._plan(item, size))

    def _of_image(self, item: Item, path: Path) -> Call:
        check_takes_image(self.request.sampler)
        given, rule = open_image(user_path(path)), self.sampler.sizes(self.facts, self.options)
        scale = self.sampler.default_scale()
        target = target_size(given.size, self.request.scale, self._size(item), scale)
        least = rule.least or self.facts.native
        check_patch(given.size, target, least, whole=rule.above is not None)

        def makeable(height: int, width: int) -> Size:
            return rule.smallest((height, width))

        if self.sampler.fits_images:
            found, planned = Fit(given.size, target, given.size, target), makeable(*target)
        else:
            found = fit(given.size, target, makeable)
            planned = found.made
        return Call(item, target[0], target[1], self._plan(item, planned, target), given, found)

    def _size(self, item: Item) -> Size | None:
        """Height and width that were asked for."""
        size = item.size or self.request.size
        return None if size is None else (size[1], size[0])

    def _plan(self, item: Item, size: Size, cut: Size | None = None) -> SamplingPlan:
        """Of a size that is generated, and cut where that is given; UserError for what cannot be done."""
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
    """The sampler's options. What is said of one part of an option (`toolkit.ntk`) leaves the sampler's own
    values of its other parts."""
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
    """What an adapter's file and those beside it say of how it acts: peft's settings that were read from a
    file of their own, and what a user must know."""

    config: Path | None
    notes: tuple[str, ...]


def adapter_id(entry: Mapping[str, Any]) -> str:
    """What an adapter in a record is identified by: the hash of its file, and of the settings beside it."""
    return "+".join(filter(None, (entry["sha256"], entry.get("config"))))


def usual_dtype(device: str) -> str:
    """What `--dtype auto` is on a device."""
    return "float32" if device.partition(":")[0] == "cpu" else "bfloat16"


@dataclass(frozen=True)
class Setup:
    """A request of which every name is resolved, its files found, nothing loaded."""

    request: Request
    model: Model
    method: Method
    dtype: str
    device: str
    adapter_facts: tuple[AdapterFacts, ...] = ()
    states: Mapping[Path, FileState] = field(default_factory=dict)
    """Of every file of weights and adapters that was there when the setup was made: they are checked, loaded
    and hashed one after another, and have to be the same bytes each time."""

    @classmethod
    def of(cls, request: Request, fetch: bool = True) -> Setup:
        """UserError for whatever of a request cannot be, whichever image it is for. Without `fetch` the hub
        is not asked, and its cache must do."""
        check_name(request.sampler)
        if request.dtype not in ("auto", *DTYPES):
            raise unknown("dtype", request.dtype, ("auto", *DTYPES), "--dtype")
        model = open_model(request.model, request.spec, base=request.base, fetch=fetch)
        if model.backbone is not None and request.transformer is not None:
            raise UserError(
                f"--transformer {request.transformer} and a backbone as --model", "give one of them"
            )
        SchedulerConfig.of(model.spec.scheduler_config, f"scheduler of {model.source.text}")
        method = Method.of(request, model.spec)
        for name, path in request.weights.items():
            if not path.exists():
                raise UserError(
                    f"--{name} {path} is not there", "name a folder, or a .safetensors or .gguf file"
                )
            check_weights(name, path, model.spec, told=request.spec is not None)
        if (backbone := request.weights.get("transformer")) is not None:
            model = model.with_backbone(backbone, spec_given=request.spec is not None)
        place = pick_device(request.device)
        if request.offload is not None:
            check_offload(request.offload, place)
        if request.quantize is not None:
            check_quantize(request.quantize, place)
        states = {file: file_state(file) for file in _files(model, request)}
        facts = _check_adapters(model, method, request.adapters)
        dtype = usual_dtype(place.type) if request.dtype == "auto" else request.dtype
        return cls(request, model, method, dtype, str(place), facts, states)

    @property
    def spec(self) -> ModelSpec:
        return self.model.spec

    @cached_property
    def weights(self) -> dict[str, dict[str, Any]]:
        """Every component: the file or folder that the user named for its weights (None: the model's own),
        their SHA-256 (`hashes.hash_of`; of a scheduler and a tokenizer all files), and the hash of its
        configuration. A hub's model must have been loaded before."""
        return {name: self._hashed(name) for name in self.spec.components}

    @property
    def elsewhere(self) -> dict[str, Path]:
        """Components whose weights are not in the model's folder."""
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
        """Have the hashes made now, with a bar where that takes long, and not in the middle of an image.
        Raises UserError where a file changed after the setup was made: nobody knows which of its versions is
        in memory."""
        _ = self.weights, self.adapters
        for file, before in self.states.items():
            if not file.exists() or not same_bytes(before, file_state(file)):
                what = f"{file} changed after it was checked"
                raise UserError(what, "run the command again when nothing writes to it")

    @cached_property
    def adapters(self) -> list[dict[str, Any]]:
        """Every adapter: its file, its scale, the SHA-256 of the file and of the settings beside it (None:
        none were read)."""
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
        """What a user must know of every image that is made so."""
        return tuple(dict.fromkeys(note for facts in self.adapter_facts for note in facts.notes))

    def call(self, item: Item) -> Call:
        """The item, checked, with what it left open filled in."""
        return self.method.call(item)

    def previewed(self, call: Call) -> list[str]:
        """The names of the stages before the last; UserError for a call of one, before which there is nothing
        to see."""
        names = [stage.name for stage in call.plan.stages[:-1]]
        if names:
            return names
        name = self.request.sampler
        what = f"{name} paints this image in one stage, and previews are of those before the last"
        raise UserError(what, "leave out --previews")


def _files(model: Model, request: Request) -> Iterator[Path]:
    """Files of weights and adapters that are on the disk; a hub's model may not be there yet."""
    named = {**model.weights, **request.weights}
    for name in model.spec.components:
        path = named.get(name, model.folder / name)
        yield from [path] if path.is_file() else hashed_files(path)
    yield from (adapter.file for adapter in request.adapters)


def _check_adapters(model: Model, method: Method, adapters: tuple[Adapter, ...]) -> tuple[AdapterFacts, ...]:
    """Every adapter must be understood, fit the backbone's shape, and make sense with the others and with the
    sampler: all of it known without weights."""
    if not adapters:
        return ()
    files = [adapter.file for adapter in adapters]
    from uhr.models.adapters.files import check, read_all
    from uhr.models.loading.model import empty_transformer

    transformer = empty_transformer(model)
    found = read_all(files, transformer)
    check(found, transformer, method.sampler.guide_tokens)
    return tuple(AdapterFacts(each.config, each.notes) for each in found.values())
