"""A stage: what it reads, which columns it adds, and which version of its arithmetic it is.

Stages annotate and never turn a sample down (rules do, `rules.py`). The same frame in gives the same columns
out, on any machine and in any order: that is what makes a run resumable and its results reusable.
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
    """A Python package that a stage needs beyond the core, with the licence that comes with it."""

    name: str
    extra: str
    licence: str = ""


class _Annotator(ABC):
    """What frame stages and set stages share: a name, parameters, declared columns, a fingerprint."""

    name: ClassVar[str]
    version: ClassVar[int] = 1
    """Raised whenever the numbers change: it is part of the fingerprint, so old results are not reused."""

    needs: tuple[str, ...] = ()
    """Columns of earlier stages or of the source that `annotate` reads from the row."""

    adds: tuple[Column, ...] = ()
    """The columns written, each of them on every annotated row (None where there is no value)."""

    packages: ClassVar[tuple[Package, ...]] = ()

    class Params(Config):
        """Parameters of the stage as they stand in the YAML; none by default."""

    def __init__(self, params: Any = None) -> None:
        self.params: Any = self.Params() if params is None else params

    def missing(self) -> str | None:
        """What this machine lacks to run the stage, with how to get it; None when nothing. Asked once, at
        plan time: a stage with weights adds them here, and must not fetch anything.
        """
        for package in self.packages:
            if importlib.util.find_spec(package.name) is None:
                return f"the package '{package.name}' is not installed ({install(package.extra)})"
        return None

    def fingerprint(self) -> str:
        """Changes when the code version or a parameter does (64 hex digits)."""
        kind = f"{type(self).__module__}:{type(self).__qualname__}"
        return fingerprint([kind, self.version, canonical_json(self.params)])


class Stage(_Annotator):
    """Looks at one image at a time.

    To add one: subclass, give `name`, `adds` and `annotate`, and list it in `stages/__init__.py`, or name it
    in a pipeline by import path (`stage: mypkg.stages:Faces`).
    """

    reads: ClassVar[Literal["header", "pixels"]] = "pixels"
    """`header`: only the first bytes are read, so a rule over its columns spares the decode."""

    def open(self) -> None:
        """Called once in each worker before the first frame: load weights, compile kernels."""

    @abstractmethod
    def annotate(self, frame: Frame) -> Mapping[str, Any]:
        """The values of `adds` for this frame, by column name. An exception fails the sample, not the run."""


class SetStage(_Annotator):
    """Looks at the whole set at once, after every unit: duplicates, ranks."""

    @abstractmethod
    def query(self) -> str:
        """SQL over the relation `live` (the rows no rule has turned down yet) giving `sample_id` and `adds`.

        It must not depend on row order: say ORDER BY inside windows, ties broken by `uri`.
        """
