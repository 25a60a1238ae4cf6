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


def raw_errors(tree: ast.AST) -> Iterator[int]:
    """Lines of every `f"... ({error})"` in which `error` is the exception that a handler caught."""
    for handler in ast.walk(tree):
        if not isinstance(handler, ast.ExceptHandler) or handler.name is None:
            continue
        for node in ast.walk(handler):
            if not isinstance(node, ast.JoinedStr):
                continue
            for before, shown, after in zip(node.values, node.values[1:], node.values[2:], strict=False):
                match before, shown, after:
                    case (
                        ast.Constant(value=str(left)),
                        ast.FormattedValue(value=ast.Name(id=name), conversion=-1),
                        ast.Constant(value=str(right)),
                    ) if left.endswith("(") and right.startswith(")") and name == handler.name:
                        yield shown.lineno


def test_the_text_of_a_caught_error_is_made_one_line():
    found = {}
    for folder in ("curate", "manifests", "models", "train", "uhr"):
        for path in (ROOT / folder).rglob("*.py"):
            if lines := list(raw_errors(ast.parse(path.read_text(encoding="utf-8")))):
                found[str(path.relative_to(ROOT))] = lines
    # these texts are stored in manifests, and stay as they are
    assert {name: lines for name, lines in found.items() if not name.startswith("uhr/pixels/")} == {}


def test_a_raw_text_would_be_found():
    caught = "try:\n    f()\nexcept OSError as error:\n    g(f'{path} cannot be read ({SHOWN}), so')\n"
    assert list(raw_errors(ast.parse(caught.replace("SHOWN", "error")))) == [4]
    assert not list(raw_errors(ast.parse(caught.replace("SHOWN", "one_line(error)"))))


def test_a_copy_would_be_found():
    assert list(joins_of_words(ast.parse('words = " ".join(str(error).split())'))) == [1]
    assert not list(joins_of_words(ast.parse('", ".join(names); " ".join(text.split(","))')))
