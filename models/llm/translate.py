"""Translate captions with a language model behind a chat server."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from uhr.models.llm.answers import check_refusal, without_thoughts
from uhr.models.llm.chat import ChatServer, NoAnswer
from uhr.models.llm.pool import answers

# its hash is part of the results: a new wording is a new translation
INSTRUCTION = """\
Translate the user's text from {source} to {target}. It describes an image. Keep every detail, number and \
name, and copy text in quotation marks as it is written. Answer with the translation alone.
"""


@dataclass(frozen=True)
class Translator:
    """A model of a server, and the two languages, in English words."""

    server: ChatServer
    target: str = "Simplified Chinese"
    source: str = "English"
    concurrency: int = 8
    tokens: int = 2048

    @property
    def instruction(self) -> str:
        return INSTRUCTION.format(source=self.source, target=self.target)

    @property
    def hash(self) -> str:
        """SHA-256 (64 hex digits) of the instruction."""
        return hashlib.sha256(self.instruction.encode()).hexdigest()

    def translate(self, texts: Sequence[str]) -> list[str | NoAnswer]:
        """Return the translation of each text, or why there is none: empty, cut, refused, or unchanged.

        Raises ServerError if the server cannot be used.
        """
        return answers(self._one, texts, self.concurrency)

    def _one(self, text: str) -> str:
        answer = self.server.answer(self.instruction, text, tokens=self.tokens)
        found = check_refusal(without_thoughts(answer))
        if found == text.strip():
            raise NoAnswer("the model returned the text as it was")
        return found
