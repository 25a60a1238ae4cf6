"""Reads the questions of DPG-Bench and GenEval 2 from the files in which they are published."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uhr.base.errors import UserError, one_line
from uhr.base.files import sha256_file, user_path

DPG_COLUMNS = ("item_id", "text", "proposition_id", "dependency", "tuple", "question_natural_language")
"""The columns of dpg_bench.csv that are read."""

NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
"""The answers to GenEval 2's questions that begin with `COUNT`."""

COUNT = "How many"


@dataclass(frozen=True)
class Question:
    """A question about an image.

    id: its number among those of its prompt. answer: the expected one. category: what it is about, such as
    `attribute - color` (DPG-Bench) or `count` (GenEval 2). parents: ids of the questions that it depends on.
    """

    id: int
    text: str
    answer: str
    category: str
    parents: tuple[int, ...] = ()


@dataclass(frozen=True)
class PromptQuestions:
    """A prompt of a benchmark with its questions, in the order of the file.

    name: of the prompt, if the benchmark has one. atoms: GenEval 2's `atom_count`.
    """

    prompt: str
    questions: tuple[Question, ...]
    name: str | None = None
    atoms: int | None = None


class Benchmark:
    """The questions of a file, found by prompt. White space in prompts is not compared.

    hash: SHA-256 (64 hex digits) of the file.
    """

    def __init__(self, path: Path, items: Iterable[PromptQuestions]) -> None:
        self.path, self.hash = path, sha256_file(path)
        self.items = tuple(items)
        self._by_prompt: dict[str, list[PromptQuestions]] = {}
        for item in self.items:
            self._by_prompt.setdefault(one_line(item.prompt), []).append(item)

    @classmethod
    def dpg_bench(cls, path: str | Path) -> Benchmark:
        """Read dpg_bench.csv. Raises UserError as `read_dpg_bench`."""
        file = user_path(str(path))
        return cls(file, read_dpg_bench(file))

    @classmethod
    def geneval2(cls, path: str | Path) -> Benchmark:
        """Read geneval2_data.jsonl. Raises UserError as `read_geneval2`."""
        file = user_path(str(path))
        return cls(file, read_geneval2(file))

    def of(self, prompt: str) -> PromptQuestions:
        """Return the questions of a prompt. Raises UserError if there are none, or those of two items."""
        found = self._by_prompt.get(one_line(prompt), [])
        if not found:
            short = one_line(prompt)[:60]
            raise UserError(f"{self.path} has no questions for the prompt '{short}'", "use its own prompts")
        if any(each.questions != found[0].questions for each in found):
            short = one_line(prompt)[:60]
            raise UserError(
                f"{self.path} has two items with the prompt '{short}' and different questions", "remove one"
            )
        return found[0]


def read_dpg_bench(path: Path) -> list[PromptQuestions]:
    """Return the prompts of DPG-Bench's CSV, which has a row per question, in the order of the file.

    The first row is a question like any other; the published script (compute_dpg_bench.py) skips it.

    Raises UserError if the file cannot be read, lacks a column, or has a row that is no question.
    """
    texts: dict[str, str] = {}
    questions: dict[str, list[Question]] = {}
    for line, row in _csv_rows(path):
        where = f"{path} line {line}"
        item, question = row["item_id"].strip(), row["question_natural_language"].strip()
        category = row["tuple"].partition("(")[0].strip()
        if not (item and question and category):
            raise UserError(f"{where} has no item_id, tuple or question", "download the file again")
        number = _whole(row["proposition_id"], where, "proposition_id")
        parents = tuple(_whole(text, where, "dependency") for text in row["dependency"].split(","))
        questions.setdefault(item, []).append(
            Question(number, question, "yes", category, tuple(each for each in parents if each != 0))
        )
        if not texts.get(item):
            texts[item] = one_line(row["text"])
    for item, found in questions.items():
        if not texts[item]:
            raise UserError(f"{path}: the item '{item}' has no text", "download the file again")
        _check_ids(path, item, found)
    return [PromptQuestions(texts[item], tuple(found), item) for item, found in questions.items()]


def _csv_rows(path: Path) -> Iterator[tuple[int, Mapping[str, str]]]:
    """The number of the last line of each row, and its cells; a missing cell is empty."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, restval="", strict=True)
            lacking = [name for name in DPG_COLUMNS if name not in (reader.fieldnames or ())]
            if lacking:
                what = f"{path} has no column {lacking[0]}"
                raise UserError(what, "name dpg_bench.csv of DPG-Bench")
            for row in reader:
                yield reader.line_num, row
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(
            f"{path} cannot be read ({one_line(error)})", "name dpg_bench.csv of DPG-Bench"
        ) from None


def _whole(text: str, where: str, name: str) -> int:
    text = text.strip()
    if not (text.isascii() and text.isdecimal()):
        raise UserError(f"{where}: {name} '{text[:40]}' is not a whole number", "correct that line")
    return int(text)


def _check_ids(path: Path, item: str, questions: list[Question]) -> None:
    """Raise UserError if an id occurs twice, or a parent does not exist."""
    ids = [question.id for question in questions]
    for question in questions:
        if ids.count(question.id) > 1:
            what = f"{path}: proposition_id {question.id} of '{item}' occurs twice"
            raise UserError(what, "correct one of them")
        for parent in question.parents:
            if parent not in ids:
                what = f"{path}: question {question.id} of '{item}' depends on {parent}, which does not exist"
                raise UserError(what, "correct its dependency")


def read_geneval2(path: Path) -> list[PromptQuestions]:
    """Return the prompts of GenEval 2's JSON lines: `prompt`, `atom_count`, `vqa_list` and `skills`.

    Raises UserError if the file cannot be read, or a line has other contents.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        fix = "name geneval2_data.jsonl of GenEval 2"
        raise UserError(f"{path} cannot be read ({one_line(error)})", fix) from None
    return [_geneval2(line, f"{path} line {number}") for number, line in enumerate(lines, 1) if line.strip()]


def _geneval2(line: str, where: str) -> PromptQuestions:
    try:
        row = json.loads(line)
        prompt, atoms, pairs, skills = (row[key] for key in ("prompt", "atom_count", "vqa_list", "skills"))
        texts = [(text, answer) for text, answer in pairs]
    except (ValueError, LookupError, TypeError, RecursionError):
        what = f"{where} is not an object with prompt, atom_count, vqa_list and skills"
        raise UserError(what, "name geneval2_data.jsonl of GenEval 2") from None
    if not _is_text(prompt) or type(atoms) is not int or not texts or not isinstance(skills, list):
        raise UserError(f"{where} has no prompt, atom_count, question or skills", "correct that line")
    if len(skills) != len(texts) or not all(map(_is_text, skills)):
        what = f"{where} has {len(skills)} skills for {len(texts)} questions"
        raise UserError(what, "give each question a skill")
    questions = []
    for number, ((text, answer), skill) in enumerate(zip(texts, skills, strict=True), 1):
        if not _is_text(text) or not _is_text(answer):
            raise UserError(f"{where}: question {number} is not a text with an answer", "correct that line")
        known = NUMBERS if text.startswith(COUNT) else ("yes",)
        if answer.lower() not in known:
            what = f"{where}: the answer to '{text[:40]}' is '{answer[:20]}'"
            raise UserError(what, f"it must be {known[0]}" + (f" to {known[-1]}" if len(known) > 1 else ""))
        questions.append(Question(number, text, answer, skill))
    return PromptQuestions(prompt, tuple(questions), atoms=atoms)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())
