"""Certify published weights: `make certify`, or

    python -m benchmarks.certify --weights WEIGHTS --official CLONES              every row that can run here
    python -m benchmarks.certify hiflow --weights WEIGHTS --official CLONES       one row
    python -m benchmarks.certify --list                                           what each row lacks here

WEIGHTS has a folder for each hub id, as `uhr fetch` names them (black-forest-labs--FLUX.1-dev). CLONES has
the clones of the official repositories, each at the row's commit. The official side runs in `CLONE/.venv` if
there is one and no --python is named, so that it can have the versions that it needs; it takes the noise that
our side has drawn.

A row is certified if its last latents differ by no more than the row's tolerance, or twice what
rounding alone does to ours. The exit code is 1 if a row fails, lacks something, or is not certified.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.certify import report
from benchmarks.certify.rows import ROWS, missing, row_named
from benchmarks.certify.sides import Call, certify
from uhr.base.console import emit, printed, say, table, warn
from uhr.base.errors import UserError

PROMPT = (
    "a harbour at dawn, fishing boats with peeling varnish, nets and ropes in sharp detail, mountains behind"
)


def main(arguments: Sequence[str]) -> int:
    """Run the rows and return the exit code."""
    from uhr.models.generate.request import parse_size

    options = _parser().parse_args(arguments)
    rows = [row_named(name) for name in options.rows] or list(ROWS)
    if options.commit is not None and len(rows) != 1:
        raise UserError("--commit is of one row", "name the row")
    if options.steps is not None and options.steps < 1:
        raise UserError(f"--steps {options.steps} is invalid", "give at least 1")
    size = None if options.size is None else parse_size(options.size)
    lacks = {row.name: missing(row, options.weights, options.official) for row in rows}
    if options.list:
        emit(lacks, options.json, lambda _: _print(lacks))
        return 0
    ready = [row for row in rows if not lacks[row.name]]
    if not ready:
        with printed(options.json):
            _print(lacks)
        raise UserError("no row can run here", "get what is missing")
    call = Call(
        weights=options.weights,
        official=options.official,
        work=options.work,
        prompt=options.prompt,
        seed=options.seed,
        size=size,
        steps=options.steps,
        dtype=options.dtype,
        device=options.device or _device(),
        offload=options.offload,
        python=options.python,
        commit=options.commit,
    )
    # a damaged file is found before the hours of a run
    report.read(options.results)
    new: list[report.Result] = []
    for row in ready:
        try:
            with printed(options.json):
                new.append(certify(row, call))
        except UserError as error:
            warn(str(error))
            continue
        report.write(options.results, [*report.read(options.results), new[-1]])
    emit(new, options.json, lambda _: _print_results(new))
    for row in rows:
        if lacks[row.name]:
            warn(f"{row.name} was left out: it lacks {next(iter(lacks[row.name]))}")
    everything = len(new) == len(rows) and all(each["verdict"] == "certified" for each in new)
    return 0 if everything else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.certify",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {', '.join(row.name for row in ROWS)}")
    parser.add_argument("--weights", type=Path, default=Path("out/weights"), help="folder of weights")
    parser.add_argument(
        "--official", type=Path, default=Path("out/official"), help="folder of official clones"
    )
    parser.add_argument("--work", type=Path, default=Path("out/certify"), help="folder of images and latents")
    parser.add_argument("--results", type=Path, default=report.FOLDER, help="folder of the table")
    parser.add_argument("--python", type=Path, help="interpreter of the official side")
    parser.add_argument("--prompt", default=PROMPT)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", metavar="WxH", help="in place of the row's size")
    parser.add_argument("--steps", type=int, help="in place of the row's number")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument("--device", help="cuda where there is one, otherwise cpu")
    parser.add_argument("--offload", action="store_true", help="keep one component at a time on the GPU")
    parser.add_argument(
        "--commit", help="of the official code, in place of the row's; README counts runs at the row's alone"
    )
    parser.add_argument("--list", action="store_true", help="say what each row lacks, and stop")
    parser.add_argument("--json", action="store_true", help="answer as JSON")
    return parser


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _print(lacks: dict[str, dict[str, str]]) -> None:
    for name, each in lacks.items():
        say(f"{name}: lacks {', '.join(each)}" if each else f"{name}: ready")
    for path, how in {path: how for each in lacks.values() for path, how in each.items()}.items():
        say(f"{path}\n    {how}")


def _print_results(results: Sequence[report.Result]) -> None:
    if results:
        table(list(report.HEAD), [report.cells(each) for each in results])


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as error:
        sys.exit(f"certify: {error}")
    except KeyboardInterrupt:
        # the rows that are finished are in the results
        sys.exit(130)
