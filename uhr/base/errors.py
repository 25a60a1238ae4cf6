"""The error type for everything that a user can fix, and helpers to word such errors."""

from __future__ import annotations

import contextlib
import copy
import difflib
import importlib
from collections.abc import Generator, Iterable, Mapping, Sequence
from typing import Any, ClassVar


class UserError(Exception):
    """A mistake that the user can fix: printed as one line, exit code 1, no traceback.

    Args:
        what: what is wrong, where, and with which value.
        fix: what to do about it.
        give: the arguments to pass, by parameter name, such as `{"base": "FOLDER"}`. A function that several
            commands call does not know the names of their options: `with_options` turns parameters into
            options. Before that the text is `base=FOLDER`, as in a call from Python.
    """

    code: ClassVar[int] = 1
    """The exit code of the command."""

    def __init__(self, what: str, fix: str | None = None, give: Mapping[str, str] | None = None) -> None:
        self.what = what
        self.fix = fix
        self.give = dict(give or {})
        super().__init__(what)

    def __str__(self) -> str:
        given = ", ".join(f"{name}={value}" for name, value in self.give.items())
        return ": ".join(part for part in (self.what, self.fix, given) if part)

    def __reduce__(self) -> tuple[type[UserError], tuple[str, str | None], dict[str, Any]]:
        # exceptions are pickled between processes (worker pools, Ray): rebuild from the parts
        return type(self), (self.what, self.fix), vars(self)

    def with_options(self, options: Mapping[str, str] | None = None) -> UserError:
        """Return the same error with the parameters of its fix written as command-line options.

        `options` has the prefix of each parameter's value: `{"device": "--set runtime.device="}`; other
        parameters stay as they are. Without `options` each parameter becomes the option of the same name:
        `text_dtype` is `--text-dtype VALUE`.
        """
        if options is None:
            options = {name: f"--{name.replace('_', '-')} " for name in self.give}
        written = [options[name] + value for name, value in self.give.items() if name in options]
        left = {name: value for name, value in self.give.items() if name not in options}
        found = copy.copy(self)
        found.fix = ": ".join(part for part in (self.fix, " ".join(written)) if part) or None
        found.give = left
        return found


class Unfinished(UserError):
    """A run did what it could and left the rest: the same command tries it again. Its exit code is that of
    temporary failures (EX_TEMPFAIL).
    """

    code = 75


@contextlib.contextmanager
def with_options(**options: str) -> Generator[None]:
    """Write parameters as these options in the fix of a `UserError` that the block raises
    (`UserError.with_options`), for a command whose options have other names than the parameters.
    """
    try:
        yield
    except UserError as error:
        raise error.with_options(options) from error.__cause__


def combined(errors: Sequence[UserError], most: int = 5) -> UserError:
    """Combine several errors into one line: the first `most` of them, and how many more there are.

    If all have the same fix, it is given once; otherwise each keeps its own.
    """
    first = errors[0]
    alike = all((error.fix, error.give) == (first.fix, first.give) for error in errors)
    texts = [error.what if alike else str(error.with_options()) for error in errors[:most]]
    if len(errors) > most:
        texts.append(f"and {len(errors) - most:,} more")
    return UserError("; ".join(texts), *((first.fix, first.give) if alike else ()))


def one_line(error: object) -> str:
    """The text of an exception, or of any object, in one line: each run of white space becomes one space."""
    return " ".join(str(error).split())


def install(extra: str) -> str:
    """The command that installs an extra with the tested versions, in the folder of the sources."""
    return f"pip install -c constraints.txt -e '.[{extra}]'"


MANY = 25
"""More names than this are not listed in an error."""


def nearest(name: str, known: Iterable[str], most: int = 3, least: float = 0.6) -> list[str]:
    """Return the known names most similar to `name`, best first, without regard to case.

    most: how many at most. least: the lowest ratio of difflib that counts as similar, in [0, 1].
    """
    by_folded: dict[str, list[str]] = {}
    for one in known:
        by_folded.setdefault(one.casefold(), []).append(one)
    close = difflib.get_close_matches(name.casefold(), list(by_folded), n=most, cutoff=least)
    return [one for folded in close for one in by_folded[folded]][:most]


def unknown(kind: str, name: str, known: Iterable[str], where: str = "") -> UserError:
    """Make the error for an unknown name. It lists similar known names; if none is similar, all known names,
    or of more than `MANY` the six nearest.
    """
    known = sorted(known)
    close = nearest(name, known)
    if close:
        hint = f"did you mean {' or '.join(close)}?"
    elif len(known) > MANY:
        hint = f"the nearest of {len(known)}: {', '.join(nearest(name, known, 6, 0))}"
    else:
        hint = f"known: {', '.join(known) or 'none'}"
    return UserError(f"{where + ': ' if where else ''}unknown {kind} '{name}'", hint)


def load_object(path: str, kind: str) -> Any:
    """Import the object at `package.module:Name`: a user's own stage, recipe or sampler.

    Raises UserError if it cannot be imported. Modules are searched as everywhere in Python. A command also
    searches the working folder, last (`uhr.cli.main`).
    """
    module_name, _, attribute = path.partition(":")
    if not module_name or not attribute:
        raise UserError(f"'{path}' is not an import path of a {kind}", "write it as package.module:Name")
    try:
        found: Any = importlib.import_module(module_name)
    except ImportError as error:
        fix = "install its package, or put its folder on PYTHONPATH"
        raise UserError(f"{kind} '{path}' cannot be imported ({one_line(error)})", fix) from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise unknown(f"{kind} in {module_name}", part, [n for n in vars(found) if not n.startswith("_")])
        found = getattr(found, part)
    return found
