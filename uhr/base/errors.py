"""One kind of error for everything that a user can mend, and the words that help to mend it."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Iterable
from typing import Any


class UserError(Exception):
    """A mistake that the person at the terminal can mend: printed as one line, exit code 1, no traceback.

    `what` says what is wrong, where, and with which value; `fix` says what to do about it.
    """

    def __init__(self, what: str, fix: str | None = None) -> None:
        self.what = what
        self.fix = fix
        super().__init__(what if fix is None else f"{what}: {fix}")

    def __reduce__(self) -> tuple[type[UserError], tuple[str, str | None]]:
        # exceptions cross process borders (worker pools, Ray): rebuild from the two parts
        return type(self), (self.what, self.fix)


def install(extra: str) -> str:
    """The command, in the folder of the sources, that brings what an optional part needs, as it is tested."""
    return f"pip install -c constraints.txt -e '.[{extra}]'"


def nearest(name: str, known: Iterable[str], most: int = 3) -> list[str]:
    """The known names that look most like `name`, best first."""
    return difflib.get_close_matches(name, list(known), n=most, cutoff=0.6)


def unknown(kind: str, name: str, known: Iterable[str], where: str = "") -> UserError:
    """The error for a name that nothing bears, with the nearest ones that something does."""
    known = sorted(known)
    close = nearest(name, known)
    hint = f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(known) or 'none'}"
    return UserError(f"{where + ': ' if where else ''}unknown {kind} '{name}'", hint)


def load_object(path: str, kind: str) -> Any:
    """The object at an import path `package.module:Name`: how a user's own stage, recipe or sampler is named.

    The working folder is searched last, so a `models/` or `train.py` that lies there shadows nothing.
    """
    module_name, _, attribute = path.partition(":")
    if not module_name or not attribute:
        raise UserError(f"'{path}' is no import path of a {kind}", "write it as package.module:Name")
    if "" not in sys.path:
        sys.path.append("")
    try:
        found: Any = importlib.import_module(module_name)
    except ImportError as error:
        fix = "install its package, or put its folder on PYTHONPATH"
        raise UserError(f"{kind} '{path}' cannot be imported ({error})", fix) from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise unknown(f"{kind} in {module_name}", part, [n for n in vars(found) if not n.startswith("_")])
        found = getattr(found, part)
    return found
