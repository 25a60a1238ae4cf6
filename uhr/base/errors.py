"""One kind of error for everything that a user can mend, and the words that help to mend it."""

from __future__ import annotations

import contextlib
import copy
import difflib
import importlib
from collections.abc import Generator, Iterable, Mapping, Sequence
from typing import Any


class UserError(Exception):
    """A mistake that the person at the terminal can mend: printed as one line, exit code 1, no traceback.

    Args:
        what: what is wrong, where, and with which value.
        fix: what to do about it.
        give: arguments that the fix says to give, by the name of the parameter. A function that several
            commands call does not know their options: it names its own parameter here (`{"base": "FOLDER"}`),
            and each caller writes it as its option (`worded`). Until then it reads `base=FOLDER`, as in a
            call from Python.
    """

    def __init__(self, what: str, fix: str | None = None, give: Mapping[str, str] | None = None) -> None:
        self.what = what
        self.fix = fix
        self.give = dict(give or {})
        super().__init__(what)

    def __str__(self) -> str:
        given = ", ".join(f"{name}={value}" for name, value in self.give.items())
        return ": ".join(part for part in (self.what, self.fix, given) if part)

    def __reduce__(self) -> tuple[type[UserError], tuple[str, str | None], dict[str, Any]]:
        # exceptions cross process borders (worker pools, Ray): rebuild from the parts
        return type(self), (self.what, self.fix), vars(self)

    def worded(self, options: Mapping[str, str] | None = None) -> UserError:
        """The same error with arguments in the fix as options of a command.

        `options` has the option of each parameter as a prefix of its value: `{"device": "--set
        runtime.device="}`; other parameters stay as they are. Without `options` every parameter is the option
        of its name: `text_dtype` is `--text-dtype VALUE`.
        """
        if options is None:
            options = {name: f"--{name.replace('_', '-')} " for name in self.give}
        written = [options[name] + value for name, value in self.give.items() if name in options]
        left = {name: value for name, value in self.give.items() if name not in options}
        found = copy.copy(self)
        found.fix = ": ".join(part for part in (self.fix, " ".join(written)) if part) or None
        found.give = left
        return found


@contextlib.contextmanager
def worded(**options: str) -> Generator[None]:
    """In the block arguments in the fix of a `UserError` are written as these options (`UserError.worded`);
    for a command whose option for a parameter has another name."""
    try:
        yield
    except UserError as error:
        raise error.worded(options) from error.__cause__


def together(errors: Sequence[UserError], most: int = 5) -> UserError:
    """One error for several mistakes of the same kind, in one line: the first `most` of them, and how many
    more there are. The fix is that of all where they have the same, else each keeps its own."""
    first = errors[0]
    alike = all((error.fix, error.give) == (first.fix, first.give) for error in errors)
    told = [error.what if alike else str(error.worded()) for error in errors[:most]]
    if len(errors) > most:
        told.append(f"and {len(errors) - most:,} more")
    return UserError("; ".join(told), *((first.fix, first.give) if alike else ()))


def one_line(error: object) -> str:
    """The text of another library's exception, or of anything else, in one line: every run of white space is
    one space. Empty where it says nothing."""
    return " ".join(str(error).split())


def install(extra: str) -> str:
    """The command, in the folder of the sources, that brings what an optional part needs, as it is tested."""
    return f"pip install -c constraints.txt -e '.[{extra}]'"


def nearest(name: str, known: Iterable[str], most: int = 3) -> list[str]:
    """The known names that look most like `name`, best first, whatever the case of either."""
    by_folded: dict[str, list[str]] = {}
    for one in known:
        by_folded.setdefault(one.casefold(), []).append(one)
    close = difflib.get_close_matches(name.casefold(), list(by_folded), n=most, cutoff=0.6)
    return [one for folded in close for one in by_folded[folded]][:most]


def unknown(kind: str, name: str, known: Iterable[str], where: str = "") -> UserError:
    """The error for a name that nothing bears, with the nearest ones that something does."""
    known = sorted(known)
    close = nearest(name, known)
    hint = f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(known) or 'none'}"
    return UserError(f"{where + ': ' if where else ''}unknown {kind} '{name}'", hint)


def load_object(path: str, kind: str) -> Any:
    """The object at an import path `package.module:Name`: how a user's own stage, recipe or sampler is named.

    Modules are searched as everywhere in Python. A command also searches the working folder, last
    (`uhr.cli.main`).
    """
    module_name, _, attribute = path.partition(":")
    if not module_name or not attribute:
        raise UserError(f"'{path}' is no import path of a {kind}", "write it as package.module:Name")
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
