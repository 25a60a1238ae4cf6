"""What the stages with models share: weights that must be named, servers, precision, and loaded models."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import pydantic
from pydantic import Field

from uhr.base.config import Config
from uhr.base.errors import UserError
from uhr.curate.stage import BatchStage, Resources, examples

if TYPE_CHECKING:
    from uhr.models.llm.chat import ChatServer
    from uhr.models.scores.clip import ClipModel
    from uhr.models.scores.images import View
    from uhr.models.scores.vlm import VisionLanguageModel

T = TypeVar("T")

Dtype = Literal["auto", "float32", "float16", "bfloat16"]

SERVER_RESOURCES = Resources(num_gpus=0, seconds=1800, batch_size=32)
"""Of stages whose model is behind a server. The client retries for minutes before it gives up."""


class Server(Config):
    """An OpenAI-compatible server. Its key is in the environment (OPENAI_API_KEY), and is stored nowhere."""

    url: str
    model: str
    seconds: float = Field(120.0, gt=0, description="longest time for one answer")
    concurrency: int = Field(8, ge=1, le=256, description="requests at the same time")

    @pydantic.field_validator("url")
    @classmethod
    def _storable(cls, url: str) -> str:
        # a UserError, which pydantic passes on: its own message would print the password
        from uhr.models.llm.chat import check_address

        check_address(url)
        return url

    def open(self) -> ChatServer:
        """Return the client; no request is made yet."""
        from uhr.models.llm.chat import ChatServer

        return ChatServer(self.url, self.model, self.seconds)


class Outage:
    """Remembers for a while that a server failed. A failed batch is tried again row by row, and each row
    would wait for minutes until the client gives up again.
    """

    seconds = 60.0

    def __init__(self) -> None:
        self._error: Exception | None = None
        self._until = 0.0

    def call(self, ask: Callable[[], T]) -> T:
        """Return what `ask` returns. Raises its ServerError, and for a while the same without asking."""
        from uhr.models.llm.chat import ServerError

        if self._error is not None and time.monotonic() < self._until:
            raise self._error
        try:
            found = ask()
        except ServerError as error:
            self._error, self._until = error, time.monotonic() + self.seconds
            raise
        self._error = None
        return found


class ModelStage(BatchStage):
    """A stage that cannot run before its user has named a model: `unnamed` says which parameter is empty."""

    def missing(self) -> str | None:
        if unnamed := self.unnamed():
            return f"no model is named; set {examples(unnamed)}"
        if (lack := super().missing()) is not None:
            return lack
        try:
            if (server := getattr(self.params, "server", None)) is not None:
                server.open()
        except UserError as error:
            return str(error)
        return None


def precision(dtype: Dtype, device: str, half: Literal["float16", "bfloat16"]) -> Any:
    """Return the dtype of a model: by default half precision on a GPU, and float32 on a CPU."""
    if dtype != "auto":
        return dtype
    return half if device.startswith("cuda") else "float32"


@functools.lru_cache(maxsize=4)
def clip_model(weights: str, architecture: str | None, device: str, dtype: str) -> ClipModel:
    """Load a CLIP model once per worker, for all stages that use it."""
    from uhr.models.scores.clip import ClipModel

    return ClipModel.load(weights, device, dtype, architecture)  # ty: ignore[invalid-argument-type]


@functools.lru_cache(maxsize=2)
def vision_language_model(weights: str, device: str, dtype: str, options: str) -> VisionLanguageModel:
    """Load a vision-language model once per worker, for all stages that use it; `options` is JSON."""
    from uhr.models.scores.vlm import VisionLanguageModel

    return VisionLanguageModel.load(weights, device, dtype, json.loads(options))


def free_models() -> None:
    """Forget the loaded models: the worker ends."""
    clip_model.cache_clear()
    vision_language_model.cache_clear()


def check_view(stage: BatchStage, loaded: View) -> None:
    """Raise UserError if the loaded model expects another size than was planned without its configuration."""
    planned = stage.views["image"]
    if planned != loaded:
        what = f"stage '{stage.name}' was planned with {planned}, and its model takes {loaded}"
        raise UserError(what, "name the weights by a local path")


def local_json(weights: str | None, name: str) -> Mapping[str, Any]:
    """Return a configuration file of weights that are on this machine; empty if it is not there.

    Never uses the network: it is called to describe stages.
    """
    from uhr.base.hub import snapshot
    from uhr.models.scores.weights import EVERYTHING, Weights

    try:
        source = Weights.parse(weights or "")
        folder = source.path
        if source.repository is not None:
            folder = snapshot(source.repository, source.revision, EVERYTHING, cached=True)
        return {} if folder is None else json.loads((Path(folder) / name).read_text(encoding="utf-8"))
    except (UserError, OSError, ValueError):
        # what is missing or broken is reported by `missing`, or when the model is loaded
        return {}


def texts(values: Sequence[Any]) -> tuple[list[str | None], list[str | None]]:
    """Divide answers into texts and reasons why there is none."""
    found = [value if isinstance(value, str) else None for value in values]
    why = [None if isinstance(value, str) else str(value) for value in values]
    return found, why
