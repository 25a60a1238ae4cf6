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
        assert len(steps) >= 20


def test_no_module_has_two_steps_in_the_walk_of_one_command():
    for walk in re.split(r"^### |^`uhr ", TEXT, flags=re.MULTILINE)[1:]:
        modules = [NAME.search(step)[1] for step in re.findall(r"^\d+\. .*$", walk, re.MULTILINE)]
        assert len(modules) == len(set(modules)), modules


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`([A-Z]\w+\.\w+)`", TEXT))))
def test_a_method_that_is_named_without_its_module_is_in_a_module_of_a_walk(name):
    classes = [vars(importlib.import_module(module)).get(name.split(".")[0]) for module, _ in NAMED]
    assert any(hasattr(each, name.split(".")[1]) for each in classes if each is not None)
