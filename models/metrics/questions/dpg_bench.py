"""DPG-Bench (ELLA, arXiv 2403.05135): yes-or-no questions about long prompts, with dependencies."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field

from uhr.base.config import Config
from uhr.base.errors import UserError
from uhr.models.llm.chat import ChatServer
from uhr.models.metrics.base import About, Need, Sample, ScoreColumn, column_name
from uhr.models.metrics.per_image import PerImage
from uhr.models.metrics.questions.answering import Answerer, FunctionAnswers, LocalAnswers, ServerAnswers
from uhr.models.metrics.questions.by_category import (
    RANGE,
    category_columns,
    category_values,
    distinct,
    percent,
)
from uhr.models.metrics.questions.files import Benchmark, Question

COMPARABLE = "comparable with published values only if mPLUG-large answered"


def counted_answers(questions: Sequence[Question], yes: Mapping[int, bool]) -> list[float]:
    """Return 1 for each question that was answered yes and whose parents count, else 0.

    Questions are taken in their order, as the published script takes them: a parent that does not count
    itself takes its children with it if it comes before them.
    """
    counts = {question.id: float(yes[question.id]) for question in questions}
    for question in questions:
        if any(counts[parent] == 0 for parent in question.parents):
            counts[question.id] = 0.0
    return [counts[question.id] for question in questions]


class DpgBench(PerImage):
    """DPG-Bench's score of an image: the percentage of its prompt's questions that are answered yes, where a
    question whose parent was not answered yes is not counted as yes.

    The published scorer is mPLUG-large, which transformers does not have. The name says which model answered:
    values by two models cannot be compared, nor with published ones unless mPLUG-large answered.

    A category's value is over the bare answers, without dependencies, and over the questions of all images,
    as the published script computes it; of a grid, that script takes the answers about the last image alone,
    and this metric those about all four.
    """

    needs: frozenset[Need] = frozenset({"prompt"})

    about = About(
        "share of a prompt's details that a vision-language model finds in the image",
        "questions: see their repository; weights: see the model's card",
        "arXiv 2403.05135",
        {"questions": "dpg_bench/dpg_bench.csv of github.com/TencentQQGYLab/ELLA"},
        {
            "weights": "a chat model of transformers that sees images, such as Qwen/Qwen3-VL-8B-Instruct",
            "server": "or the address of an OpenAI-compatible server",
            "model": "the server's name of the model, if it has several",
            "function": "or package.module:name of a function of image and question; for mPLUG-large",
        },
    )

    class Options(Config):
        """questions: the published CSV. weights, server (with model), function: what answers, exactly one of
        them. longest: px of the longer side that larger images are reduced to; null: the model's own rule.
        grid: 2 if each file has four images of its prompt, 2 by 2, which are scored one by one. categories:
        the broad ones, such as attribute, or the detailed ones, such as attribute - color.
        """

        questions: str | None = None
        weights: str | None = None
        server: str | None = None
        model: str | None = None
        function: str | None = None
        longest: int | None = Field(None, ge=32)
        grid: Literal[1, 2] = 1
        categories: Literal["broad", "detailed"] = "broad"

    def __init__(self, benchmark: Benchmark, answerer: Answerer, options: Options) -> None:
        self._benchmark, self._answerer, self._options = benchmark, answerer, options
        self._categories = distinct(
            [self._category(each) for item in benchmark.items for each in item.questions]
        )
        grid = "/grid-2x2" if options.grid == 2 else ""
        detailed = "/detailed" if options.categories == "detailed" else ""
        super().__init__(
            f"dpg-bench/{answerer.name}{grid}{detailed}/x100",
            weights={"questions": benchmark.hash, **answerer.identity},
            packages=("torch", "transformers"),
        )
        column = column_name(self.name)
        self.columns = (
            ScoreColumn(column, "higher", f"{self.about.measures}; {COMPARABLE}", RANGE),
            ScoreColumn(
                f"{column}_unclear",
                "lower",
                "share of answers that are neither yes nor no; counted as no",
                RANGE,
            ),
            *category_columns(column, self._categories, "share of questions answered yes", "questions"),
        )

    @classmethod
    def load(cls, options: Options, device: str = "cpu") -> DpgBench:
        """Read the questions and load the model. Raises UserError if one is not named, or two models are."""
        if options.questions is None:
            raise UserError("DPG-Bench's questions are not named", f"name {cls.about.weights['questions']}")
        named = [each for each in ("weights", "server", "function") if getattr(options, each) is not None]
        if len(named) != 1:
            what = f"DPG-Bench needs one model that answers, and {' and '.join(named) or 'none'} is named"
            raise UserError(what, "name one of weights, server and function")
        if options.model is not None and options.server is None:
            raise UserError(f"DPG-Bench's model '{options.model}' is a server's", "name its server")
        benchmark = Benchmark.dpg_bench(options.questions)
        answerer: Answerer
        if options.weights is not None:
            answerer = LocalAnswers.load(options.weights, options.longest, device)
        elif options.server is not None:
            answerer = ServerAnswers(ChatServer(options.server, options.model), options.longest)
        else:
            assert options.function is not None
            answerer = FunctionAnswers(options.function)
        return cls(benchmark, answerer, options)

    def _category(self, question: Question) -> str:
        detailed = question.category
        return detailed if self._options.categories == "detailed" else detailed.partition("-")[0].strip()

    def values(self, sample: Sample) -> list[float]:
        assert sample.prompt is not None
        questions = self._benchmark.of(sample.prompt).questions
        scores, by_category, unclear = [], dict[str, list[float]](), []
        for image in self._images(sample):
            words = self._answerer.words(image, [question.text for question in questions])
            others = [word for word in words if word not in ("yes", "no")]
            if len(others) == len(words):
                what = f"{self._answerer.name} answers no question about image {sample.index} with yes or no"
                raise UserError(f"{what} ({others[0][:40]!r})", "name a model that follows instructions")
            yes = {question.id: word == "yes" for question, word in zip(questions, words, strict=True)}
            scores.append(percent(counted_answers(questions, yes)))
            unclear.append(100 * len(others) / len(words))
            for question in questions:
                by_category.setdefault(self._category(question), []).append(float(yes[question.id]))
        return [
            sum(scores) / len(scores),
            sum(unclear) / len(unclear),
            *category_values(by_category, self._categories),
        ]

    def _images(self, sample: Sample) -> list[Any]:
        """The image, or the four of a grid: from left to right, then from top to bottom."""
        if self._options.grid == 1:
            return [sample.image]
        height, width = sample.image.shape[:2]
        if height % 2 or width % 2:
            what = f"image {sample.index} has {width}x{height} px, and is no grid of 2 by 2"
            raise UserError(what, "give it even sides, or leave grid=2 out")
        rows, columns = (0, height // 2), (0, width // 2)
        return [
            sample.image[top : top + height // 2, left : left + width // 2]
            for top, left in itertools.product(rows, columns)
        ]
