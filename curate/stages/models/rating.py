"""Ratings by a vision-language model: any question, and ArtiMuse."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
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
from uhr.manifests.schema import Column
from uhr.models.scores.artimuse import OPTIONS, WORDS
from uhr.models.scores.images import View


class RatingStage(ModelStage):
    """The expected value of a rating over the logits of its words, by a local model or a server.

    A server must return the log-probabilities of all words; an image for which it does not has no value, and
    `<column>_error` says why.
    """

    name = "rating"
    hashed_name = "uhr.curate.stages.rating:RatingStage"

    class Params(ModelStage.Params):
        """column: the name of the score. weights: a local model of AutoModelForImageTextToText, or `server`.
        prompt, system: files with the question and the system message. words: each answer, which is one
        token, and its value. begin: how the answer begins before the word. longest: px of the longer side.
        """

        column: str = Field("rating", pattern="^[a-z][a-z0-9_]*$")
        weights: str | None = None
        server: Server | None = None
        prompt: str | None = None
        system: str | None = None
        words: dict[str, float] = Field(default_factory=dict)
        begin: str = ""
        longest: int = Field(1024, ge=32)
        top_logprobs: int = Field(20, ge=2)
        dtype: Dtype = "auto"

    options: Mapping[str, Any] = {}
    """Options of the model's processor."""

    def __init__(self, params: Any = None) -> None:
        super().__init__(params)
        p = self.params
        if p.weights is not None and p.server is not None:
            raise UserError(f"stage '{self.name}' has weights and a server", "set one of them to null")
        self.views = {"image": View(longest=p.longest)}
        self.words: Mapping[str, float] = p.words or self.default_words()
        span = f"[{min(self.words.values()):g}, {max(self.words.values()):g}]" if self.words else ""
        self.adds = (
            Column(p.column, pa.float64(), self.meaning(), "1", span, self.source(), stage=self.name),
        )
        if p.server is not None:
            self.resources = SERVER_RESOURCES
            why = f"why the server gave no `{p.column}`; null where it did"
            self.adds += (Column(f"{p.column}_error", pa.string(), why, stage=self.name),)
        self.backbone = None if p.weights is None else f"vlm {p.weights}"

    def default_words(self) -> Mapping[str, float]:
        return {}

    def meaning(self) -> str:
        return "expected value of a rating over the logits of its words"

    def source(self) -> str:
        return "Q-Align 2312.17090, equation 2"

    def unnamed(self) -> str | None:
        p = self.params
        if p.weights is None and p.server is None:
            return "weights=FOLDER or server={url: URL, model: NAME}"
        if p.prompt is None:
            return "prompt=FILE"
        return None if self.words else "words={good: 1, bad: 0}"

    def weights(self) -> Mapping[str, str]:
        return {} if self.params.weights is None else {"model": self.params.weights}

    def contents(self) -> Mapping[str, str]:
        return {"rating": self._rating().hash}

    def _rating(self) -> Any:
        from uhr.models.scores.captions import read_text
        from uhr.models.scores.rating import Rating

        p = self.params
        system = None if p.system is None else read_text(p.system)
        return Rating(read_text(p.prompt), dict(self.words), system, p.begin)

    def weights_folder(self) -> str:
        """Return what is loaded: the weights, or what they were converted to."""
        return self.params.weights

    def open(self, device: str) -> None:
        import json

        from uhr.models.scores.rating import LocalJudge, ServerJudge

        p, rating, view = self.params, self._rating(), self.views["image"]
        self._outage = Outage()
        if p.server is not None:
            self._judge: Any = ServerJudge(
                p.server.open(), rating, p.column, view, p.top_logprobs, p.server.concurrency
            )
            return
        dtype = precision(p.dtype, device, "bfloat16")
        model = vision_language_model(self.weights_folder(), device, dtype, json.dumps(dict(self.options)))
        self._judge = LocalJudge(model, rating, p.column, view)

    def score(
        self, rows: Sequence[Mapping[str, Any]], views: Mapping[str, Sequence[Any]]
    ) -> Mapping[str, Sequence[Any]]:
        column = self.params.column
        values = list(self._outage.call(lambda: self._judge.score(views["image"]))[column])
        if self.params.server is None:
            return {column: values}
        return {
            column: [value if isinstance(value, float) else None for value in values],
            f"{column}_error": [None if isinstance(value, float) else str(value) for value in values],
        }

    def close(self) -> None:
        free_models()


class ArtimuseStage(RatingStage):
    """ArtiMuse's aesthetic score: 101 pairs of letters, one for each score.

    `weights` is the published checkpoint, which is converted once into the user's cache, or the converted
    one. `prompt` and `system` are files with the question and system message that the checkpoint was trained
    with: `InternVLChatModel.score` and the conversation `internvl2_5` of ArtiMuse's code.
    """

    name = "artimuse"
    hashed_name = "uhr.curate.stages.rating:ArtimuseStage"
    options = OPTIONS

    class Params(RatingStage.Params):
        """As of `rating`; the words are those of ArtiMuse."""

        column: str = Field("artimuse", pattern="^[a-z][a-z0-9_]*$")
        longest: int = Field(896, ge=32)

    def default_words(self) -> Mapping[str, float]:
        return WORDS

    def meaning(self) -> str:
        return "aesthetic score by ArtiMuse: the expected value over its 101 scores"

    def source(self) -> str:
        return "ArtiMuse 2507.14533"

    def weights_folder(self) -> str:
        from uhr.models.scores.artimuse import converted

        return str(converted(self.params.weights))
