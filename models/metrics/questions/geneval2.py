"""GenEval 2 (arXiv 2512.16853): Soft-TIFA, the probability of the right answer to each question."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pydantic import Field

from uhr.base.config import Config
from uhr.base.errors import UserError
from uhr.models.metrics.base import About, Need, Sample, ScoreColumn, column_name
from uhr.models.metrics.per_image import PerImage
from uhr.models.metrics.questions.answering import LocalAnswers
from uhr.models.metrics.questions.by_category import (
    RANGE,
    category_columns,
    category_values,
    distinct,
    percent,
)
from uhr.models.metrics.questions.files import COUNT, NUMBERS, Benchmark, Question

ONE_WORD = " Answer in one word."
"""What follows each question; it decides the numbers, and is that of the published script."""

YES = ("Yes", "yes", " yes", " Yes")


def spellings(question: Question) -> tuple[str, ...]:
    """Return the texts that count as the right answer: for a number its word and digits, each also with a
    blank before it.
    """
    if not question.text.startswith(COUNT):
        return YES
    word = question.answer.lower()
    texts = (word, word.capitalize(), str(NUMBERS.index(word) + 1))
    return (*texts, *(f" {text}" for text in texts))


def geometric_mean(scores: Sequence[float]) -> float:
    """The geometric mean of one or more scores in [0, 1]; 0 if one of them is 0."""
    return math.exp(sum(map(math.log, scores)) / len(scores)) if min(scores) > 0 else 0.0


class GenEval2(PerImage):
    """Soft-TIFA of an image in percent: the arithmetic mean (AM) of the probabilities of the right answers to
    the questions of its prompt, and their geometric mean (GM).

    By skill (count, attribute, ...) the value is the mean over the questions of all images; by number of
    atoms of the prompt, the mean of GM over images. The published scorer is Qwen3-VL-8B-Instruct with the
    image at its own size, the default; the name says which model answered.
    """

    needs: frozenset[Need] = frozenset({"prompt"})

    about = About(
        "probability that a vision-language model answers questions about the prompt's parts rightly",
        "questions: CC BY-NC 4.0; weights: Apache-2.0",
        "arXiv 2512.16853",
        {
            "questions": "geneval2_data.jsonl of github.com/facebookresearch/GenEval2",
            "weights": "huggingface.co/Qwen/Qwen3-VL-8B-Instruct, or another model of transformers",
        },
    )

    class Options(Config):
        """questions: the published JSON lines. weights: a folder or hub id. longest: px of the longer side
        that larger images are reduced to; null: the model's own rule, as published.
        """

        questions: str | None = None
        weights: str = "Qwen/Qwen3-VL-8B-Instruct"
        longest: int | None = Field(None, ge=32)

    def __init__(self, benchmark: Benchmark, answers: LocalAnswers) -> None:
        self._benchmark, self._answers = benchmark, answers
        items = benchmark.items
        self._skills = distinct([each.category for item in items for each in item.questions])
        self._atoms = distinct([str(item.atoms) for item in items], int)
        super().__init__(
            f"geneval2/{answers.name}/soft-tifa/x100",
            weights={"questions": benchmark.hash, **answers.identity},
            packages=("torch", "transformers"),
        )
        column = column_name(self.name)
        self.columns = (
            ScoreColumn(f"{column}_am", "higher", f"{self.about.measures}: arithmetic mean", RANGE),
            ScoreColumn(f"{column}_gm", "higher", f"{self.about.measures}: geometric mean", RANGE),
            *category_columns(column, self._skills, "Soft-TIFA AM of a skill", "questions"),
            *category_columns(
                f"{column}_gm_atoms", self._atoms, "Soft-TIFA GM of prompts by number of atoms", "images"
            ),
        )

    @classmethod
    def load(cls, options: Options, device: str = "cpu") -> GenEval2:
        """Read the questions and load the model. Raises UserError if the questions are not named."""
        if options.questions is None:
            raise UserError("GenEval 2's questions are not named", f"name {cls.about.weights['questions']}")
        benchmark = Benchmark.geneval2(options.questions)
        return cls(benchmark, LocalAnswers.load(options.weights, options.longest, device))

    def values(self, sample: Sample) -> list[float]:
        assert sample.prompt is not None
        item = self._benchmark.of(sample.prompt)
        requests = [(question.text + ONE_WORD, spellings(question)) for question in item.questions]
        scores = self._answers.probabilities(sample.image, requests)
        by_skill: dict[str, list[float]] = {}
        for question, score in zip(item.questions, scores, strict=True):
            by_skill.setdefault(question.category, []).append(score)
        mean = geometric_mean(scores)
        return [
            percent(scores),
            100 * mean,
            *category_values(by_skill, self._skills),
            *category_values({str(item.atoms): [mean]}, self._atoms),
        ]
