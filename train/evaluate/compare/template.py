"""The templates of the pages of evaluations."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from uhr.base.pages import template as pages

if TYPE_CHECKING:
    import jinja2


def template(file: Path) -> jinja2.Template:
    """Compile a template; it may include the files beside it, those of this folder, and those of all pages.

    Raises UserError if jinja2 is not installed.
    """
    return pages.template(file, Path(__file__).parent, extra="eval")
