"""The folder of a run, held by one process."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Generator
from pathlib import Path

from uhr.base.lock import NAME, only_run
from uhr.base.output import claim
from uhr.train.run.checkpoint import FOLDER
from uhr.train.run.log import FILE as LOG

FILE = "run.json"
HOLD = ".lock"
"""A hidden folder for the lock: it comes and goes with the process, and a killed one leaves it."""

_HALF_WRITTEN = re.compile(rf"\.(?:{re.escape(FILE)}|{re.escape(LOG)})\.[0-9a-f]{{32}}\.tmp")


@contextlib.contextmanager
def hold(out: Path) -> Generator[None]:
    """Be the only process that trains in `out`. UserError where another one does, and where something else
    than a run stands there.

    What a killed run left half-written is cleared. A folder that had to be made and stayed empty is removed.
    """
    made = not out.exists()
    if not (out / FILE).is_file():
        claim_run(out)
    with only_run(out / HOLD):
        try:
            for path in out.iterdir():
                if _HALF_WRITTEN.fullmatch(path.name):
                    path.unlink()
            yield
        finally:
            (out / HOLD / NAME).unlink(missing_ok=True)
            # not empty where the next run has come already, or where this one left its files
            with contextlib.suppress(OSError):
                (out / HOLD).rmdir()
                if made:
                    out.rmdir()


def claim_run(out: Path) -> None:
    """Make `out` ready for a new run. UserError where anything else stands there."""
    claim(out, (FILE, LOG, FOLDER, HOLD), (FILE, HOLD), "a run")
