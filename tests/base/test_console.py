import json
import math
import os
import shlex
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uhr.base import console

HOSTILE = "red\x1b[31m\x07 two\nlines \u202ereversed\u2069 \x9b2J \u2028 caf\udce9"
ESCAPED = r"red\x1b[31m\x07 two\nlines \u202ereversed\u2069 \x9b2J \u2028 caf\udce9"


def test_progress_elsewhere_than_on_a_terminal_is_plain_lines(capsys):
    with console.progress("scan", total=3, unit="files") as advance:
        advance(2)
        advance(1, note="last")
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("scan: 3/3 files in ")
    assert err.rstrip().endswith("last")


def test_the_last_line_is_printed_once(capsys, monkeypatch):
    clock = iter(range(0, 1000, 6))
    monkeypatch.setattr(console.time, "monotonic", lambda: next(clock))
    with console.progress("scan", total=2, unit="files") as advance:
        advance()
        advance()
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(" files")[0] for line in lines] == ["scan: 1/2", "scan: 2/2"]


def test_plain_lines_say_how_long_the_rest_takes_at_the_rate_of_this_run(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    with console.progress("reconstruct", total=100, unit="megapixels") as advance:
        # done by an earlier run
        advance(60)
        for step in range(4):
            now[0] += 10
            advance(10, None if step < 3 else "last")
    assert capsys.readouterr().err.splitlines() == [
        "reconstruct: 70/100 megapixels in 10.0 s, about 30 s left",
        "reconstruct: 80/100 megapixels in 20.0 s, about 20 s left",
        "reconstruct: 90/100 megapixels in 30.0 s, about 10 s left",
        "reconstruct: 100/100 megapixels in 40.0 s  last",
    ]


def test_a_note_before_the_first_item_is_printed_at_once(capsys):
    with console.progress("generate", total=3, unit="images") as advance:
        advance(0, "starting Ray")
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("generate: 0/3 images in ")
        assert line.endswith("  starting Ray")
        advance(0, "loading")
        advance(1)
        assert capsys.readouterr().err == ""


def test_a_table_aligns_numbers_right_and_text_left(capsys):
    console.table(["rule", "rows"], [["entropy", 5], ["flat", 1234], ["x", None]])
    assert capsys.readouterr().out.splitlines() == [
        "rule     rows",
        "entropy     5",
        "flat     1234",
        "x           -",
    ]


def test_emit_gives_json_to_machines_and_text_to_people(capsys):
    console.emit({"a": 1}, True, lambda value: None)
    assert json.loads(capsys.readouterr().out) == {"a": 1}
    console.emit({"a": 1}, False, lambda value: console.say(f"a is {value['a']}"))
    assert capsys.readouterr().out == "a is 1\n"


def test_what_would_steer_a_terminal_is_printed_as_an_escape(capsys):
    assert console.shown(HOSTILE) == ESCAPED
    console.table([HOSTILE], [[HOSTILE], [None]])
    assert capsys.readouterr().out.splitlines() == [ESCAPED, ESCAPED, "-"]
    console.warn(HOSTILE)
    assert capsys.readouterr().err == f"warning: {ESCAPED}\n"
    with console.progress("scan", total=1, unit="files") as advance:
        advance(1, HOSTILE)
    assert capsys.readouterr().err.rstrip().endswith(ESCAPED)
    # text of our own may have several lines
    console.say("one\n\ttwo\x1b[2J")
    assert capsys.readouterr().out == "one\n\ttwo\\x1b[2J\n"


@given(st.text())
def test_no_shown_character_controls_the_terminal(text):
    shown = console.shown(text)
    assert all(unicodedata.category(c) not in ("Cc", "Cs", "Zl", "Zp", "Co") for c in shown)
    assert not set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f") & set(shown)


@pytest.mark.parametrize(
    "text", ["Zoë", "日本　語", "می\u200cخواهم", "👩\u200d🚀", "a\xa0b", "100 %", "\\x1b"]
)
def test_what_people_write_is_shown_as_it_is(text):
    assert console.shown(text) == text


def test_a_bar_takes_no_colours_from_what_it_is_given(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with console.progress("[red]scan", total=1, unit="[bold]files") as advance:
        advance(1, "[blink]note\x1b[2J")
    printed = capsys.readouterr().err
    assert "[red]scan" in printed
    assert "[blink]note\\x1b[2J" in printed


def test_json_is_valid_whatever_is_in_it(capsys):
    value = {
        "nan": math.nan,
        "inf": [math.inf, (1.5, -math.inf)],
        "path": Path("caf\udce9"),
        "esc": "\x1b\u202e",
    }
    console.emit(value, True, lambda value: None)
    printed = capsys.readouterr().out
    assert json.loads(printed, parse_constant=pytest.fail) == {
        "nan": None,
        "inf": [None, [1.5, None]],
        "path": "caf\udce9",
        "esc": "\x1b\u202e",
    }


@settings(max_examples=30)
@given(
    st.lists(st.binary(min_size=1, max_size=12).filter(lambda name: 0 not in name), min_size=1, max_size=4)
)
def test_a_printed_command_gives_a_shell_the_same_arguments(names):
    paths = [Path(os.fsdecode(name)) for name in names]
    line = console.command("curate", *paths)
    assert line.isprintable()
    script = f"uhr() {{ printf '%s\\0' \"$@\"; }}; {line}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, check=True)
    first, *given = done.stdout.split(b"\0")[:-1]
    assert first == b"curate"
    assert [Path(os.fsdecode(word)) for word in given] == paths
    assert not any(word.startswith(b"-") for word in given)


@pytest.mark.parametrize(
    ("condition", "quoted"),
    [
        ("status = 'kept'", "\"status = 'kept'\""),
        ("entropy > 4", "'entropy > 4'"),
        ("a = '$HOME'", None),
        ("a = '`id`'", None),
        ("a = '!x'", shlex.quote("a = '!x'")),
        ("a = '\\\\'", None),
        ("\"a\" = 'b'", None),
    ],
)
def test_a_condition_with_a_text_is_printed_in_double_quotes_where_a_shell_reads_them(condition, quoted):
    line = console.command("slice", "--where", condition)
    if quoted is not None:
        assert line == f"uhr slice --where {quoted}"
    script = f"uhr() {{ printf '%s' \"$3\"; }}; {line}"
    done = subprocess.run(["bash", "-c", script], check=True, capture_output=True)
    assert done.stdout.decode() == condition
