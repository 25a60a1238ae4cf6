"""What a judge decides about two images of one prompt, and how the decisions are counted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from uhr.base.console import say, table
from uhr.train.evaluate import bootstrap

Choice = Literal["first", "second", "tie"]

QUESTIONS: Mapping[str, str] = {
    "quality": "Which image is technically better? Judge sharpness and fine detail, noise, and faults such "
    "as seams, repeated patterns, smeared texture and malformed objects.",
    "alignment": "Which image shows more of what the prompt says? Judge which things there are, how many, "
    "their colours, places and actions, and the style.",
    "aesthetics": "Which image is more pleasing to look at? Judge composition, light and colour, whatever "
    "the prompt says.",
}
"""What URAE's preference study compares (quality, alignment, aesthetics), in words of this project."""


class Decision(NamedTuple):
    """What was decided about a prompt: 1 the second result is better, 0 the first, 0.5 neither."""

    row: int
    question: str
    score: float


class Preference(NamedTuple):
    """The decisions on one question.

    first, second, ties: numbers of prompts. share: the mean score of the second result, ties as half.
    decided: the share of the prompts that are no tie on which the second result is better, with Wilson's
    interval over prompts; None if all are ties, which say nothing on which result is better. n: prompts.
    """

    question: str
    first: int
    second: int
    ties: int
    share: float
    decided: float | None
    low: float | None
    high: float | None
    n: int


def preferences(decisions: Sequence[Decision]) -> list[Preference]:
    """Count the decisions on each question.

    Several decisions on a prompt, of several people, are averaged; the interval is over prompts. A bootstrap
    would have no width where all prompts agree, be they three or three hundred.
    """
    found = []
    for question in dict.fromkeys(each.question for each in decisions):
        own = [each for each in decisions if each.question == question]
        by_row: dict[int, list[float]] = {}
        for each in own:
            by_row.setdefault(each.row, []).append(each.score)
        means = [sum(each) / len(each) for each in by_row.values()]
        first, second = sum(mean < 0.5 for mean in means), sum(mean > 0.5 for mean in means)
        decided = bootstrap.share_interval(second, first + second) if first + second else None
        found.append(
            Preference(
                question=question,
                first=first,
                second=second,
                ties=len(means) - first - second,
                share=sum(each.score for each in own) / len(own),
                decided=None if decided is None else decided.value,
                low=None if decided is None else decided.low,
                high=None if decided is None else decided.high,
                n=len(means),
            )
        )
    return found


def print_preferences(facts: Mapping[str, Any]) -> None:
    """Print the preferences in the facts of a judge, with the names of both results."""
    one, other = facts["arms"]
    rows = []
    for each in facts["preferences"]:
        decided = "no prompt decided"
        if each["decided"] is not None:
            shares = [f"{100 * each[name]:.0f}" for name in ("decided", "low", "high")]
            decided = f"{shares[0]} % [{shares[1]}, {shares[2]}]"
        counts = (each["first"], each["ties"], each["second"])
        rows.append([each["question"], *counts, f"{100 * each['share']:.0f} %", decided, each["n"]])
    head = ("question", f"{one} better", "tie", f"{other} better", f"{other}, ties as half")
    table((*head, f"{other} where decided, {bootstrap.LEVEL:.0%} interval", "n"), rows)
    if facts.get("unanswered"):
        say(f"{facts['unanswered']} questions have no usable answer and are not counted")
