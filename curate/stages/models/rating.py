"""Ratings by a vision-language model: any question, and ArtiMuse."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
from pydantic import Field

from uhr.curate.stages.models.vision_language import COLUMN_NAME, VisionLanguageStage
from uhr.manifests.schema import Column
from uhr.models.scores.artimuse import OPTIONS, WORDS


class RatingStage(VisionLanguageStage):
    """The expected value of a rating over the logits of its words, by a local model or a server.

    A server must return the log-probabilities of all words; an image for which it does not has no value, and
    `<column>_error` says why.
    """

    name = "rating"
    hashed_name = "uhr.curate.stages.rating:RatingStage"

    class Params(VisionLanguageStage.Params):
        """system: a file with the system message. words: each answer, which is one token, and its value.
        begin: how the answer begins before the word. top_logprobs: for how many of the most probable tokens
        a server is to return log-probabilities. The rest as of all vision-language stages.
        """

        column: str = Field("rating", pattern=COLUMN_NAME)
        system: str | None = None
        words: dict[str, float] = Field(default_factory=dict)
        begin: str = ""
        top_logprobs: int = Field(20, ge=2)

    def __init__(self, params: Any = None) -> None:
        super().__init__(params)
        p = self.params
        self.words: Mapping[str, float] = p.words or self.default_words()
        span = f"[{min(self.words.values()):g}, {max(self.words.values()):g}]" if self.words else ""
        self.adds = (
            Column(p.column, pa.float64(), self.meaning(), "1", span, self.source(), stage=self.name),
        )
        if p.server is not None:
            from uhr.models.scores.rating import check_server

            check_server(self.words, p.begin, p.top_logprobs)
            why = f"why the server gave no `{p.column}`; null where it did"
            self.adds += (Column(f"{p.column}_error", pa.string(), why, stage=self.name),)

    def default_words(self) -> Mapping[str, float]:
        return {}

    def meaning(self) -> str:
        return "expected value of a rating over the logits of its words"

    def source(self) -> str:
        return "Q-Align 2312.17090, equation 2"

    def unnamed(self) -> Mapping[str, str]:
        if lack := super().unnamed():
            return lack
        if self.params.prompt is None:
            return {"prompt": "FILE"}
        return {} if self.words else {"words": "{good: 1, bad: 0}"}

    def contents(self) -> Mapping[str, str]:
        return {"rating": self._rating().hash}

    def _rating(self) -> Any:
        from uhr.models.scores.captions import read_text
        from uhr.models.scores.rating import Rating

        p = self.params
        system = None if p.system is None else read_text(p.system)
        return Rating(read_text(p.prompt), dict(self.words), system, p.begin)

    def open(self, device: str) -> None:
        from uhr.models.scores.rating import LocalJudge, ServerJudge

        p, rating, view = self.params, self._rating(), self.views["image"]
        self._judge: Any = (
            LocalJudge(self.load(device), rating, p.column, view)
            if p.server is None
            else ServerJudge(p.server.open(), rating, p.column, view, p.top_logprobs, p.server.concurrency)
        )

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

        column: str = Field("artimuse", pattern=COLUMN_NAME)
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
