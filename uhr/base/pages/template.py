"""The templates of pages: every value is escaped, and control characters are shown."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from uhr.base.console import shown
from uhr.base.errors import UserError, install, one_line
from uhr.base.formatting import number

if TYPE_CHECKING:
    import jinja2


def template(file: Path) -> jinja2.Template:
    """Compile a template; it may include the files beside it, and those of this folder.

    Raises UserError if jinja2 is not installed.
    """
    try:
        import jinja2
    except ImportError as error:
        raise UserError(f"the page needs jinja2 ({one_line(error)})", install("eval")) from None
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([file.parent, Path(__file__).parent]),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters.update(number=number)
    environment.finalize = lambda value: shown(value, keep="\n") if type(value) is str else value
    return environment.get_template(file.name)
