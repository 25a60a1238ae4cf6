"""Protocols: which prompts, sizes, seeds, references and metrics make up an evaluation, as YAML files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from uhr.base.config import Config, apply_sets, build, fingerprint, read_yaml
from uhr.base.errors import UserError, unknown
from uhr.base.files import user_path
from uhr.models.generate.request import Pixels, parse_size

FOLDER = Path(__file__).parent / "protocols"
VERSION = 1
"""Part of every id: it changes with the meaning of a protocol's keys."""

Layout = Literal["file", "imagefolder", "json-lists", "text-files", "dpg-bench", "geneval2"]


def _parsed_size(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return parse_size(value)
    except UserError as error:
        raise ValueError(str(error)) from None


Size = Annotated[Pixels, BeforeValidator(_parsed_size)]


class PromptSource(Config):
    """Where the prompts are.

    Args:
        layout: how they are stored (`uhr.train.evaluate.prompts`).
        file: their path, relative to the protocol's file; None if the user names it with --prompts.
        count: how many the published list has; None if it is not known.
        get: where they are published.
    """

    layout: Layout = "file"
    file: str | None = None
    count: int | None = Field(None, ge=1)
    get: str = ""


class ReferenceSource(Config):
    """The real images that generated ones are compared with.

    Args:
        kind: "none"; "set" if only their distribution matters; "paired" if there is one per prompt.
        in_prompts: whether they are in the folder of the prompts.
        count: how many the published set has; None if it is not known.
        get: where they are published, or what to use.
    """

    kind: Literal["none", "set", "paired"] = "none"
    in_prompts: bool = False
    count: int | None = Field(None, ge=1)
    get: str = ""


class MetricUse(Config):
    """A metric of a protocol.

    Args:
        metric: its name in `uhr.models.metrics.registry`, or the import path of the user's own.
        label: what the protocol calls it, if it uses a metric twice.
        options: values that change its numbers, such as the resize rule.
        note: how the paper defines it, and what is ours.
    """

    metric: str
    label: str | None = None
    options: dict[str, Any] = Field(default_factory=dict)
    note: str = ""

    @property
    def name(self) -> str:
        """The name under which the protocol, its results and `--weights` know it."""
        return self.label or self.metric

    def deciding(self) -> dict[str, Any]:
        """What of it decides the numbers, as JSON. Options that say where weights are do not: results have
        the weights' hashes. Raises UserError if there is no such metric.
        """
        from uhr.models.metrics.registry import metric_class

        about = metric_class(self.metric).about
        places = {"options": {*about.weights, *about.optional}, "note": True, "label": True}
        return self.model_dump(mode="json", exclude=places)


class PaperTable(Config):
    """Values that a paper prints. They are theirs, and only shown beside ours.

    Args:
        source: paper and table.
        note: what differs from this protocol, or is not known.
        columns: the paper's names of its metrics.
        rows: by method, a value per column; None where the paper has none.
    """

    source: str
    note: str = ""
    columns: tuple[str, ...]
    rows: dict[str, tuple[float | None, ...]]

    @model_validator(mode="after")
    def _full_rows(self) -> PaperTable:
        for method, values in self.rows.items():
            if len(values) != len(self.columns):
                raise ValueError(f"row '{method}' has {len(values)} values for {len(self.columns)} columns")
        return self


class EvalProtocol(Config):
    """Everything that decides the numbers of an evaluation, and where it comes from.

    Args:
        size: width and height of every image in px; a prompt with its own size overrides it.
        seeds: one image of each prompt is generated per seed.
        seed_rule: "same": each prompt has these seeds; "index": they are increased by the prompt's index.
        images: number of images of the published evaluation; None if it is not known.
        sources: papers and code.
        unknown: what no source states, and what this protocol does instead.
        paper: the paper's values.
    """

    name: str = Field(pattern=r"[a-z0-9][a-z0-9.-]*")
    about: str
    sources: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    prompts: PromptSource
    size: Size
    seeds: tuple[int, ...] = (0,)
    seed_rule: Literal["same", "index"] = "same"
    images: int | None = Field(None, ge=1)
    references: ReferenceSource = ReferenceSource()
    metrics: tuple[MetricUse, ...]
    paper: tuple[PaperTable, ...] = ()

    @model_validator(mode="after")
    def _sensible(self) -> EvalProtocol:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise ValueError("seeds must be different whole numbers from 0 on")
        if min(self.size) < 1:
            raise ValueError("size must be positive")
        if not self.metrics:
            raise ValueError("metrics is empty")
        names = [use.name for use in self.metrics]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"the metric '{twice.pop()}' occurs twice: give one of them a label")
        return self

    @property
    def id(self) -> str:
        """`NAME@HASH`: protocols of the same id give comparable numbers over the same prompts and references.

        The hash is over size, seeds, kind of references, metrics and their options. Prompts, references and
        weights are hashed when they are read (`uhr.train.evaluate.result`).
        """
        deciding = {
            "version": VERSION,
            "size": self.size,
            "seeds": self.seeds,
            "seed_rule": self.seed_rule,
            "references": self.references.kind,
            "metrics": [use.deciding() for use in self.metrics],
        }
        return f"{self.name}@{fingerprint(deciding)[:12]}"


class LoadedProtocol(Config):
    """A protocol and the folder that paths in it are relative to."""

    protocol: EvalProtocol
    folder: Path

    @property
    def prompts_file(self) -> Path | None:
        """The prompts that the protocol itself names."""
        file = self.protocol.prompts.file
        return None if file is None else self.folder / user_path(file)


def names() -> list[str]:
    """The names of the protocols that come with uhr, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load(name: str, sets: list[str] | None = None) -> LoadedProtocol:
    """Load a protocol by name, or from a YAML file, and change single values (`path=value`).

    A file may begin with `extends: NAME`: it then contains only the keys that differ. With prompts of its
    own it has neither the number of images nor the papers' values of the other. Unless it has an `about` of
    its own, that says what differs from the other. Raises UserError if
    there is no such protocol, or if it is invalid.
    """
    path = _path_of(name)
    tree = _read(path, ())
    if sets:
        tree = apply_sets(tree, sets)
    protocol = build(EvalProtocol, tree, str(path) if path.parent != FOLDER else f"protocol {path.stem}")
    return LoadedProtocol(protocol=protocol, folder=path.parent)


def _path_of(name: str) -> Path:
    if name in names():
        return FOLDER / f"{name}.yaml"
    path = user_path(name)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        return path
    raise (
        unknown("protocol", name, names())
        if "/" not in name
        else UserError(
            f"the protocol {name} does not exist", f"name a YAML file, or one of {', '.join(names())}"
        )
    )


def _read(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    """The keys of a file over those of the protocol that it extends."""
    tree = read_yaml(path)
    base = tree.pop("extends", None)
    if base is None:
        return tree
    below = _path_of(str(base)) if str(base) in names() else path.parent / user_path(str(base))
    if below.resolve() in (*seen, path.resolve()):
        raise UserError(f"{path}: 'extends: {base}' leads back to the file itself", "extend another protocol")
    found = _read(below, (*seen, path.resolve()))
    if "prompts" in tree:
        # number and values of the published evaluation are of its prompts
        found.pop("images", None)
        found.pop("paper", None)
    prompts = found.get("prompts")
    if isinstance(prompts, dict) and prompts.get("file") and "prompts" not in tree:
        # relative to the file that names it
        found["prompts"] = {**prompts, "file": str(below.parent / user_path(prompts["file"]))}
    if "about" not in tree:
        # what is said of the other is not true of this one
        differs = ", ".join(key for key in tree if key != "name")
        found["about"] = f"{found['name']} with other {differs}" if differs else f"{found['name']}"
    return {**found, **tree}
