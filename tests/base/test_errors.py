import pickle
import sys

import pytest

from uhr.base.errors import UserError, combined, load_object, one_line, unknown, with_options
from uhr.runtime.units import PlanMismatch


def test_an_error_keeps_its_text_across_processes():
    error = pickle.loads(pickle.dumps(UserError("what", "fix")))
    assert (str(error), error.fix) == ("what: fix", "fix")


def test_an_error_keeps_what_its_class_adds_across_processes():
    mismatch = pickle.loads(pickle.dumps(PlanMismatch("what", "fix", "work")))
    assert (str(mismatch), mismatch.changed) == ("what: fix", "work")


def test_parameters_of_a_fix_become_the_options_of_the_command():
    error = UserError("no GPU", "take the CPU", give={"text_dtype": "float32", "device": "cpu"})
    assert str(error) == "no GPU: take the CPU: text_dtype=float32, device=cpu"
    assert str(error.with_options()) == "no GPU: take the CPU: --text-dtype float32 --device cpu"
    with pytest.raises(UserError) as caught, with_options(device="--set runtime.device="):
        raise pickle.loads(pickle.dumps(error))
    assert str(caught.value.with_options()) == (
        "no GPU: take the CPU: --set runtime.device=cpu: --text-dtype float32"
    )
    assert str(UserError("what", give={"base": "DIR"}).with_options()) == "what: --base DIR"


def test_an_unknown_name_without_similar_ones_lists_the_known_names():
    assert str(unknown("stage", "zzz", ["header", "decode"])) == "unknown stage 'zzz': known: decode, header"


def test_an_unknown_name_similar_to_none_lists_all_and_else_the_nearest():
    kinds = ("nf4", "int8", "int8wo", "float8wo")
    assert unknown("quantisation", "foo", kinds).fix == "known: float8wo, int8, int8wo, nf4"
    assert unknown("quantisation", "int8w", kinds).fix.startswith("did you mean int8")


def test_an_import_path_finds_an_object_in_a_module_of_the_users(tmp_path, monkeypatch):
    (tmp_path / "a_package_of_the_users_own.py").write_text("class Faces:\n    class Inner: pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    before = list(sys.path)
    assert load_object("a_package_of_the_users_own:Faces.Inner", "stage").__qualname__ == "Faces.Inner"
    with pytest.raises(
        UserError, match="unknown stage in a_package_of_the_users_own 'Face': did you mean Faces"
    ):
        load_object("a_package_of_the_users_own:Face", "stage")
    assert sys.path == before


@pytest.mark.parametrize("path", ["no_colon", ":Name", "module:", "no.such.module:Name"])
def test_an_import_path_that_leads_nowhere_says_how_to_write_one(path):
    with pytest.raises(UserError) as error:
        load_object(path, "stage")
    assert error.value.fix


def test_similar_names_are_found_without_regard_to_case():
    assert unknown("column", "WIDTH", ["width", "height"]).fix == "did you mean width?"
    assert unknown("model", "flux1-DVE", ["FLUX1-dev", "other"]).fix == "did you mean FLUX1-dev?"
    assert unknown("key", "A", ["a", "A1"]).fix.startswith("did you mean a")


def test_several_mistakes_are_one_line_with_the_fix_that_they_share():
    errors = [UserError(f"line {n} is empty", "write a prompt") for n in range(1, 9)]
    assert str(combined(errors[:1])) == "line 1 is empty: write a prompt"
    assert str(combined(errors[:2])) == "line 1 is empty; line 2 is empty: write a prompt"
    assert str(combined(errors, most=2)) == "line 1 is empty; line 2 is empty; and 6 more: write a prompt"
    mixed = [errors[0], UserError("line 9 holds a number", "write a text")]
    assert str(combined(mixed)) == "line 1 is empty: write a prompt; line 9 holds a number: write a text"


def test_the_text_of_another_librarys_error_is_one_line():
    assert one_line(ValueError("  two\n lines,\ttabs\r\n")) == "two lines, tabs"
    assert one_line(KeyError("a")) == "'a'"
    assert one_line(RuntimeError()) == ""


def test_an_import_error_of_many_lines_is_one(monkeypatch, tmp_path):
    (tmp_path / "wordy.py").write_text("raise ImportError('first\\n\\n  second')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError, match=r"stage 'wordy:X' cannot be imported \(first second\): install"):
        load_object("wordy:X", "stage")


def test_of_many_names_only_the_nearest_are_listed():
    known = [f"column_{number}" for number in range(40)]
    text = str(unknown("column", "zzc", known))
    assert text.startswith("unknown column 'zzc': the nearest of 40: ")
    assert text.count(",") == 5
    assert str(unknown("column", "zzc", known[:3])) == (
        "unknown column 'zzc': known: column_0, column_1, column_2"
    )
