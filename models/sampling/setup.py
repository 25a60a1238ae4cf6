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
from uhr.models.fitting import Fit, check_patch, fit, target_size
from uhr.models.hashes import (
    FileState,
    config_hash,
    file_hash,
    file_state,
    same_bytes,
    shown_hash,
    weight_files,
)
from uhr.models.loading import DTYPES, pick_device
from uhr.models.offload import check as check_offload
from uhr.models.opening import Model, open_model
from uhr.models.other_weights import check_weights
from uhr.models.quantize import check as check_quantize
from uhr.models.samplers import check_name, check_takes_picture, sampler_class
from uhr.models.sampling.pictures import Given, open_picture
from uhr.models.sampling.request import Adapter, Item, Request
from uhr.models.scheduler_config import SchedulerConfig
from uhr.models.sizes import Size
from uhr.models.spec import ModelSpec
from uhr.models.stages import Stage

WEIGHTED = ("transformer", "vae", "text_encoder", "text_encoder_2")
"""Components that have weights of their own."""


@dataclass(frozen=True)
class Call:
    """One picture that can be made: its item, and every number that was left open filled in. Sizes in px.

    `guidance` None leaves the sampler's published numbers, or there is none. `height` and `width` are those
    of the finished picture, `planned` is what the sampler's plan is of: more than those where a given picture
    is no whole number of tokens (windows, grids). `given` is that picture, opened, and `fit` how it is
    brought to a size that can be made.
    """

    item: Item
    height: int
    width: int
    steps: int
    guidance: float | None
    planned: Size
    given: Given | None = None
    fit: Fit | None = None


@dataclass(frozen=True)
class Method:
    """A sampler with its options on a backbone: what is known without any file of a model."""

    request: Request
    spec: ModelSpec
    pipeline_class: Any
    options: Any
    steps: int

    @classmethod
    def of(cls, request: Request, spec: ModelSpec) -> Method:
        """UserError for a sampler that the backbone's family has not, and for options that it does not
        take."""
        if request.steps is not None and request.steps < 1:
            raise UserError(f"--steps {request.steps}", "give at least 1")
        if request.guidance is not None and spec.guidance == "none":
            raise UserError(f"{spec.name} takes no guidance", "leave out --guidance")
        pipeline_class = sampler_class(request.sampler, spec.family)
        options = _options(pipeline_class.Options, request)
        steps = pipeline_class.step_count(spec, options, request.steps)
        return cls(request, spec, pipeline_class, options, steps)

    def call(self, item: Item) -> Call:
        """UserError for a size that cannot be made, a picture that cannot be opened or taken, and a negative
        prompt that would have no effect."""
        if item.image is not None:
            return self._of_picture(item, item.image)
        if self.request.scale is not None:
            raise UserError(
                f"--scale {self.request.scale:g} is given without a picture", "give --size instead"
            )
        size = self._size(item) or self.pipeline_class.default_size(self.spec)
        return Call(item, size[0], size[1], self.steps, self._preflight(item, size), planned=size)

    def _of_picture(self, item: Item, path: Path) -> Call:
        check_takes_picture(self.request.sampler, self.spec.family)
        given = open_picture(user_path(path))
        cls, options, spec = self.pipeline_class, self.options, self.spec
        target = target_size(given.size, self.request.scale, self._size(item), cls.default_scale())
        check_patch(given.size, target, cls.patch(spec, options), whole=cls.above_native)

        def makeable(height: int, width: int) -> Size:
            return cls.makeable(spec, options, height, width)

        if cls.fits_pictures:
            found, planned = Fit(given.size, target, given.size, target), makeable(*target)
        else:
            found = fit(given.size, target, makeable)
            planned = found.made
        guidance = self._preflight(item, planned)
        return Call(item, target[0], target[1], self.steps, guidance, planned, given, found)

    def stages(self, call: Call) -> list[Stage]:
        """What the call will go through."""
        cls, picture = self.pipeline_class, call.item.image is not None
        return cls.planned(self.spec, self.options, *call.planned, self.steps, picture)

    def _size(self, item: Item) -> Size | None:
        """Height and width that were asked for."""
        size = item.size or self.request.size
        return None if size is None else (size[1], size[0])

    def _preflight(self, item: Item, size: Size) -> float | None:
        """The call's guidance; UserError for what cannot be made."""
        cls, spec, options, guidance = self.pipeline_class, self.spec, self.options, self.request.guidance
        negative, picture = item.negative is not None, item.image is not None
        cls.preflight(spec, options, *size, self.steps, negative, picture, guidance)
        if guidance is not None:
            return guidance
        return cls.unsaid_guidance(spec, options, cls.planned(spec, options, *size, self.steps, picture))


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
        """UserError for whatever of a request cannot be, whichever picture it is for. Without `fetch` the hub
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
        names = [stage.name for stage in self.method.stages(call)[:-1]]
        if names:
            return names
        name = self.request.sampler
        what = f"{name} paints this picture in one stage, and previews are of those before the last"
        raise UserError(what, "leave out --previews")


def _files(model: Model, request: Request) -> Iterator[Path]:
    """Files of weights and adapters that are on the disk; a hub's model may not be there yet."""
    named = {**model.weights, **request.weights}
    for name in model.spec.components:
        path = named.get(name, model.folder / name)
        yield from [path] if path.is_file() else weight_files(path)
    yield from (adapter.file for adapter in request.adapters)


def _check_adapters(model: Model, method: Method, adapters: tuple[Adapter, ...]) -> tuple[AdapterFacts, ...]:
    """Every adapter must be understood, fit the backbone's shape, and make sense with the others and with the
    sampler: all of it known without weights."""
    if not adapters:
        return ()
    files = [adapter.file for adapter in adapters]
    from uhr.models.adapters.files import check, read_all
    from uhr.models.loading import empty_transformer

    transformer = empty_transformer(model)
    found = read_all(files, transformer)
    check(found, transformer, method.pipeline_class.guided)
    return tuple(AdapterFacts(each.config, each.notes) for each in found.values())
