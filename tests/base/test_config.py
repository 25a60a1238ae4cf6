import json
from pathlib import Path
from typing import Self

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ByteSize, model_validator

from uhr.base.config import (
    Config,
    apply_sets,
    build,
    canonical_json,
    change,
    fingerprint,
    parse_versioned,
    parse_yaml,
    read_versioned,
    read_yaml,
)
from uhr.base.errors import UserError


class Inner(Config):
    threshold: float = 0.5


class Range(Config):
    low: float = 0.0
    high: float = 1.0

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"low {self.low} is above high {self.high}")
        return self


class Ranges(Config):
    first: Range = Range()


class Outer(Config):
    name: str
    inner: Inner = Inner()
    many: tuple[Inner, ...] = ()


def test_an_unknown_key_names_its_place_and_the_nearest_key():
    with pytest.raises(UserError) as error:
        build(Outer, {"name": "a", "inner": {"treshold": 1}}, "plan.yaml")
    assert str(error.value) == "plan.yaml: unknown key 'inner.treshold': did you mean inner.threshold?"


def test_an_unknown_key_inside_a_list_names_the_entry():
    with pytest.raises(UserError, match=r"unknown key 'many\.1\.treshold': did you mean many\.1\.threshold"):
        build(Outer, {"name": "a", "many": [{}, {"treshold": 1}]}, "plan.yaml")


def test_a_wrong_value_names_its_key_and_the_value():
    with pytest.raises(
        UserError, match=r"plan.yaml: 'inner.threshold' should be a valid number.*\(got 'high'\)"
    ):
        build(Outer, {"name": "a", "inner": {"threshold": "high"}}, "plan.yaml")


def test_values_that_do_not_go_together_are_named_without_the_others():
    with pytest.raises(UserError) as error:
        build(Ranges, {"first": {"low": 3.0}}, "plan.yaml")
    assert str(error.value) == "plan.yaml: 'first': low 3.0 is above high 1.0"


def test_a_missing_key_is_named():
    with pytest.raises(UserError, match="'name' is missing"):
        build(Outer, {}, "plan.yaml")


def test_a_repeated_key_is_an_error_and_names_its_line():
    with pytest.raises(UserError, match=r"x\.yaml line 3: key 'a' is given twice"):
        parse_yaml("a: 1\nb: 2\na: 3\n", "x.yaml")


def test_a_key_is_the_word_that_was_written():
    """YAML 1.1 reads `on` and `no` as booleans: as values they stay that."""
    table = {"on": "stem", "no": True, "key": False}
    assert parse_yaml("table: {on: stem, no: yes, key: off}\n", "x.yaml") == {"table": table}
    assert apply_sets({}, ["table={on: stem, no: yes, key: off}"]) == {"table": table}
    with pytest.raises(UserError, match="key 'on' is given twice"):
        parse_yaml("on: 1\n'on': 2\n", "x.yaml")


@pytest.mark.parametrize("text", ["- 1\n- 2\n", "just text", "", "a: [1"])
def test_yaml_that_is_not_a_mapping_is_an_error_in_one_line(text):
    with pytest.raises(UserError) as error:
        parse_yaml(text, "x.yaml")
    assert "\n" not in str(error.value)


def test_sets_walk_mappings_and_named_list_entries():
    tree = {"stages": [{"stage": "header"}, {"stage": "flatness", "patch": 240}], "rules": {"a": "x"}}
    result = apply_sets(tree, ["stages.flatness.patch=256", "rules.b=width > 3", "stages.0.x=[1, 2]"])
    assert result == {
        "stages": [{"stage": "header", "x": [1, 2]}, {"stage": "flatness", "patch": 256}],
        "rules": {"a": "x", "b": "width > 3"},
    }
    assert tree["stages"][1] == {"stage": "flatness", "patch": 240}


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ("no equals", "write it as path=value"),
        ("stages.flatnes.patch=1", "did you mean flatness"),
        ("name.x=1", "set it as a whole"),
    ],
)
def test_a_set_that_cannot_be_made_says_why(item, message):
    with pytest.raises(UserError, match=message):
        apply_sets({"name": "a", "stages": [{"stage": "flatness"}]}, [item])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(JSON)
def test_canonical_json_keeps_the_value_and_forgets_key_order(value):
    text = canonical_json(value)
    assert json.loads(text) == value

    def reverse(v):
        return {k: reverse(v[k]) for k in reversed(v)} if isinstance(v, dict) else v

    assert fingerprint(reverse(value)) == fingerprint(value)


class Noted(Config):
    schema_version: int
    size: int


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"{", r"^note\.json cannot be read \(.*\): restore it$"),
        (b"\xff{}", r"^note\.json cannot be read \(.*utf-8.*\): restore it$"),
        (b"[1]", "^note.json cannot be read .it is not a JSON object.: restore it$"),
        (b'{"size": 1}', "^note.json has no schema version: restore it$"),
        (b'{"schema_version": true, "size": 1}', "has no schema version"),
        (b'{"schema_version": 3, "more": 1}', "has schema version 3, and this uhr reads 2: install a newer"),
        (b'{"schema_version": 2, "syze": 1}', "^note.json: unknown key 'syze': did you mean size"),
        (b'{"schema_version": 2}', "^note.json: 'size' is missing"),
    ],
)
def test_a_versioned_file_that_cannot_be_read_says_where_why_and_the_fix(text, says, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=says):
        parse_versioned(Noted, text, "note.json", 2, "restore it")
    monkeypatch.chdir(tmp_path)
    Path("note.json").write_bytes(text)
    with pytest.raises(UserError, match=says):
        read_versioned(Noted, Path("note.json"), 2, "restore it")


def test_a_versioned_file_of_an_older_version_is_read():
    assert parse_versioned(Noted, b'{"schema_version": 1, "size": 4}', "x", 2, "") == Noted(
        schema_version=1, size=4
    )


def test_a_versioned_file_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"none cannot be read .*: restore it$"):
        read_versioned(Noted, tmp_path / "none", 2, "restore it")


def test_a_yaml_that_is_not_there_and_a_size_without_a_unit_say_so_once(tmp_path):
    with pytest.raises(UserError) as refused:
        read_yaml(tmp_path / "none.yaml")
    assert str(refused.value).count("none.yaml") == 1
    assert "No such file" in str(refused.value)

    class Limits(Config):
        memory: ByteSize

    with pytest.raises(UserError, match=r"'memory'.*got '4 gigs'.*write it as 4GiB"):
        build(Limits, {"memory": "4 gigs"}, "limits.yaml")


_PRINTABLE = st.text(st.characters(blacklist_categories=["Cs", "Cc"]), max_size=12)
_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**9), 10**9)
    | st.sampled_from([0.5, 10.0, -2.25])
    | _PRINTABLE,
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(_PRINTABLE, inside, max_size=3),
    max_leaves=6,
)


@given(_VALUES)
@example(None)
@example([True, "true", {"a": None}])
def test_a_change_is_read_as_the_value_that_it_was_made_of(value):
    assert apply_sets({}, [change("a", value)]) == {"a": value}


def test_a_plain_word_is_not_quoted():
    assert [change("a", text) for text in ("ohwx style", "5", "null")] == [
        "a=ohwx style",
        'a="5"',
        'a="null"',
    ]
