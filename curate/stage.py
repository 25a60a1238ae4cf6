"""Base classes of stages: what a stage reads, which columns it adds, and its version.

Stages annotate and never reject a sample (rules do, `rules.py`). The same frame gives the same columns on any
machine and in any order, so that a run can be resumed and its results reused.
"""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from uhr.base.config import Config, canonical_json, fingerprint
from uhr.base.errors import install
from uhr.manifests.schema import Column

if TYPE_CHECKING:
    from uhr.curate.frame import Frame


@dataclass(frozen=True)
class Package:
    """A Python package that a stage needs besides the core dependencies, and its licence."""

    name: str
    extra: str
    licence: str = ""


class _Annotator(ABC):
    """Base of both kinds of stage: a name, parameters, declared columns, a fingerprint."""

    name: ClassVar[str]
    version: ClassVar[int] = 1
    """Increase it whenever the numbers change: old results with another fingerprint are not reused."""

    needs: tuple[str, ...] = ()
    """Columns of earlier stages or of the source that `annotate` reads from the row."""

    adds: tuple[Column, ...] = ()
    """The columns that the stage writes, all of them for every annotated row (None if there is no value)."""

    packages: ClassVar[tuple[Package, ...]] = ()

    class Params(Config):
        """Parameters of the stage, with the names that they have in the YAML; none by default."""

    def __init__(self, params: Any = None) -> None:
        self.params: Any = self.Params() if params is None else params

    def missing(self) -> str | None:
        """Say what this machine lacks to run the stage and how to get it; None if nothing is missing.

        Called once, when the pipeline is planned. A stage that needs weights checks for them here, and must
        not download anything.
        """
        for package in self.packages:
            if importlib.util.find_spec(package.name) is None:
                return f"the package '{package.name}' is not installed ({install(package.extra)})"
        return None

    def fingerprint(self) -> str:
        """Hash of class, version and parameters (64 hex digits)."""
        kind = f"{type(self).__module__}:{type(self).__qualname__}"
        return fingerprint([kind, self.version, canonical_json(self.params)])


class Stage(_Annotator):
    """Measures one image at a time.

    To add one, subclass it with `name`, `adds` and `annotate`, and list it in `stages/__init__.py`, or name
    it in a pipeline by import path (`stage: mypkg.stages:Faces`).
    """

    reads: ClassVar[Literal["header", "pixels"]] = "pixels"
    """`header`: only the first bytes are read, so a rule over its columns can reject without decoding."""

    def open(self) -> None:
        """Called once in each worker before the first frame: load weights, compile kernels."""

    @abstractmethod
    def annotate(self, frame: Frame) -> Mapping[str, Any]:
        """Return the values of `adds` for this frame, by column name.

        An exception fails the sample, not the run.
        """


class SetStage(_Annotator):
    """Measures the whole set at once, after all units are finished: duplicates, ranks."""

    @abstractmethod
    def query(self) -> str:
        """Return SQL over the relation `live` (the rows that are still kept) that selects `sample_id` and
        `adds`.

        It must not depend on row order: write ORDER BY inside windows, with ties broken by `uri`.
        """
