"""Rewrite prompts with a language model before images are generated."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from uhr.base.config import fingerprint
from uhr.base.errors import UserError, one_line
from uhr.models.llm.chat import ChatServer, NoAnswer

# its hash is in records and in the names of stored answers: do not reword
INSTRUCTION = """\
You prepare prompts for a text-to-image model that paints very large, finely detailed pictures. You are \
given a short prompt. Rewrite it as one paragraph that describes the finished picture to somebody who \
cannot see it.

Stay with what was asked. Every subject, number, colour, name, style and quoted text of the prompt stays, \
and nothing is added that would change what the picture is of. Words in quotation marks are to be painted \
as they stand: copy them exactly and keep the marks.

Then fill in what the prompt leaves open, as far as it serves the picture: where things stand in the \
frame and how far away; what they are made of and what their surfaces look like close up; what lies in \
the foreground and in the distance; where the light comes from and what its colour is; the time of day, \
the weather, the mood; the medium, and for a photograph the lens and the depth of field. Prefer things \
that can be seen over praise: "frost on the fence wire", not "stunning, masterpiece, 8k".

Write in English, 80 to 150 words, present tense, plain sentences. Do not speak of the prompt, of \
yourself or of an "image". Answer with the paragraph alone, without a heading, list or quotation marks \
around it.
"""
"""The default instruction of the language model; `--refine-instruction` replaces it. Its hash is part of
every record of a refined prompt, so it changes only with a reason."""

TOKENS = 2048
"""The longest answer in tokens, with a margin for models that write their reasoning first."""

_THOUGHT_ENDS = "</think>"

_ANNOUNCED = re.compile(r"\A[^\n]{0,120}:[*_ ]*\n\s*\n")
"""A short first line that ends in a colon, with an empty line below: 'Sure! Here is the prompt:'."""


@dataclass(frozen=True)
class Refinement:
    """The options of `--refine`: a server, one of its models (None: the only one), and a file with an
    instruction (None: `INSTRUCTION`).
    """

    url: str
    model: str | None = None
    instruction: Path | None = None
    seconds: float = 120.0

    def open(self) -> Refiner:
        """Return the refiner. Without a model's name, the server is queried for it."""
        return Refiner(ChatServer(self.url, self.model, self.seconds), self.text)

    @property
    def text(self) -> str:
        """The instruction."""
        return INSTRUCTION if self.instruction is None else _read(self.instruction)


@dataclass(frozen=True)
class Refiner:
    """A model of a server, and its instruction."""

    server: ChatServer
    instruction: str = field(default=INSTRUCTION, repr=False)

    @cached_property
    def instruction_hash(self) -> str:
        """SHA-256 (64 hex digits) of the instruction."""
        return hashlib.sha256(self.instruction.encode()).hexdigest()

    def key(self, prompt: str) -> str:
        """Return the key under which an answer may be cached (64 hex digits)."""
        return fingerprint([prompt, self.server.model, self.instruction])

    def rewrite(self, prompt: str) -> str:
        """Return the prompt rewritten, as one line. Raises NoAnswer and ServerError as
        `ChatServer.answer`."""
        answer = self.server.answer(self.instruction, prompt, tokens=TOKENS)
        # reasoning models may put their thoughts before the answer, and others an announcement
        text = " ".join(_ANNOUNCED.sub("", answer.rpartition(_THOUGHT_ENDS)[2].strip()).split())
        if len(text) > 1 and text[0] == text[-1] == '"' and '"' not in text[1:-1]:
            text = text[1:-1].strip()
        if not text:
            raise NoAnswer("the answer is empty")
        return text


def _read(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"--refine-instruction {path} cannot be read ({one_line(error)})", "name a text file"
        ) from None
    if not text.strip():
        raise UserError(
            f"--refine-instruction {path} is empty", "write the instruction for the model into it"
        )
    return text
