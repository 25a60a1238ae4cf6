"""No text or name uses a word for which the field has a term (docs/glossary.md, CONTRIBUTING.md)."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

TERMS = {
    "told": "given, warned, distinguished",
    "asked": "requested, called, chosen",
    "stand": "is, exists, depends",
    "stands": "is, exists, depends; for what replaces another thing: replaces",
    "swung": "shifted",
    "mend": "fix",
    "mends": "fixes",
    "mended": "fixed",
    "paint": "generate",
    "paints": "generates",
    "painted": "generated",
    "painting": "generating",
    "room": "capacity, space",
    "turned down": "rejected",
    "hangs on": "depends on",
    "goes wrong": "fails",
}
"""A word -> what to write in its place."""

ALLOWED = {
    "tests/structure/test_words.py": set(TERMS),
    # hashed into ids of sets and records that users have
    "models/llm/refine.py": {"asked", "paints", "painted", "stand"},
    "train/generate/identity.py": {"told"},
    "train/generate/index.py": {"painted"},
    "train/generate/run.py": {"paint"},
    # a medium, as captions name it
    "tests/models/llm/test_answers.py": {"painting"},
}
"""File -> the words that it may contain."""

TEXTS = ("*.py", "*.md", "*.yaml", "*.html")

_WORD = re.compile(rf"(?<![a-z])(un)?({'|'.join(TERMS)})(?![a-z])")


def words_in(text: str) -> list[tuple[int, str]]:
    """The line number and word of each place in a text, also inside names: `is_told`, `TOLD`."""
    lines = enumerate(text.lower().splitlines(), 1)
    return [(number, match[2]) for number, line in lines for match in _WORD.finditer(line)]


def test_no_file_uses_a_word_for_which_there_is_a_term():
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *TEXTS],
        cwd=ROOT, check=True, capture_output=True, text=True,
    )  # fmt: skip
    found, used = [], {name: set() for name in ALLOWED}
    for name in filter(None, listed.stdout.split("\0")):
        for number, word in words_in((ROOT / name).read_text("utf-8")) if (ROOT / name).exists() else ():
            if word in ALLOWED.get(name, ()):
                used[name].add(word)
            else:
                found.append(f"{name}:{number}: '{word}': write {TERMS[word]}")
    assert found == []
    assert used == ALLOWED, "remove what is no longer needed"


@pytest.mark.parametrize("text", ["untold", "x\nis_told = 1", "What was TOLD.", "it hangs on this"])
def test_a_word_is_found_in_names_and_sentences(text):
    assert [number for number, _ in words_in(text)] == [text.count("\n") + 1]


def test_a_word_inside_another_is_not_found():
    assert words_in("standard, understands, mushroom, toldest, Tasked") == []
