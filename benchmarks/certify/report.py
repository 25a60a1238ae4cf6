"""The results of all runs as JSON, a table of them in Markdown, and the table of README.md."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.certify.rows import ROWS, Row
from uhr.base.errors import UserError
from uhr.base.files import atomic, write_json

FOLDER = Path(__file__).parents[1] / "results"

JSON, TABLE = "certify.json", "certify.md"

Result = dict[str, Any]


def read(folder: Path) -> list[Result]:
    """The results in a folder, oldest first; empty without a file. Raises UserError for a damaged one."""
    file = folder / JSON
    if not file.exists():
        return []
    try:
        return json.loads(file.read_text(encoding="utf-8"))["results"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} is not a file of results", "restore it from git, or remove it") from error


def write(folder: Path, results: Sequence[Result]) -> None:
    """Write the results and their table."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / JSON, {"results": list(results)})
    with atomic(folder / TABLE) as temporary:
        temporary.write_text(markdown(results), encoding="utf-8")


def is_published(row: Row, result: Mapping[str, Any]) -> bool:
    """Whether a result is of the row's own commit, kind of model and call, not of a substitute or a shorter
    call. Which weights they were is in the result, by their hashes, which are not compared with anything.
    """
    call = result["call"]
    return (
        result["repository"] == row.repository
        and result["commit"].startswith(row.commit)
        and result["spec"] == row.spec
        and (call["width"], call["height"]) == row.size
        and (call["steps"], call["guidance"]) == (row.steps, row.guidance)
        and call["options"] == json.loads(json.dumps(dict(row.options)))
    )


def status(row: Row, results: Sequence[Mapping[str, Any]]) -> str:
    """Whether a row was certified, from its latest result that `is_published`."""
    found = [each for each in results if each["row"] == row.name and is_published(row, each)]
    if not found:
        return "not certified: never run"
    last = found[-1]
    how = f"{last['date']}, {last['ours']['device']}, {last['call']['dtype']}"
    if last["verdict"] == "certified":
        return f"certified ({how}): latents within {last['steps'][-1]:.1e}"
    return f"not certified: {last['verdict']} ({how})"


def readme_table(results: Sequence[Mapping[str, Any]]) -> str:
    """The table of README.md."""
    lines = ["| row | sampler | official code | status |", "|--|--|--|--|"]
    for row in ROWS:
        code = f"{row.repository} at `{row.commit[:7]}`"
        lines.append(f"| `{row.name}` | `{row.sampler}` | {code} | {status(row, results)} |")
    return "\n".join(lines) + "\n"


HEAD = (
    "row", "date", "verdict", "size", "steps", "dtype", "first step", "last step", "rounding", "limit",
    "PSNR", "pixel", "ours", "official", "GPU", "commit",
)  # fmt: skip


def cells(result: Mapping[str, Any]) -> list[str]:
    """One result as a row of the table."""
    call = result["call"]
    sides = [
        f"{result[side]['seconds']:.1f} s, {result[side]['peak'] / 2**30:.1f} GiB"
        for side in ("ours", "official")
    ]
    return [
        result["row"],
        result["date"],
        "; ".join([result["verdict"], *result["reasons"]]),
        f"{call['width']}x{call['height']}",
        str(call["steps"]),
        call["dtype"],
        *(
            f"{each:.1e}"
            for each in (result["steps"][0], result["steps"][-1], result["rounding"], result["limit"])
        ),
        "equal" if result["psnr"] is None else f"{result['psnr']:.1f}",
        str(result["pixel"]),
        *sides,
        result["ours"]["device"],
        result["commit"][:7],
    ]


def markdown(results: Sequence[Mapping[str, Any]]) -> str:
    """The table of all results, and what its columns are."""
    lines = [
        "# Published weights: the official code and ours",
        "",
        "`make certify`. Both sides start from the same noise. `first step`, `last step`: relative L2 norm",
        "of the difference of the latents. `rounding`: the same of our last latents and of those with noise",
        "and timesteps rounded otherwise. `limit`: the largest `last step` that is certified. `PSNR` in dB",
        "and `pixel`, the largest difference of 255, are of the images.",
        "",
    ]
    if not results:
        lines += ["No row was run yet."]
    else:
        rows = [HEAD, ["--"] * len(HEAD), *map(cells, results)]
        lines += ["| " + " | ".join(row) + " |" for row in rows]
    known = [f"- `{row.name}` (within {row.tolerance:g}): {row.known}." for row in ROWS if row.known]
    return (
        "\n".join([*lines, "", "Known differences of our samplers to the official code:", "", *known]) + "\n"
    )
