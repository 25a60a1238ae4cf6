import json

from uhr.base import console


def test_progress_elsewhere_than_on_a_terminal_is_plain_lines(capsys):
    with console.progress("scan", total=3, unit="files") as advance:
        advance(2)
        advance(1, note="last")
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("scan: 3/3 files in ")
    assert err.rstrip().endswith("last")


def test_what_goes_on_before_the_first_is_done_is_said_at_once(capsys):
    with console.progress("paint", total=3, unit="pictures") as advance:
        advance(0, "starting Ray")
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("paint: 0/3 pictures in ")
        assert line.endswith("  starting Ray")
        advance(0, "loading")
        advance(1)
        assert capsys.readouterr().err == ""


def test_a_table_aligns_numbers_right_and_words_left(capsys):
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
