"""Find a model that a user names by a folder, a hub id or a backbone's weights, and recognise its spec.
Nothing is loaded."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from uhr.base.errors import UserError, one_line
from uhr.base.files import user_path
from uhr.base.paths import check_utf8
from uhr.models.loading.file_spec import backbone_facts, fitting
from uhr.models.loading.scheduler_config import read_config
from uhr.models.loading.source import INDEX, ModelSource
from uhr.models.specs.registry import get, match, names
from uhr.models.specs.spec import ModelSpec

BLOCKS = ("num_layers", "num_single_layers")
"""The numbers of blocks in a configuration: a file may have fewer than the spec that the user names."""


@dataclass(frozen=True)
class Model:
    """A model whose files are on this machine and whose spec is known; nothing of it is loaded.

    `backbone` is the path of the backbone's weights if they are not in `folder`, which has the rest: a single
    file, or the backbone's own folder (with a config.json). `blocks` are the values of its configuration
    (`BLOCKS`) in which a single file differs from that of `folder`.
    """

    source: ModelSource
    folder: Path
    spec: ModelSpec
    backbone: Path | None = None
    blocks: tuple[tuple[str, int], ...] = ()

    @property
    def weights(self) -> dict[str, Path]:
        """Components whose weights are not in the folder."""
        return {} if self.backbone is None else {"transformer": self.backbone}

    def place(self, component: str) -> Path:
        """Return the folder, or single file, of a component's weights."""
        return self.weights.get(component, self.folder / component)

    def config_folder(self, component: str) -> Path:
        """Return the folder of a component's config.json."""
        place = self.place(component)
        return place if place.is_dir() else self.folder / component

    def changes(self, component: str) -> dict[str, Any]:
        """Return the values that replace those of a component's config.json."""
        return dict(self.blocks) if component == "transformer" else {}

    def fetched(self, components: Collection[str], elsewhere: Collection[str] = ()) -> Model:
        """Fetch the files of these components from the hub, if they are not on this machine.

        Only the configuration is fetched of components whose weights are `elsewhere`.
        """
        if self.source.repository is None:
            return self
        needed = [name for name in components if name not in elsewhere]
        folder = self.source.fetch(needed, elsewhere)
        return replace(self, source=self.source.pinned(folder), folder=folder)

    @property
    def revision(self) -> str | None:
        """The hub's commit (the snapshot's folder is named after it); None for a folder of the user's own."""
        return self.folder.name if self.source.repository else None

    def with_backbone(self, path: Path, spec_given: bool) -> Model:
        """Return the model with the backbone's weights at `path`, a single file or a folder.

        If the user named the spec (`spec_given`), a file may have another number of blocks, and UserError is
        raised for a file of another family or shape.
        """
        if path.is_dir() or not spec_given:
            return replace(self, backbone=path, blocks=())
        facts = backbone_facts(path)
        config = _read_json(self.folder / "transformer" / "config.json", f"{self.folder} has no transformer")
        expected = {
            "family": self.spec.family,
            "width": config["num_attention_heads"] * config["attention_head_dim"],
            **{name: config[name] for name in _INTERFACE if name in config},
        }
        for name, value in expected.items():
            if facts[name] != value:
                what = f"{path} has {name} {facts[name]}, and {self.folder} has {value}"
                raise UserError(what, f"name weights and a base of one model, {self.spec.name}")
        differ = tuple((name, facts[name]) for name in BLOCKS if facts[name] != config.get(name))
        return replace(self, backbone=path, blocks=differ)

    def with_vae(self, folder: Path | None) -> Model:
        """Return the model with the VAE in another folder; None, or a single file, changes nothing."""
        if folder is None or not folder.is_dir():
            return self
        return replace(self, spec=_with_vae(self.spec, folder))


_INTERFACE = ("in_channels", "joint_attention_dim", "guidance_embeds")
"""Values of a backbone's configuration that the rest of the pipeline must match, and that its weights
show."""


@dataclass(frozen=True)
class ModelName:
    """A model as a user names it: the arguments of `open_model`."""

    model: str
    spec: str | None = None
    base: str | None = None

    @classmethod
    def of(cls, name: str | ModelName) -> ModelName:
        """Return `name` itself, or a string as a model without spec and base."""
        return name if isinstance(name, ModelName) else cls(name)

    def open(self, components: Collection[str] = ()) -> Model:
        """Call `open_model`."""
        return open_model(self.model, self.spec, components, self.base)

    def options(self) -> list[str]:
        """Return the command line's options that name it."""
        named = {"--model": self.model, "--base": self.base, "--spec": self.spec}
        return [arg for option, value in named.items() if value is not None for arg in (option, value)]


def open_model(
    model: str | Path,
    spec: str | None = None,
    components: Collection[str] = (),
    base: str | Path | None = None,
    fetch: bool = True,
) -> Model:
    """Find a model and recognise its spec.

    Args:
        model: a folder, a hub id, or a backbone alone: a single file of BFL's, ComfyUI's or GGUF, or a
            transformer's own folder.
        spec: overrides the spec of the configuration.
        components: those that are fetched from a hub repository; nothing else is.
        base: for a backbone alone, the folder or hub id of the text encoders, the VAE and, for a file, all
            configurations.
        fetch: if False, the components must be in the hub's cache, now and later.

    Raises:
        UserError: for anything that is not such a model, and for a base that is missing or does not match.
    """
    path = user_path(model)
    check_utf8("model", path)
    if is_backbone(path):
        return _open_backbone(path, spec, components, base, fetch)
    if (kind := _component_class(path)) is not None:
        fix = "name the folder of the whole model, or of a transformer"
        raise UserError(f"{path} is the folder of a {kind} alone, not of a model", fix)
    if base is not None:
        raise UserError(
            f"a base ({base}) for model '{model}', which is not a backbone alone", "leave out the base"
        )
    if str(model) in names() and not path.is_dir():
        known = get(str(model))
        what = (
            f"give a folder, or its hub id {known.hub_id}"
            if known.hub_id
            else f"make one: `uhr models make-tiny DIR --spec {known.name}`"
        )
        raise UserError(f"'{model}' is the name of a spec, not of weights", what)
    source = ModelSource.parse(model, fetch)
    folder = source.fetch(components)
    known = recognise(folder) if spec is None else _given_spec(folder, get(spec))
    known = replace(_with_vae(known, folder / "vae"), scheduler_config=read_config(folder))
    return Model(source.pinned(folder), folder, known)


def _with_vae(spec: ModelSpec, folder: Path) -> ModelSpec:
    """Return the spec with the factor of the VAE in `folder`, and a native size of as many tokens.

    The spec is returned as it is if the folder has no configuration.
    """
    file = folder / "config.json"
    if not file.is_file():
        return spec
    config = _read_json(file, f"{folder} has no configuration")
    blocks, stride = config.get("block_out_channels"), config.get("stride", 1)
    # another stride is reported when the VAE is loaded (`vae.f16.restore`)
    if not isinstance(blocks, list) or stride not in (1, 2):
        return spec
    factor = stride * 2 ** (len(blocks) - 1)
    native = spec.native_size * factor // spec.vae_factor
    return replace(spec, vae_factor=factor, native_size=native)


def _component_class(path: Path) -> str | None:
    """Return the class of a component if the folder is that of a single one; None otherwise."""
    if (path / INDEX).exists() or not (path / "config.json").is_file():
        return None
    config = _read_json(path / "config.json", f"{path} has no configuration")
    return config.get("_class_name") or next(iter(config.get("architectures") or ()), None)


def is_backbone(path: Path) -> bool:
    """Whether a path is a backbone alone: any file, or a transformer's own folder."""
    if path.is_file():
        return True
    return _component_class(path) in {get(name).transformer_class for name in names()}


def _given_spec(folder: Path, spec: ModelSpec) -> ModelSpec:
    """Return the user's spec. Raises UserError if the folder's index is of another family."""
    index = _read_json(folder / INDEX, f"{folder} is not a diffusers checkpoint")
    families = {other.transformer_class: other.family for other in map(get, names())}
    # an unknown class is accepted
    family = families.get(str((index.get("transformer") or [None])[-1]), spec.family)
    if family != spec.family:
        what = f"{folder} is of family {family}, and the spec {spec.name} of {spec.family}"
        raise UserError(what, "leave the spec out, or name one of the same family")
    return spec


def _open_backbone(
    path: Path, spec: str | None, components: Collection[str], base: str | Path | None, fetch: bool
) -> Model:
    found = backbone_specs(path, spec)
    if base is None:
        ids = " or ".join(each.hub_id for each in found if each.hub_id)
        where = f"{ids}, or a folder of such a model" if ids else "FOLDER, of such a model"
        raise UserError(
            f"{path} is the backbone of {found[0].name} alone", "say where the rest is", give={"base": where}
        )
    if is_backbone(user_path(base)):
        raise UserError(f"base {base} is a backbone too", "name a whole model's diffusers folder or a hub id")
    opened = open_model(base, spec, [n for n in components if n != "transformer"], fetch=fetch)
    if spec is None and opened.spec.name not in {each.name for each in found}:
        what = f"{path} is a backbone of {found[0].name}, and the base {base} is {opened.spec.name}"
        raise UserError(what, f"give a base that is {found[0].name}, {found[0].hub_id or 'or another file'}")
    return opened.with_backbone(path, spec_given=spec is not None)


def backbone_specs(path: Path, spec: str | None = None) -> list[ModelSpec]:
    """Return the specs that a backbone alone may have: `spec` if the user named it, otherwise several if only
    a `model_index.json` distinguishes them. Raises UserError for a path that is not a backbone."""
    facts = _config_facts(path) if path.is_dir() else backbone_facts(path)
    return fitting(facts, str(path)) if spec is None else [get(spec)]


def _config_facts(folder: Path) -> dict[str, Any]:
    """Return the facts of `file_spec.backbone_facts` from the configuration of a transformer's own folder."""
    config = _read_json(folder / "config.json", f"{folder} has no configuration")
    specs = [spec for spec in map(get, names()) if spec.transformer_class == config["_class_name"]]
    shape = {name: config.get(name) for spec in specs for name in spec.transformer_config}
    heads, head = shape.pop("num_attention_heads"), shape.pop("attention_head_dim")
    return {"family": specs[0].family, "width": heads and head and heads * head, **shape}


def recognise(path: str | Path) -> ModelSpec:
    """Return the spec of a diffusers folder, from `model_index.json` and `transformer/config.json`."""
    folder = Path(path)
    index = _read_json(folder / INDEX, f"{folder} is not a diffusers checkpoint")
    config = _read_json(folder / "transformer" / "config.json", f"{folder} has no transformer")
    return match(index, config, where=str(folder))


def _read_json(path: Path, what: str) -> Mapping[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        fix = f"expected {path.name} there, as `save_pretrained` writes it"
        raise UserError(f"{what} (no {path})", fix) from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({one_line(error)})", "download it again") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} is not a configuration", "download it again")
    return found
