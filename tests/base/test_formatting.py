import pytest

from uhr.base.formatting import (
    first_words,
    gibibytes,
    human_bytes,
    number,
    numbered_names,
    share,
    sufficient_bytes,
    with_unit,
)


def test_numbers_are_written_for_people():
    assert [number(v) for v in (None, 0, 12345, 4.0, 0.03125, 1234.5, "x")] == [
        "–",
        "0",
        "12,345",
        "4",
        "0.0312",
        "1,234",
        "x",
    ]
    assert [share(a, 1000) for a in (0, 0.4, 4, 123, 996, 1000)] == [
        "0 %",
        "< 0.1 %",
        "0.4 %",
        "12 %",
        "99.6 %",
        "100 %",
    ]
    assert share(1, 0) == "–"
    assert with_unit(3.21, "bit") == "3.21 bit"
    assert with_unit(0.5, "1") == "0.5"
    assert first_words("a " * 200).endswith("…")
    assert first_words(None) == ""


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (4.2e9, "4.2 GB"), (3e12, "3.0 TB")]
)
def test_bytes_for_people(count, text):
    assert human_bytes(count) == text


def test_memory_of_a_gpu_is_in_binary_units():
    assert [gibibytes(b) for b in (5 << 20, 3 << 29)] == ["5.0 MiB", "1.5 GiB"]


def test_a_limit_that_has_to_be_enough_is_rounded_up():
    assert [sufficient_bytes(b) for b in (1, 1025, (1 << 30) + 1)] == ["1 B", "1.01 KiB", "1.01 GiB"]


def test_names_that_differ_in_a_number_are_one():
    blocks = [f"single.{n}.attn.to_out" for n in (0, 1, 2, 4)]
    assert numbered_names(["to_q", *blocks, "double.7.ff"]) == (
        "to_q, single.{0-2,4}.attn.to_out, double.7.ff"
    )
    # no number between two dots: the whole name, each once
    assert numbered_names(["to_out.0", "ff.net.2"]) == "to_out.0, ff.net.2"
