"""A vision-language model on an OpenAI-compatible server compares two results, prompt by prompt.

Each question is put in both orders. The judge has decided if both answers name the same image; otherwise it
is a tie, and a contradiction if each names the other image: such a model prefers a position.

OUT is a folder: request.json, answers/ROW-QUESTION-ORDER.json, and judge.json, which is written last. The
same command resumes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from uhr.base.config import fingerprint
from uhr.base.console import progress
from uhr.base.errors import UserError, one_line
from uhr.base.files import or_half_written, saving, write_json
from uhr.base.locks.run_lock import NAME as LOCK
from uhr.base.run_folder import FolderLayout, RunFolder
from uhr.models.llm.answers import without_thoughts
from uhr.models.llm.chat import ChatServer, NoAnswer, complete_text, image_part
from uhr.models.llm.pool import answers as answer_all
from uhr.train.evaluate.compare.comparison import Arm, Comparison
from uhr.train.evaluate.compare.page import read_image
from uhr.train.evaluate.judges.questions import QUESTIONS, Choice, Decision, preferences

if TYPE_CHECKING:
    import numpy as np

REQUEST, ANSWERS, FILE = "request.json", "answers", "judge.json"
LAYOUT = FolderLayout(
    "the judgement",
    (REQUEST, ANSWERS, FILE, LOCK),
    (REQUEST,),
    {ANSWERS: or_half_written(r"\d{5}-[a-z]+-(ab|ba)\.json")},
)
SCHEMA_VERSION = 1

INSTRUCTION = (
    "You compare two images that were generated from one prompt. Each is shown whole, and then as a crop at "
    "its full resolution. Answer with one word: FIRST, SECOND, or TIE if neither is better."
)

SIDE, CROP = 1024, 768
"""Long side in px of the whole images, and the side of the crops at native resolution."""

TOKENS = 2048
"""The longest answer: some models reason before it."""

_WORDS: Mapping[str, Choice] = {"FIRST": "first", "SECOND": "second", "TIE": "tie"}


@dataclass(frozen=True)
class JudgeJob:
    """Two results, the server that judges them, and how many prompts it sees (evenly spaced)."""

    found: Comparison
    server: ChatServer
    out: Path
    rows: Sequence[int]
    at_once: int = 4

    @property
    def arms(self) -> tuple[Arm, Arm]:
        one, other = self.found.arms
        return one, other


class _Ask(NamedTuple):
    row: int
    question: str
    order: str

    @property
    def file(self) -> str:
        return f"{self.row:05d}-{self.question}-{self.order}.json"


def judge(job: JudgeJob) -> dict[str, Any]:
    """Ask all questions, or those that have no answer yet, and return the content of `judge.json`.

    Raises UserError if OUT belongs to another judgement, if the server cannot be used, or if it answers none
    of the questions.
    """
    folder = RunFolder(job.out, LAYOUT)
    folder.claim()
    asks = [
        _Ask(row, question, order) for row in job.rows for question in QUESTIONS for order in ("ab", "ba")
    ]
    with saving(job.out, "free space there; the same command resumes"), folder.lock():
        folder.keep_request(REQUEST, _request(job), SCHEMA_VERSION, "judgement")
        left = [ask for ask in asks if not (job.out / ANSWERS / ask.file).exists()]
        reasons: list[NoAnswer] = []
        with progress("judge", len(asks), "questions") as advance:
            advance(len(asks) - len(left))

            def one(ask: _Ask) -> None:
                try:
                    write_json(job.out / ANSWERS / ask.file, _answer(job, ask))
                finally:
                    advance()

            reasons = [each for each in answer_all(one, left, job.at_once) if isinstance(each, NoAnswer)]
        if len(reasons) == len(asks):
            raise UserError(
                f"no question was answered: {one_line(reasons[0])}", "check the server and its model"
            )
        facts = _facts(job, asks)
        write_json(job.out / FILE, facts)
    return facts


def _request(job: JudgeJob) -> dict[str, Any]:
    """What decides the answers."""
    return {
        "model": job.server.model,
        "questions": fingerprint([INSTRUCTION, dict(QUESTIONS), SIDE, CROP]),
        "images": [fingerprint(arm.scores["sha256"].to_pylist()) for arm in job.arms],
        "prompts": job.found.arms[0].info.prompts,
        "rows": list(job.rows),
    }


def _answer(job: JudgeJob, ask: _Ask) -> dict[str, Any]:
    """Ask one question. Raises NoAnswer if the answer is cut, or is not one of the three words."""
    arms = job.arms if ask.order == "ab" else job.arms[::-1]
    prompt = job.found.arms[0].scores["prompt"][ask.row].as_py()
    parts: list[dict[str, Any]] = []
    for name, arm in zip(("FIRST", "SECOND"), arms, strict=True):
        whole, crop = _views(arm, ask.row)
        parts += [{"type": "text", "text": f"The {name} image:"}, whole, crop]
    parts.append({"type": "text", "text": f"The prompt: {prompt}\n\n{QUESTIONS[ask.question]}"})
    messages = [{"role": "system", "content": INSTRUCTION}, {"role": "user", "content": parts}]
    # an answer that was cut may name an image in its reasoning alone
    text = without_thoughts(complete_text(job.server.choice(messages, TOKENS), TOKENS))
    words = re.findall(r"\b(FIRST|SECOND|TIE)\b", text.upper())
    if len(set(words)) != 1:
        raise NoAnswer(f"the answer is not FIRST, SECOND or TIE: {text[:80]!r}")
    return {"choice": _WORDS[words[0]], "text": text[:400]}


def _views(arm: Arm, row: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """The whole image, and a crop at native resolution whose place depends on the row alone."""
    import numpy as np

    from uhr.pixels.decode import fit

    pixels, _ = read_image(arm, row)
    height, width = (min(CROP, side) for side in pixels.shape[:2])
    rng = np.random.default_rng(row)
    top, left = (
        int(rng.integers(0, side - size + 1))
        for side, size in zip(pixels.shape, (height, width), strict=False)
    )
    return _part(fit(pixels, SIDE)), _part(pixels[top : top + height, left : left + width])


def _part(pixels: np.ndarray) -> dict[str, Any]:
    from PIL import Image

    return image_part(Image.fromarray(pixels), "PNG")


def _facts(job: JudgeJob, asks: Sequence[_Ask]) -> dict[str, Any]:
    choices: dict[tuple[int, str], dict[str, Choice]] = {}
    for ask in asks:
        file = job.out / ANSWERS / ask.file
        if file.exists():
            choices.setdefault((ask.row, ask.question), {})[ask.order] = json.loads(file.read_text())[
                "choice"
            ]
    decisions, contradictions, first, named = [], 0, 0, 0
    for (row, question), both in choices.items():
        first += sum(choice == "first" for choice in both.values())
        named += sum(choice != "tie" for choice in both.values())
        if len(both) < 2:
            continue
        scores = [_score(both["ab"]), 1 - _score(both["ba"])]
        contradictions += {*scores} == {0.0, 1.0}
        decisions.append(Decision(row, question, scores[0] if scores[0] == scores[1] else 0.5))
    return {
        "schema_version": SCHEMA_VERSION,
        "arms": [arm.name for arm in job.arms],
        "protocol": job.found.arms[0].info.protocol.id,
        "model": job.server.model,
        "preferences": [each._asdict() for each in preferences(decisions)],
        "contradictions": contradictions,
        "first_share": first / named if named else None,
        "unanswered": len(asks) - sum(map(len, choices.values())),
    }


def _score(choice: Choice) -> float:
    """1 if the second image is better, 0 if the first, 0.5 for a tie."""
    return {"first": 0.0, "tie": 0.5, "second": 1.0}[choice]
