"""What the stages have in common that put a question about each image to a vision-language model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import Field

from uhr.base.errors import UserError
from uhr.curate.stages.models.base import (
    SERVER_RESOURCES,
    Dtype,
    ModelStage,
    Outage,
    Server,
    free_models,
    precision,
    vision_language_model,
)
from uhr.models.scores.images import View

if TYPE_CHECKING:
    from uhr.models.scores.vlm import VisionLanguageModel

COLUMN_NAME = "^[a-z][a-z0-9_]*$"


class VisionLanguageStage(ModelStage):
    """A stage with a local vision-language model, or one behind a server.

    Its `open` calls `load` if `params.server` is None, and else makes a client of the server.
    """

    class Params(ModelStage.Params):
        """column: the column that is added. weights: a local model of AutoModelForImageTextToText, or
        `server`. prompt: a file with the question. longest: px of the longer side of the image.
        """

        column: str = Field(pattern=COLUMN_NAME)
        weights: str | None = None
        server: Server | None = None
        prompt: str | None = None
        longest: int = Field(1024, ge=32)
        dtype: Dtype = "auto"

    options: Mapping[str, Any] = {}
    """Options of the model's processor."""

    def __init__(self, params: Any = None) -> None:
        super().__init__(params)
        p = self.params
        if p.weights is not None and p.server is not None:
            raise UserError(f"stage '{self.name}' has weights and a server", "set one of them to null")
        self.views = {"image": View(longest=p.longest)}
        if p.server is not None:
            self.resources = SERVER_RESOURCES
        self.backbone = None if p.weights is None else f"vlm {p.weights}"
        self._outage = Outage()

    def unnamed(self) -> Mapping[str, str]:
        if self.params.weights is None and self.params.server is None:
            return {"weights": "FOLDER", "server": "{url: URL, model: NAME}"}
        return {}

    def weights(self) -> Mapping[str, str]:
        return {} if self.params.weights is None else {"model": self.params.weights}

    def weights_folder(self) -> str:
        """Return what is loaded: the weights, or what they were converted to."""
        return self.params.weights

    def load(self, device: str) -> VisionLanguageModel:
        """Load the local model, once per worker for all stages that use it."""
        dtype = precision(self.params.dtype, device, "bfloat16")
        return vision_language_model(self.weights_folder(), device, dtype, json.dumps(dict(self.options)))

    def close(self) -> None:
        free_models()
