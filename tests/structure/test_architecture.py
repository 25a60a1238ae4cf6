"""docs/architecture.md names functions that exist, in walks that a reader can follow."""

import importlib
import re
from pathlib import Path

import pytest

TEXT = (Path(__file__).parents[2] / "docs" / "architecture.md").read_text(encoding="utf-8")
NAME = re.compile(r"`(uhr[\w.]*):([\w.]+)`")
NAMED = sorted(set(NAME.findall(TEXT)))


def found(module: str, path: str) -> object:
    """The attribute of a module. A field that only instances have counts as missing."""
    target = importlib.import_module(module)
    for name in path.split("."):
        target = getattr(target, name)
    return target


@pytest.mark.parametrize(("module", "path"), NAMED)
def test_a_function_that_architecture_names_exists(module, path):
    assert found(module, path) is not None


def test_a_function_that_does_not_exist_would_be_found():
    with pytest.raises(AttributeError):
        found("uhr.curate.run.job", "no_such_function")


def test_the_ladders_are_those_that_tests_hold(rules):
    rows = re.findall(r"^\| `(uhr\.\w+)` \| ([\w, ]+) \|$", TEXT, re.MULTILINE)
    shown = {package: names.split(", ") for package, names in rows if ", cli" in names}
    assert shown == {package: names.split() for package, names in rules.LADDERS.items()}


def test_each_walk_numbers_its_steps_and_names_a_function_in_each():
    walks = re.split(r"^### ", TEXT, flags=re.MULTILINE)[1:]
    assert len(walks) == 3
    for walk in walks:
        steps = re.findall(r"^(\d+)\. (.*)$", walk, re.MULTILINE)
        assert [int(number) for number, _ in steps] == list(range(1, len(steps) + 1))
        assert all(NAME.match(step) for _, step in steps)
        assert len(steps) > 20
