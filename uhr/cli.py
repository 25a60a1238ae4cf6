"""The command `uhr`: combines the packages' commands, and turns errors into messages and exit codes."""

from __future__ import annotations

import contextlib
import copy
import functools
import io
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Generator
from typing import Annotated, Any

import typer

from uhr import __version__
from uhr.base.console import shown
from uhr.base.errors import UserError, one_line
from uhr.base.files import disk_fault
from uhr.curate.cli import app as curate
from uhr.demo.run import demo
from uhr.doctor import doctor
from uhr.fetch import fetch
from uhr.lora.command import lora
from uhr.manifests import cli as manifests
from uhr.models.cli import app as models
from uhr.sample.command import app as sample
from uhr.train.cli import app as train
from uhr.train.evaluate.cli import app as evaluate

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="From raw images to a curated 4K set, and from the set to a model that makes 4K images.",
)
app.command()(demo)
app.command()(doctor)
app.command()(fetch)
app.add_typer(curate, name="curate")
app.add_typer(manifests.app, name="manifest")
app.add_typer(models, name="models")
app.add_typer(sample, name="sample")
# it joins curation and training, which do not know each other
train.command("lora")(lora)
app.add_typer(train, name="train")
app.add_typer(evaluate, name="eval")

# `manifest slice --similar` embeds its query by a model, which the manifests do not know
manifests.UNFINISHED = "uhr.curate.run.earlier.so_far:so_far"
manifests.EMBEDDER = "uhr.models.scores.clip:embed_query"
# `manifest browse` shows why a row was kept or rejected: curation has the rules
manifests.EXPLAINER = "uhr.curate.explain:explain_row"
manifests.VERDICTS = "uhr.curate.explain:check_verdicts"
# `manifest forget` takes latents and embeddings out of encoded data
manifests.ENCODED = ("uhr.train.encode.redact:redact", "uhr.train.encode.redact:seal")

Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    debug: Debug = False,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """`debug` is handled in `main`, which also catches errors that are raised before this is called."""
    context.obj = main  # for commands that run other commands
    if version:
        typer.echo(f"uhr {__version__}")
        raise typer.Exit


@functools.cache
def _command(group: str | None) -> Callable[..., Any]:
    """The command line with all commands, or with those of one group: to build it from the annotations of all
    takes longer than many a command.
    """
    chosen = app
    if group is not None:
        chosen = copy.copy(app)
        chosen.registered_commands = []
        chosen.registered_groups = [each for each in app.registered_groups if each.name == group]
    return typer.main.get_command(chosen)


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code: 0 success, 1 an error, in one line on stderr, 2 wrong usage,
    75 a run that is unfinished because hosts or stages are paused, 130 Ctrl-C.

    `--debug` may be anywhere in the arguments and adds the traceback.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    arguments = [a for a in arguments if a != "--debug"]
    groups = {each.name for each in app.registered_groups}
    group = arguments[0] if arguments and arguments[0] in groups else None
    # if pyiqa has installed bitsandbytes, its import logs errors about kernels that are not used here
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    try:
        with _working_folder_searched():
            code = _command(group)(args=arguments, prog_name="uhr", standalone_mode=False)
    except UserError as error:
        return _fail(str(error.with_options()), debug, error.code)
    except SystemExit as end:
        # the command has said itself how it ended
        return end.code if isinstance(end.code, int) else 1
    except (typer.Abort, KeyboardInterrupt):
        code = 130
    except BrokenPipeError:
        # the reader of our output (head, less) has exited; silence the interpreter's last flush too
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:  # noqa: BLE001 - a traceback is shown only with --debug
        usage = _usage_message(error)
        if usage is not None:
            return _fail(usage, debug, code=2)
        if (reason := disk_fault(error)) is not None:
            return _fail(f"nothing more can be written{_where(error)} ({reason}): {_FREE_SPACE}", debug)
        return _fail(f"unexpected {type(error).__name__}: {one_line(error)} (--debug shows where)", debug)
    if code == 130:
        # typer turns Ctrl-C into this exit code, without a message
        message = (
            "interrupted; nothing is half-written (curate, encode, train, sets: the same command resumes)"
        )
        return _fail(message, debug, code=130)
    return code if isinstance(code, int) else 0


@contextlib.contextmanager
def _working_folder_searched() -> Generator[None]:
    """Import modules from the working folder too in the block: a user's own stages, recipes and samplers.

    It is searched last, so that a `models/` or `train.py` in it shadows nothing. Worker processes search
    where their parent does (`uhr.runtime.worker.search_path`).
    """
    added = "" not in sys.path
    if added:
        sys.path.append("")
    try:
        yield
    finally:
        if added and "" in sys.path:
            sys.path.remove("")


_FREE_SPACE = "free space there, then give the same command again"


def _where(error: Exception) -> str:
    """The file of an OSError, if it has one."""
    file = getattr(error, "filename", None)
    return "" if file is None else f" to {os.fsdecode(file)}"


def _usage_message(error: Exception) -> str | None:
    """The message of one of click's own errors, recognised by `format_message`; None for other errors."""
    format_message = getattr(error, "format_message", None)
    if not callable(format_message):
        return None
    context = getattr(error, "ctx", None)
    usage = "" if context is None else f" ({one_line(context.get_usage())})"
    key = str(getattr(error, "option_name", "")).removeprefix("--")
    settable = context is not None and any("--set" in each.opts for each in context.command.params)
    if "." in key and settable:
        # a key of a pipeline or a recipe, typed as an option
        return f"{one_line(format_message())}: write --set {key}=VALUE{usage}"
    return f"{one_line(format_message())}{usage}"


def _fail(message: str, debug: bool, code: int = 1) -> int:
    if debug and sys.exc_info()[0] is not None:
        traceback.print_exc()
    print(f"uhr: {shown(message)}", file=sys.stderr)
    return code


def run() -> None:
    """Entry point of the installed command."""
    for stream in (sys.stdout, sys.stderr):
        # a terminal that is not UTF-8 gets escapes for what it cannot show
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    # schedulers stop a job with SIGTERM: it ends as by Ctrl-C, which a shell's background jobs ignore
    signal.signal(signal.SIGTERM, _interrupt)
    sys.exit(main())


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
