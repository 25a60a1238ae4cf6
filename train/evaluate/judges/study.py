"""A blind page on which people compare two results, and the count of their votes.

OUT is a folder:

    page/index.html    to give to voters, with page/images/: nothing in it says which result an image is of
    key.json           which image is of which result; keep it
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from uhr.base.config import Config, fingerprint, parse_versioned, read_versioned
from uhr.base.console import progress
from uhr.base.errors import UserError, one_line
from uhr.base.files import atomic, or_half_written, saving, write_json
from uhr.base.run_folder import FolderLayout, RunFolder
from uhr.train.evaluate.compare.comparison import Comparison
from uhr.train.evaluate.compare.page import jpeg, read_image
from uhr.train.evaluate.compare.template import template
from uhr.train.evaluate.judges.questions import QUESTIONS, Decision, preferences

PAGE, KEY, IMAGES = "page", "key.json", "page/images"
LAYOUT = FolderLayout(
    "the study",
    (PAGE, KEY),
    (PAGE,),
    {PAGE: or_half_written(r"index\.html"), IMAGES: or_half_written(r"\d{4}-(left|right)\.jpg")},
)
SCHEMA_VERSION = 1


class StudyRow(Config):
    """A pair: the row of both results, and whether the first result is on the left."""

    row: int
    first_is_left: bool


class StudyKey(Config):
    """The content of `key.json`. `id` is also in the page and in the votes."""

    schema_version: int = SCHEMA_VERSION
    id: str
    arms: tuple[str, str]
    protocol: str
    rows: tuple[StudyRow, ...]


class Vote(Config):
    """A choice on a question about a pair, which is counted from 0."""

    pair: int = Field(ge=0)
    question: str
    choice: Literal["left", "right", "tie"]


class Votes(Config):
    """The file that the page saves: one voter's choices."""

    schema_version: int = SCHEMA_VERSION
    study: str
    voter: str
    votes: tuple[Vote, ...]


def write_study(found: Comparison, out: Path, rows: Sequence[int], seed: int) -> StudyKey:
    """Write the page and its key.

    Args:
        rows: the images of both results that are compared.
        seed: of the sides and of the order of the pairs.

    Raises UserError if OUT contains anything, or if an image is missing or has changed.
    """
    import numpy as np

    folder = RunFolder(out, LAYOUT)
    folder.claim()
    if (out / KEY).exists():
        raise UserError(f"--out {out} already contains a study", "name a new folder")
    one, other = found.arms
    rng = np.random.default_rng(seed)
    order = [rows[at] for at in rng.permutation(len(rows))]
    # each result is on the left in half of the pairs: a habit of choosing one side favours neither
    lefts = rng.permutation((np.arange(len(rows)) + rng.integers(2)) % 2)
    pairs = tuple(StudyRow(row=row, first_is_left=bool(left)) for row, left in zip(order, lefts, strict=True))
    hashes = [arm.scores["sha256"].to_pylist() for arm in found.arms]
    key = StudyKey(
        id=fingerprint([hashes, [pair.model_dump() for pair in pairs]])[:16],
        arms=(one.name, other.name),
        protocol=one.info.protocol.id,
        rows=pairs,
    )
    with saving(out, "free space there, or name another folder"):
        with progress("study", len(pairs), "pairs") as advance:
            for number, pair in enumerate(pairs):
                for side, arm in zip(("left", "right"), _sides(pair, found), strict=True):
                    # encoded anew: the file of a generated image says how it was made
                    with atomic(out / IMAGES / f"{number:04d}-{side}.jpg") as temporary:
                        temporary.write_bytes(jpeg(read_image(arm, pair.row)[0]))
                advance()
        text = template(Path(__file__).parent / "study.html").render(
            questions=dict(QUESTIONS), data=_data(key, found)
        )
        with atomic(out / PAGE / "index.html") as temporary:
            temporary.write_text(text, encoding="utf-8")
        write_json(out / KEY, key.model_dump(mode="json"))
    return key


def _sides(pair: StudyRow, found: Comparison) -> tuple[Any, Any]:
    one, other = found.arms
    return (one, other) if pair.first_is_left else (other, one)


def _data(key: StudyKey, found: Comparison) -> dict[str, Any]:
    """What the page knows: prompts and the names of its images."""
    scores = found.arms[0].scores
    sizes = zip(scores["width"].to_pylist(), scores["height"].to_pylist(), strict=True)
    every = list(sizes)
    return {
        "study": key.id,
        "questions": list(QUESTIONS),
        "pairs": [
            {
                "prompt": scores["prompt"][pair.row].as_py(),
                "width": every[pair.row][0],
                "height": every[pair.row][1],
                "left": f"images/{number:04d}-left.jpg",
                "right": f"images/{number:04d}-right.jpg",
            }
            for number, pair in enumerate(key.rows)
        ],
    }


def read_votes(out: Path, files: Sequence[Path]) -> dict[str, Any]:
    """Count the votes in files that the page of the study in OUT has saved.

    Raises UserError if OUT has no study, if a file is damaged or of another study, or if two files are of
    one voter.
    """
    if not (out / KEY).exists():
        raise UserError(f"--read {out} contains no study", "name the folder of `uhr eval study --out`")
    key = read_versioned(StudyKey, out / KEY, SCHEMA_VERSION, "make the study again")
    decisions: list[Decision] = []
    voters: dict[str, Path] = {}
    for file in files:
        votes = _read(file)
        if votes.study != key.id:
            raise UserError(f"{file} has votes of another study ({votes.study})", f"this one is {key.id}")
        if votes.voter in voters:
            raise UserError(f"{file} and {voters[votes.voter]} are of one voter", "leave one of them out")
        voters[votes.voter] = file
        decisions += _decisions(file, votes, key)
    if not decisions:
        raise UserError("the files contain no vote", "let people vote first")
    return {
        "arms": list(key.arms),
        "protocol": key.protocol,
        "voters": len(voters),
        "votes": len(decisions),
        "preferences": [each._asdict() for each in preferences(decisions)],
    }


def _read(file: Path) -> Votes:
    try:
        data = file.read_bytes()
    except OSError as error:
        raise UserError(f"{file} cannot be read ({one_line(error)})", "name a file of votes") from None
    return parse_versioned(Votes, data, str(file), SCHEMA_VERSION, "have it saved again")


def _decisions(file: Path, votes: Votes, key: StudyKey) -> list[Decision]:
    found, seen = [], set()
    for vote in votes.votes:
        if vote.pair >= len(key.rows) or vote.question not in QUESTIONS:
            raise UserError(f"{file} has a vote on {json.dumps(vote.model_dump())}", "have it saved again")
        if (vote.pair, vote.question) in seen:
            raise UserError(f"{file} votes twice on pair {vote.pair}, {vote.question}", "have it saved again")
        seen.add((vote.pair, vote.question))
        pair = key.rows[vote.pair]
        second_is = "right" if pair.first_is_left else "left"
        score = 0.5 if vote.choice == "tie" else float(vote.choice == second_is)
        found.append(Decision(pair.row, vote.question, score))
    return found
