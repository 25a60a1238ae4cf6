"""Keeps what diffusers and transformers print while loading off the terminal where we say it ourselves."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Generator


@contextlib.contextmanager
def quiet_loading() -> Generator[None]:
    """Within it neither library draws progress bars; warnings and errors still show."""
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
    """Within it neither library logs which weights and keys did not fit: `loading_checks` raises an error for
    them."""
    loggers = [logging.getLogger(name) for name in _REPORTERS]
    for logger in loggers:
        logger.addFilter(_is_no_report)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(_is_no_report)


def _is_no_report(record: logging.LogRecord) -> bool:
    text = record.getMessage()
    return not any(report in text for report in _REPORTS)
