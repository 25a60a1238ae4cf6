"""What another library says becomes one line in one place: `uhr.base.errors.one_line`."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
HOME = "uhr/base/errors.py"


def joins_of_words(tree: ast.AST) -> Iterator[int]:
    """Lines of every `" ".join(anything.split())`."""
    for node in ast.walk(tree):
        match node:
            case ast.Call(
                func=ast.Attribute(value=ast.Constant(value=" "), attr="join"),
                args=[ast.Call(func=ast.Attribute(attr="split"), args=[])],
            ):
                yield node.lineno


def test_only_one_function_joins_the_words_of_a_text():
    found = {}
    for package in ("curate", "manifests", "models", "train", "uhr"):
        for path in (ROOT / package).rglob("*.py"):
            lines = list(joins_of_words(ast.parse(path.read_text(encoding="utf-8"))))
            if lines:
                found[str(path.relative_to(ROOT))] = lines
    rewritten = {"models/llm/refine.py"}  # an answer of a model, not an error
    assert found.keys() - rewritten == {HOME}


def test_a_copy_would_be_found():
    assert list(joins_of_words(ast.parse('words = " ".join(str(error).split())'))) == [1]
    assert not list(joins_of_words(ast.parse('", ".join(names); " ".join(text.split(","))')))
