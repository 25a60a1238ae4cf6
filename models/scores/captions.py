"""Captions by a vision-language model, on this machine or behind an OpenAI-compatible server."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uhr.base.config import fingerprint
from uhr.base.errors import UserError, one_line
from uhr.base.files import user_path
from uhr.models.llm.answers import check_refusal, check_schema, structured, without_thoughts
from uhr.models.llm.chat import ChatServer, NoAnswer, complete_text, image_part
from uhr.models.llm.pool import answers
from uhr.models.loading.checks import load_whole
from uhr.models.scores.images import View, as_pil
from uhr.models.scores.offline import no_downloads
from uhr.models.scores.vlm import VisionLanguageModel
from uhr.models.scores.weights import EVERYTHING, Weights, hash_of_files

if TYPE_CHECKING:
    import numpy as np

PROMPT = """\
Describe this image in English in one paragraph of 80 to 150 words, for somebody who will make an image \
from your text alone. Name the medium, the subjects and how many there are, what they look like and where \
they are, foreground and background, light, colours and mood. Quote visible text exactly. Describe only \
what can be seen. Answer with the paragraph alone.
"""
"""The default question for a long caption. Its hash is part of the results, as that of any other prompt."""

Answer = str | NoAnswer
"""A caption, or why there is none: empty, cut, refused, or not of its schema."""


@dataclass(frozen=True)
class CaptionPrompt:
    """One kind of caption: its question, the longest answer in tokens, and the JSON schema of a structured
    caption. `system` is the system message.
    """

    text: str = PROMPT
    tokens: int = 512
    schema: Mapping[str, Any] | None = None
    system: str | None = None

    def __post_init__(self) -> None:
        if not self.text.strip():
            raise UserError("the prompt of a caption is empty", "write the question to the model into it")
        if self.schema is not None:
            check_schema(self.schema)

    @classmethod
    def of_files(
        cls, text: str | Path | None = None, schema: str | Path | None = None, tokens: int = 512
    ) -> CaptionPrompt:
        """Read the question, and the schema, from files. Raises UserError if one cannot be read."""
        tree = None
        if schema is not None:
            try:
                tree = json.loads(read_text(schema))
            except ValueError as error:
                raise UserError(f"the schema {schema} is not JSON ({one_line(error)})", "fix it") from None
        return cls(PROMPT if text is None else read_text(text), tokens, tree)

    @property
    def hash(self) -> str:
        """SHA-256 (64 hex digits) of everything that decides the caption, apart from the model."""
        return fingerprint([self.text, self.tokens, self.schema, self.system])

    def checked(self, answer: str) -> str:
        """Return the caption of a complete answer. Raises NoAnswer for a refusal, and outside the schema."""
        text = check_refusal(without_thoughts(answer))
        return text if self.schema is None else structured(text, self.schema)


class LocalCaptioner:
    """Greedy captions by a model of transformers on this machine."""

    def __init__(self, model: VisionLanguageModel, prompt: CaptionPrompt, view: View) -> None:
        self._model, self.prompt, self.view = model, prompt, view
        self.weights_hash = model.weights_hash

    @classmethod
    def load(
        cls,
        weights: str | Path,
        prompt: CaptionPrompt,
        view: View,
        device: str = "cpu",
        dtype: str = "bfloat16",
        options: Mapping[str, Any] | None = None,
    ) -> LocalCaptioner:
        """Load the model as `VisionLanguageModel.load`."""
        return cls(VisionLanguageModel.load(weights, device, dtype, options), prompt, view)

    def captions(self, images: Sequence[Any]) -> list[Answer]:
        """Return a caption of each image, or why there is none."""
        found: list[Answer] = []
        for text, complete in self._model.generate(
            images, self.prompt.text, self.prompt.system, self.prompt.tokens
        ):
            try:
                if not complete:
                    raise NoAnswer(f"the answer is longer than {self.prompt.tokens} tokens")
                found.append(self.prompt.checked(text))
            except NoAnswer as error:
                found.append(error)
        return found


class ServerCaptioner:
    """Captions by a model behind a server, several requests at a time; images are sent as JPEG."""

    weights_hash = None

    def __init__(self, server: ChatServer, prompt: CaptionPrompt, view: View, concurrency: int = 8) -> None:
        self._server, self.prompt, self.view, self._concurrency = server, prompt, view, concurrency

    def captions(self, images: Sequence[Any]) -> list[Answer]:
        """Return a caption of each image, or why there is none. Raises ServerError if the server cannot be
        used at all.
        """
        return answers(self._one, as_pil(images), self._concurrency)

    def _one(self, image: Any) -> str:
        prompt = self.prompt
        content = [image_part(image, "JPEG"), {"type": "text", "text": prompt.text}]
        messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
        if prompt.system is not None:
            messages.insert(0, {"role": "system", "content": prompt.system})
        options: dict[str, Any] = {"seed": 0}
        if prompt.schema is not None:
            schema = {"name": "caption", "schema": prompt.schema}
            options["response_format"] = {"type": "json_schema", "json_schema": schema}
        choice = self._server.choice(messages, prompt.tokens, **options)
        if refusal := choice["message"].get("refusal"):
            raise NoAnswer(f"the model refused: {one_line(refusal)[:100]}")
        return prompt.checked(complete_text(choice, prompt.tokens))


class TokenCounter:
    """Counts the tokens of texts as a text encoder of a backbone sees them, its special tokens included."""

    def __init__(self, tokenizer: Any, weights_hash: str) -> None:
        self._tokenizer = tokenizer
        self.weights_hash = weights_hash

    @classmethod
    def load(cls, folder: str | Path) -> TokenCounter:
        """Load a tokenizer, such as the folder `tokenizer` (CLIP) or `tokenizer_2` (T5) of a FLUX.1 model."""
        from transformers import AutoTokenizer

        path = Weights.parse(folder).fetch(EVERYTHING)
        with no_downloads():
            return cls(load_whole(AutoTokenizer, path, f"the tokenizer in {path}"), hash_of_files(path))

    def count(self, texts: Sequence[str]) -> np.ndarray:
        """Return the number of tokens of each text, uncut (int64)."""
        import numpy as np

        # a warning that the text is longer than the encoder takes would come for the first one only
        found = self._tokenizer(list(texts), truncation=False, verbose=False)["input_ids"]
        return np.array([len(ids) for ids in found], dtype=np.int64)


def read_text(path: str | Path) -> str:
    """Return the text of a file that a user named. Raises UserError if it cannot be read."""
    try:
        return user_path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({one_line(error)})", "name a text file") from None
