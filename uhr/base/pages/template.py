"""The templates of all pages, and their colours and fonts.

Every value is escaped, and control characters are shown.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from uhr.base.console import counted, shown
from uhr.base.errors import UserError, install, one_line
from uhr.base.formatting import first_words, number, share

if TYPE_CHECKING:
    import jinja2

HERE = Path(__file__).parent
THEME = HERE / "theme.css"
"""Colours, in light and dark, and fonts of all pages."""


def template(file: Path, *folders: Path, extra: str) -> jinja2.Template:
    """Compile a template; it may include the files beside it, those of `folders`, and those of this folder.

    Raises UserError if jinja2 is not installed, with the extra of this package that has it.
    """
    try:
        import jinja2
    except ImportError as error:
        raise UserError(f"the page needs jinja2 ({one_line(error)})", install(extra)) from None
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([file.parent, *folders, HERE]),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters.update(number=number, counted=counted, share=share, first_words=first_words)
    # escape control characters and those that change the text direction; some values have several lines
    environment.finalize = lambda value: shown(value, keep="\n") if type(value) is str else value
    return environment.get_template(file.name)
