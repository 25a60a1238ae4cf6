"""Silences what diffusers and transformers print while loading, where we report it ourselves."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Generator


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
    loggers = [logging.getLogger(name) for name in _REPORTERS]
    for logger in loggers:
        logger.addFilter(_is_not_report)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(_is_not_report)


def _is_not_report(record: logging.LogRecord) -> bool:
    text = record.getMessage()
    return not any(report in text for report in _REPORTS)
