"""`uhr eval judge` and `uhr eval study`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from uhr.base import console
from uhr.base.console import say, shown
from uhr.base.errors import UserError
from uhr.base.paths import local
from uhr.train.evaluate.options import Json

Two = Annotated[
    tuple[str, str], typer.Argument(metavar="RESULT RESULT", help="Two results, each FOLDER or NAME=FOLDER.")
]
Rows = Annotated[
    int | None, typer.Option("--rows", min=2, metavar="N", help="Only N images of each, evenly spaced.")
]


def judge(
    results: Two,
    server: Annotated[
        str,
        typer.Option(
            metavar="URL",
            help="An OpenAI-compatible server of a vision-language model, http://localhost:8000/v1 say. Its "
            "key, if it needs one, is OPENAI_API_KEY.",
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(parser=local("--out"), metavar="DIR", help="The answers; the same command resumes."),
    ],
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="The model; the server's only one by default.")
    ] = None,
    rows: Rows = None,
    at_once: Annotated[int, typer.Option(min=1, help="Simultaneous requests.")] = 4,
    as_json: Json = False,
) -> None:
    """Have a vision-language model compare two results: quality, alignment, aesthetics, in both orders."""
    from uhr.models.llm.chat import ChatServer
    from uhr.train.evaluate.compare.comparison import compare, open_arms, spaced
    from uhr.train.evaluate.judges import model as judges
    from uhr.train.evaluate.judges.questions import print_preferences

    found = compare(open_arms(results))
    chosen = spaced(found.arms[0].info.n, rows)
    facts = judges.judge(judges.JudgeJob(found, ChatServer(server, model), out, chosen, at_once))

    def show(facts: dict[str, Any]) -> None:
        print_preferences(facts)
        share = facts["first_share"]
        place = "" if share is None else f"; it named the first image in {100 * share:.0f} % of its choices"
        count = console.counted(facts["contradictions"], "contradiction")
        say(f"{facts['model']}: {count} between orders{place}")

    console.emit(facts, as_json, show)


def study(
    given: Annotated[
        list[str],
        typer.Argument(metavar="RESULT RESULT|VOTES...", help="Two results; with --read the files of votes."),
    ],
    out: Annotated[
        Path | None,
        typer.Option(parser=local("--out"), metavar="DIR", help="A new folder for the page and its key."),
    ] = None,
    read: Annotated[
        Path | None,
        typer.Option(parser=local("--read"), metavar="DIR", help="Count votes on the study in this folder."),
    ] = None,
    rows: Rows = None,
    seed: Annotated[int, typer.Option(min=0, help="Of sides and order.")] = 0,
    as_json: Json = False,
) -> None:
    """Write a blind page on which people compare two results, or count their votes."""
    from uhr.train.evaluate.compare.comparison import compare, open_arms, spaced
    from uhr.train.evaluate.judges.questions import print_preferences
    from uhr.train.evaluate.judges.study import read_votes, write_study

    if (out is None) == (read is None):
        raise UserError(
            "--out or --read is missing", "give one: --out to write a page, --read to count votes"
        )
    if read is not None:
        console.emit(read_votes(read, [Path(each) for each in given]), as_json, print_preferences)
        return
    assert out is not None
    if len(given) != 2:
        raise UserError(f"a study compares two results, and these are {len(given)}", "name two")
    found = compare(open_arms(given))
    key = write_study(found, out, spaced(found.arms[0].info.n, rows), seed)

    def show(_: object) -> None:
        say(f"{shown(out / 'page')}: {console.counted(len(key.rows), 'pair')}; give this folder to voters")
        say(f"{shown(out / 'key.json')} says which image is of which result: keep it to yourself")
        say(f"next: {console.command('eval', 'study', 'VOTES.json', '--read', out)}")

    console.emit(key.model_dump(mode="json"), as_json, show)
