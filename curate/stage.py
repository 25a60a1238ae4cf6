"""Base classes of stages: what a stage reads, which columns it adds, and its version.

Four kinds, by their base class: `FrameStage` measures one image on a CPU, `BatchStage` scores
batches of images with a model, `ExpandStage` cuts images into patches, `SetStage` looks at all rows at once.
Stages annotate and never reject a sample (rules do, `rules.py`). The same images give the same columns on any
machine and in any order, so that a run can be resumed and its results reused.
"""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import pydantic
from pydantic import ByteSize, Field

from uhr.base.config import Config, canonical_json, fingerprint
from uhr.base.errors import UserError, install
from uhr.manifests.schema import Column

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

    from uhr.curate.frame import Frame
    from uhr.models.scores.images import View

Box = tuple[int, int, int, int]
"""x, y, width, height in px of the upright image."""


@dataclass(frozen=True)
class Package:
    """A Python package that a stage needs besides the core dependencies, and its licence."""

    name: str
    extra: str
    licence: str = ""

    @property
    def is_installed(self) -> bool:
        return importlib.util.find_spec(self.name) is not None


def examples(parameters: Mapping[str, str]) -> str:
    """Write the parameters of `BaseStage.unnamed` as text: `weights=FOLDER or server={url: URL}`."""
    return " or ".join(f"{name}={value}" for name, value in parameters.items())


class BaseStage(ABC):
    """Base of all kinds of stage: a name, parameters, declared columns, weights, a fingerprint."""

    name: ClassVar[str]

    hashed_name: ClassVar[str] = ""
    """What the fingerprint contains for this class; empty: its import path, `module:qualname`. A class that
    moves sets the path that it had, so that results from before the move are still reused. Subclasses do not
    inherit it."""

    version: ClassVar[int] = 1
    """Increase it whenever the numbers change: old results with another fingerprint are not reused."""

    needs: tuple[str, ...] = ()
    """Columns of earlier stages or of the source that the stage reads from the row."""

    adds: tuple[Column, ...] = ()
    """The columns that the stage writes, all of them for every annotated row (None if there is no value)."""

    packages: ClassVar[tuple[Package, ...]] = ()

    class Params(Config):
        """Parameters of the stage, with the names that they have in the YAML; none by default."""

    def __init__(self, params: Any = None) -> None:
        self.params: Any = self.Params() if params is None else params

    def weights(self) -> Mapping[str, str]:
        """Return the weights that the stage loads, by a name for people: each a local path, a hub id
        (`org/name[@revision]`) or `s3://bucket/prefix`.
        """
        return {}

    def unnamed(self) -> Mapping[str, str]:
        """Return the parameters of which one must be set, each with an example of a value; empty if nothing
        is lacking.
        """
        return {}

    def missing(self) -> str | None:
        """Say what this machine lacks to run the stage and how to get it; None if nothing is missing.

        Called once, when the pipeline is planned. It must not download anything.
        """
        for package in self.packages:
            if not package.is_installed:
                return f"the package '{package.name}' is not installed ({install(package.extra)})"
        for name, text in self.weights().items():
            if (lack := missing_weights(text)) is not None:
                return lack if name in lack else f"{name}: {lack}"
        try:
            self.contents()
        except UserError as error:
            return str(error)
        return None

    def contents(self) -> Mapping[str, str]:
        """Return hashes of the other files that decide the values, by a name for people: the text of a
        prompt, a list. Raises UserError if one is missing or invalid.
        """
        return {}

    def weight_hashes(self) -> dict[str, str]:
        """Return the hash of each of `weights`: SHA-256 over all files, 64 hex digits."""
        from uhr.models.scores.weights import Weights, hash_of_files

        return {name: hash_of_files(Weights.parse(text).fetch()) for name, text in self.weights().items()}

    def fingerprint(self) -> str:
        """Hash of class, version, parameters, weights and contents (64 hex digits)."""
        found, contents = self._without_contents(), sorted(self.contents().items())
        return fingerprint([found, contents]) if contents else found

    def _without_contents(self) -> str:
        tree: list[Any] = [self._class_name, self.version, canonical_json(self.params)]
        if hashes := self.weight_hashes():
            tree.append(sorted(hashes.items()))
        return fingerprint(tree)

    @property
    def _class_name(self) -> str:
        cls = type(self)
        return vars(cls).get("hashed_name") or f"{cls.__module__}:{cls.__qualname__}"


def missing_weights(text: str) -> str | None:
    """Say how to get weights that are not on this machine; None if they are, or are in an object store."""
    from uhr.base.hub import snapshot
    from uhr.models.scores.weights import EVERYTHING, Weights

    try:
        found = Weights.parse(text)
        if found.repository is not None:
            snapshot(found.repository, found.revision, EVERYTHING, cached=True)
    except UserError:
        if not _is_hub_id(text):
            return f"the weights '{text}' do not exist; name a path, a hub id or s3://bucket/prefix"
        repository, _, revision = text.partition("@")
        fetch = f"hf download {repository}" + (f", revision {revision}" if revision else "")
        return f"the weights '{text}' are neither a file here nor in the hub's cache ({fetch})"
    return None


def _is_hub_id(text: str) -> bool:
    return text.count("/") == 1 and not text.startswith((".", "/", "~")) and "://" not in text


class FrameStage(BaseStage):
    """Measures one image at a time, on a CPU.

    To add one, subclass it with `name`, `adds` and `annotate`, and list it in `stages/__init__.py`, or name
    it in a pipeline by import path (`stage: mypkg.stages:Faces`).
    """

    reads: ClassVar[Literal["header", "pixels"]] = "pixels"
    """`header`: only the first bytes are read, so a rule over its columns can reject without decoding."""

    hides: ClassVar[str | None] = None
    """A column of `adds`: of an image in which it has a value neither preview nor bytes are stored."""

    inherited: ClassVar[bool] = False
    """Whether the patches of an image have its values too: they are about the file, such as its licence."""

    def open(self) -> None:
        """Called once in each worker before the first frame: load weights, compile kernels."""

    @abstractmethod
    def annotate(self, frame: Frame) -> Mapping[str, Any]:
        """Return the values of `adds` for this frame, by column name.

        An exception fails the sample, not the run.
        """


class Resources(Config):
    """What a worker of a model stage needs, and how many workers there are."""

    num_cpus: float = Field(1.0, ge=0, description="CPUs of a worker")
    num_gpus: float | None = Field(
        None, ge=0, description="GPUs of a worker, or a part of one; null: 1 if there is any, else 0"
    )
    accelerator_type: str | None = Field(None, description="type of GPU of a Ray cluster, such as H100")
    memory: ByteSize = Field(ByteSize(16 * 2**30), ge=2**28, description="largest memory of a worker")
    seconds: float = Field(120.0, gt=0, description="longest time for one image")
    actors: tuple[int, int] = Field((1, 1), description="least and largest number of workers")
    batch_size: int = Field(8, ge=1, description="images that are scored together")

    @pydantic.field_validator("actors")
    @classmethod
    def _least_first(cls, actors: tuple[int, int]) -> tuple[int, int]:
        if not 1 <= actors[0] <= actors[1]:
            raise ValueError("the least number of workers comes first and is at least 1")
        return actors

    def key(self) -> str:
        """Return a text that is equal for stages which can share a worker."""
        return canonical_json(self.model_dump(mode="json", exclude={"batch_size", "seconds"}))


class BatchStage(BaseStage):
    """Scores batches of images with a model, on a GPU if there is one.

    A worker of its own loads the model once. It receives `views` of the images, resized from the decoded
    original; scores may therefore depend on the batch in the last digits, so that `batch_size` is part of the
    fingerprint.
    """

    views: Mapping[str, View] = {}
    """The sizes at which the model looks at an image, by a name of the stage's own. Without views the stage
    works on columns alone."""

    backbone: str | None = None
    """Stages of one pass with the same backbone and resources share a worker."""

    resources: Resources = Resources()
    """The default; the key `resources` of a pipeline's entry changes it."""

    def open(self, device: str) -> None:
        """Called once in each worker before the first batch: load weights to `device` ("cpu" or "cuda")."""

    @abstractmethod
    def score(
        self, rows: Sequence[Mapping[str, Any]], views: Mapping[str, Sequence[Any]]
    ) -> Mapping[str, Sequence[Any]]:
        """Return a value per row for each column of `adds`.

        rows: the columns known so far, of `batch_size` rows or fewer.
        views: by the names in `views`, one uint8 tensor [H, W, 3] per row: upright sRGB, alpha over white.

        An exception fails the rows of its batch, one by one if they succeed alone.
        """

    def close(self) -> None:
        """Called when the worker ends: free what `open` took."""

    def _without_contents(self) -> str:
        views = [[name, repr(view)] for name, view in sorted(self.views.items())]
        return fingerprint([super()._without_contents(), views, self.resources.batch_size])


@dataclass(frozen=True)
class Child:
    """A patch of an image: its box, and the values of the stage's `adds` for its row."""

    box: Box
    values: Mapping[str, Any] = field(default_factory=dict)


class ExpandStage(BaseStage):
    """Cuts an image into patches, which become rows of their own.

    Its entry in a pipeline has the `stages` and `rules` of the patches. The column `child_count` of the image
    says how many there are.
    """

    def open(self) -> None:
        """Called once in each worker before the first frame."""

    @abstractmethod
    def expand(self, frame: Frame) -> Iterable[Child]:
        """Return the patches of an image. The same image gives the same boxes in the same order."""


@dataclass(frozen=True)
class Workspace:
    """What a set stage may use besides its rows: its name in the pipeline, and a folder for large temporary
    files, emptied afterwards.
    """

    folder: Path
    label: str


class SetStage(BaseStage):
    """Measures the whole set at once, after all units are finished: duplicates, ranks, balance."""

    def check_models(self, label: str, weights: Mapping[str, str]) -> None:
        """Raise UserError if the columns that other models of the pipeline write cannot be used. Called when
        the pipeline is planned.

        label: the name of this stage in it. weights: the hashes of the models, by stage and name.
        """

    @abstractmethod
    def compute(
        self, live: duckdb.DuckDBPyRelation, workspace: Workspace
    ) -> str | duckdb.DuckDBPyRelation | pa.Table:
        """Return `sample_id` and `adds`: as SQL over the relation `live`, as a relation or as a table. A row
        without an entry has nulls.

        live: the rows that are still kept, with all columns so far, in no order.

        The result must not depend on the order of rows: break ties by `uri` and `sample_id`, in SQL by ORDER
        BY inside windows.
        """
