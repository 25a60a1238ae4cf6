"""README.md and docs/*.md as tests read them: their fenced blocks, and what is between two comments.

A comment `<!-- NAME: ... -->` right above a block names it. A name with a suffix is that of a file, which the
commands of the documents may use.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
DOCUMENTS = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))

_BLOCK = re.compile(r"^(?:<!-- ([\w./-]+): [^>]*-->\n)?```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


class Block(NamedTuple):
    """A fenced block; `name` is "" where no comment names it."""

    document: Path
    name: str
    language: str
    text: str

    @property
    def is_file(self) -> bool:
        return "." in self.name


def text(document: str) -> str:
    """The whole document, by its path below the repository's root."""
    return (ROOT / document).read_text(encoding="utf-8")


def blocks(language: str | None = None) -> list[Block]:
    """Every block, or those of a language: of README.md, then of docs/ by name."""
    found = [
        Block(document, name, kind, body)
        for document in DOCUMENTS
        for name, kind, body in _BLOCK.findall(document.read_text(encoding="utf-8"))
    ]
    return [block for block in found if language in (None, block.language)]


def block(language: str, containing: str) -> Block:
    """The only block of a language that contains a text."""
    (found,) = [block for block in blocks(language) if containing in block.text]
    return found


def table(name: str) -> str:
    """What is between `<!-- NAME: ... -->` and `<!-- /NAME -->`, which exactly one document has."""
    found = [
        part
        for document in DOCUMENTS
        for part in re.findall(
            rf"<!-- {name}: .*?-->\n(.*?)<!-- /{name} -->", document.read_text(encoding="utf-8"), re.DOTALL
        )
    ]
    (one,) = found
    return one


def write_files(folder: Path) -> list[Path]:
    """Write every file that the documents show into `folder`."""
    written = []
    for each in blocks():
        if each.is_file:
            file = folder / each.name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(each.text, encoding="utf-8")
            written.append(file)
    return written
