"""Silences what diffusers and transformers print where we report it, or where no user can act on it."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Generator, Sequence


@contextlib.contextmanager
def quiet_loading() -> Generator[None]:
    """Disable both libraries' progress bars in the block; warnings and errors still show."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    shown = [log for log in (diffusers_logging, transformers_logging) if log.is_progress_bar_enabled()]
    for log in shown:
        log.disable_progress_bar()
    try:
        yield
    finally:
        for log in shown:
            log.enable_progress_bar()


_REPORTERS = (
    "transformers.modeling_utils",
    "diffusers.models.modeling_utils",
    "diffusers.configuration_utils",
)
_REPORTS = ("LOAD REPORT", "Some weights of", "The config attributes")


@contextlib.contextmanager
def quiet_reports() -> Generator[None]:
    """Disable both libraries' reports of weights and keys that do not fit: `models/loading/checks.py`
    raises an error for them."""
    with _without(_REPORTERS, _REPORTS):
        yield


@contextlib.contextmanager
def quiet_deprecations() -> Generator[None]:
    """Disable transformers' notices that a class of another package reads an attribute of a configuration by
    its old name: only that package can change it."""
    with _without(("transformers.configuration_utils",), ("is deprecated",)):
        yield


@contextlib.contextmanager
def _without(loggers: Sequence[str], texts: Sequence[str]) -> Generator[None]:
    """Drop what these loggers say with one of the texts in it."""

    def is_other(record: logging.LogRecord) -> bool:
        said = record.getMessage()
        return not any(text in said for text in texts)

    for name in loggers:
        logging.getLogger(name).addFilter(is_other)
    try:
        yield
    finally:
        for name in loggers:
            logging.getLogger(name).removeFilter(is_other)
