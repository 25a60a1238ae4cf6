"""Models that answer questions about an image: of transformers, behind a server, or a function."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Protocol

from uhr.base.errors import UserError, load_object, one_line
from uhr.models.llm.answers import without_thoughts
from uhr.models.llm.chat import ChatServer, NoAnswer, complete_text, image_part
from uhr.models.llm.pool import answers
from uhr.models.metrics.external import source_hash
from uhr.models.scores.images import View, as_pil
from uhr.models.scores.vlm import VisionLanguageModel

TOKENS = 1024
"""The longest answer of a server: some models reason before it."""

AT_ONCE = 8
"""Requests to a server at the same time."""

YES_OR_NO = " Answer yes or no."
"""What a chat model reads after a question."""


class Answerer(Protocol):
    """Answers questions with one word.

    name: what a metric's name says of it. identity: what its answers depend on.
    """

    name: str
    identity: dict[str, Any]

    def words(self, image: Any, questions: Sequence[str]) -> list[str]:
        """Return the first word of the answer to each yes-or-no question about an image, uint8 [H, W, 3], in
        lower case and without white space. Raises UserError if there is no answer.
        """
        ...


class LocalAnswers:
    """Answers by a vision-language model of transformers: one token is predicted, none is generated.

    The model is given the image at most `longest` px long; None leaves the size to its own processor.
    """

    def __init__(self, model: VisionLanguageModel, longest: int | None) -> None:
        self._model, self._view = model, View(longest=longest)
        size = "" if longest is None else f"/longest-{longest}"
        self.name = f"by-{_kind(model)}{size}"
        self.identity = {"weights": model.weights_hash, "dtype": str(model.model.dtype)}

    @classmethod
    def load(cls, weights: str, longest: int | None, device: str) -> LocalAnswers:
        """Load a folder or hub id in float32 on a CPU, else in bfloat16. Raises UserError as
        `VisionLanguageModel.load`.
        """
        dtype = "float32" if device == "cpu" else "bfloat16"
        return cls(VisionLanguageModel.load(weights, device, dtype), longest)

    def words(self, image: Any, questions: Sequence[str]) -> list[str]:
        tokenizer = self._model.processor.tokenizer
        seen = self._view.of(image)
        found = []
        for question in questions:
            token = int(self._model.next_logits([seen], question + YES_OR_NO)[0].argmax())
            found.append(tokenizer.decode([token]).strip().lower())
        return found

    def probabilities(self, image: Any, questions: Sequence[tuple[str, Sequence[str]]]) -> list[float]:
        """Return for each prompt the probability that the answer's first token begins one of its texts.

        The first token of each text counts, and each token once; in [0, 1].
        """
        tokenizer = self._model.processor.tokenizer
        seen = self._view.of(image)
        found = []
        for prompt, texts in questions:
            tokens = {tokenizer.encode(text, add_special_tokens=False)[0] for text in texts}
            probabilities = self._model.next_logits([seen], prompt)[0].double().softmax(-1)
            found.append(float(probabilities[sorted(tokens)].sum().clamp(max=1)))
        return found


class ServerAnswers:
    """Answers by a model behind an OpenAI-compatible server. Its weights are not known: the name of the model
    is all that identifies it.
    """

    def __init__(self, server: ChatServer, longest: int | None) -> None:
        self._server, self._view = server, View(longest=longest)
        size = "" if longest is None else f"/longest-{longest}"
        self.name = f"by-server-{server.model.rpartition('/')[2]}{size}"
        self.identity = {"model": server.model}

    def words(self, image: Any, questions: Sequence[str]) -> list[str]:
        (seen,) = as_pil([self._view.of(image)])
        part = image_part(seen, "PNG")
        found = []
        for each in answers(lambda question: self._one(part, question), questions, AT_ONCE):
            if isinstance(each, NoAnswer):
                what = f"{self._server.url} has no answer to a question ({one_line(each)})"
                raise UserError(what, "use another model; the same command resumes")
            found.append(each)
        return found

    def _one(self, part: dict[str, Any], question: str) -> str:
        content = [part, {"type": "text", "text": question + YES_OR_NO}]
        choice = self._server.choice([{"role": "user", "content": content}], TOKENS)
        return _first_word(without_thoughts(complete_text(choice, TOKENS)))


class FunctionAnswers:
    """Answers by a function of the user's own, which is given the image and the bare question, and returns a
    text: the way to models that transformers does not have.
    """

    def __init__(self, path: str) -> None:
        self._function, self._path = load_object(path, "function"), path
        if not callable(self._function):
            raise UserError(f"{path} is not a function", "name one as package.module:name")
        self.name = f"by-function-{path.rpartition(':')[2]}"
        self.identity = {"function": path, **source_hash(self._function)}

    def words(self, image: Any, questions: Sequence[str]) -> list[str]:
        found = []
        for question in questions:
            try:
                answer = self._function(image, question)
            except UserError:
                raise
            except Exception as error:
                # whatever the user's code raises
                reason = f"{type(error).__name__}: {one_line(error)[:200]}"
                raise UserError(f"the function {self._path} failed ({reason})", "see the function") from error
            if not isinstance(answer, str):
                what = f"the function {self._path} returned {one_line(answer)[:80]}"
                raise UserError(what, "it must return a text")
            found.append(_first_word(answer))
        return found


def _kind(model: VisionLanguageModel) -> str:
    """Its class and number of parameters, as `qwen3-vl-8.8b`: the same wherever its files are."""
    count = model.model.num_parameters()
    size = f"{count / 1e9:.1f}b" if count >= 5e8 else f"{count / 1e6:.1f}m"
    return f"{model.model.config.model_type.replace('_', '-')}-{size}"


def _first_word(text: str) -> str:
    """The first word in lower case; the text itself if it has none."""
    found = re.search(r"\w+", text)
    return (found[0] if found else text.strip()).lower()
