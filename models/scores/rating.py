"""A vision-language model as a judge: the expected value of a rating over the logits of its words.

The model runs once for each image and generates no text: of the probabilities of its next token, those of the
rating's words are taken and normalised (Q-Align, arXiv 2312.17090, equation 2).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uhr.base.config import fingerprint
from uhr.base.errors import UserError
from uhr.models.llm.chat import ChatServer, NoAnswer, image_part
from uhr.models.llm.pool import answers
from uhr.models.scores.images import View, as_pil
from uhr.models.scores.vlm import VisionLanguageModel

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Rating:
    """A question, and the words that may answer it with the value of each.

    Each word is one token of the model, written with the blank before it if the token has one. `system` is
    the system message; `begin` is how the answer begins, before the word.
    """

    prompt: str
    words: Mapping[str, float]
    system: str | None = None
    begin: str = ""

    def __post_init__(self) -> None:
        if len(self.words) < 2 or not all(map(math.isfinite, self.words.values())):
            raise UserError(
                f"the rating has the words {dict(self.words)}", "give two or more, each with a number"
            )

    @property
    def hash(self) -> str:
        """SHA-256 (64 hex digits) of the question and its words."""
        return fingerprint([self.prompt, dict(self.words), self.system, self.begin])

    @property
    def range(self) -> str:
        """The least and the largest value, as `[1, 5]`."""
        return f"[{min(self.words.values()):g}, {max(self.words.values()):g}]"

    def expected(self, logits: Any) -> np.ndarray:
        """Return the expected value for logits [N, words] in the order of the words, float64 [N]."""
        import numpy as np

        logits = np.asarray(logits, dtype=np.float64)
        weights = np.exp(logits - logits.max(axis=1, keepdims=True))
        values = np.array(list(self.words.values()), dtype=np.float64)
        return weights @ values / weights.sum(axis=1)


class LocalJudge:
    """A rating by a model on this machine, under the name `column`."""

    def __init__(self, model: VisionLanguageModel, rating: Rating, column: str, view: View) -> None:
        self._model, self.rating, self.column, self.view = model, rating, column, view
        self.weights_hash = model.weights_hash
        self._ids = [model.token_id(word) for word in rating.words]
        if len(set(self._ids)) < len(self._ids):
            raise UserError("two words of the rating are the same token", "name words that differ")

    @classmethod
    def load(
        cls,
        weights: str | Path,
        rating: Rating,
        column: str,
        view: View,
        device: str = "cpu",
        dtype: str = "bfloat16",
        options: Mapping[str, Any] | None = None,
    ) -> LocalJudge:
        """Load the model as `VisionLanguageModel.load`. Raises UserError also if a word is not a token."""
        return cls(VisionLanguageModel.load(weights, device, dtype, options), rating, column, view)

    def score(self, images: Sequence[Any]) -> dict[str, np.ndarray]:
        """Return the expected rating of each image under `column`, float64."""
        rating = self.rating
        logits = self._model.next_logits(images, rating.prompt, rating.system, rating.begin)
        return {self.column: rating.expected(logits[:, self._ids].cpu().numpy())}


def check_server(words: Mapping[str, float], begin: str, top: int) -> None:
    """Raise UserError if a server that returns `top` log-probabilities cannot give the rating of `words`
    after an answer that begins with `begin`.
    """
    if begin:
        raise UserError("a server cannot be given the beginning of the answer", "put it into the prompt")
    if len(words) > top:
        what = f"the rating has {len(words)} words, and the server returns {top} log-probabilities"
        raise UserError(what, "use fewer words, a server that returns more (top_logprobs), or a local model")


class ServerJudge:
    """A rating by a model behind an OpenAI-compatible server that returns log-probabilities.

    Servers return those of the most probable tokens only, often 20 at most. An image for which one of the
    rating's words is not among them has no score: its probability is not zero but unknown.
    """

    weights_hash = None

    def __init__(
        self, server: ChatServer, rating: Rating, column: str, view: View, top: int = 20, concurrency: int = 8
    ) -> None:
        check_server(rating.words, rating.begin, top)
        self._server, self.rating, self.column, self.view = server, rating, column, view
        self._top, self._concurrency = top, concurrency

    def score(self, images: Sequence[Any]) -> dict[str, Any]:
        """Return under `column` the expected rating of each image (float), or the NoAnswer that says why
        there is none. Raises ServerError if the server cannot be used.
        """
        return {self.column: answers(self._one, as_pil(images), self._concurrency)}

    def _one(self, image: Any) -> float:
        messages: list[dict[str, Any]] = [
            {
                "role": "user",
                "content": [image_part(image, "PNG"), {"type": "text", "text": self.rating.prompt}],
            }
        ]
        if self.rating.system is not None:
            messages.insert(0, {"role": "system", "content": self.rating.system})
        choice = self._server.choice(messages, tokens=1, logprobs=True, top_logprobs=self._top)
        return float(self.rating.expected([self._logprobs(choice)])[0])

    def _logprobs(self, choice: Mapping[str, Any]) -> list[float]:
        try:
            entries = choice["logprobs"]["content"][0]["top_logprobs"]
            found = {entry["token"]: float(entry["logprob"]) for entry in entries}
        except (LookupError, TypeError, ValueError):
            raise NoAnswer("the server returns no log-probabilities") from None
        lacking = [word for word in self.rating.words if word not in found]
        if lacking:
            words = len(self.rating.words)
            known = f"{words - len(lacking)} of the rating's {words} words"
            raise NoAnswer(
                f"the server returned log-probabilities of {known}, not of {json.dumps(lacking[0])}"
            )
        return [found[word] for word in self.rating.words]
